"""Which Keras a layer or model belongs to: tf_keras (Keras 2) or Keras 3, recognised side by side.

Importing this module loads neither TensorFlow nor Keras: a layer that exists has its Keras in ``sys.modules`` already,
so a process that uses one Keras never loads the other.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

_KERAS_MODULES = ("tf_keras", "keras")


def is_keras_layer(thing: Any) -> bool:
    """Whether ``thing`` is a layer (or model) of tf_keras or Keras 3."""
    return is_instance(thing, "Layer")


def is_keras_model(thing: Any) -> bool:
    """Whether ``thing`` is a model of tf_keras or Keras 3."""
    return any(isinstance(thing, base) for base in model_classes())


def model_classes() -> Iterator[type]:
    """The classes of models of the Keras that are loaded."""
    return _classes("Model", namespace="models")


def is_keras3(thing: Any) -> bool:
    """Whether ``thing`` is a layer or model of Keras 3 (and not of tf_keras)."""
    keras = sys.modules.get("keras")
    base = getattr(getattr(keras, "layers", None), "Layer", None)
    version = str(getattr(keras, "__version__", ""))
    return base is not None and not version.startswith(("1.", "2.")) and isinstance(thing, base)


def is_instance(thing: Any, name: str) -> bool:
    """Whether ``thing`` is a layer of the class that either Keras calls ``name``, such as ``"Conv2D"``."""
    return any(isinstance(thing, base) for base in _classes(name))


def check_backend(model: Any) -> None:
    """Raises ValueError for a Keras 3 model whose variables are not TensorFlow's."""
    if is_keras3(model) and (backend := sys.modules["keras"].backend.backend()) != "tensorflow":
        raise ValueError(
            f"{type(model).__name__} {model.name!r} runs on Keras 3's {backend} backend; tfmot_asp works on TensorFlow "
            "graphs. Set KERAS_BACKEND=tensorflow before importing Keras, and load the model there"
        )


def _classes(name: str, namespace: str = "layers") -> Iterator[type]:
    for module_name in _KERAS_MODULES:
        found = getattr(getattr(sys.modules.get(module_name), namespace, None), name, None)
        if isinstance(found, type):
            yield found
