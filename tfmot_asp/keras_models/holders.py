"""The models that hold a model or a layer: what they have traced, and their optimizers, concern its weights too."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from typing import Any

from tfmot_asp.keras_models.which_keras import model_classes
from tfmot_asp.keras_models.wrappers import parts_of


def models_holding(model: Any) -> list[Any]:
    """The Keras models in this process that share a layer with ``model``, itself included if it is one.

    A layer does not know in which models it is, so this asks Python for all instances of the classes of models.
    """
    shared = {id(part) for part in parts_of(model)}
    classes = {derived for base in model_classes() for derived in _with_subclasses(base)}
    found = []
    # An object refers to its type, and Python walks all objects for that without running any of their code.
    for thing in gc.get_referrers(*classes):
        if type(thing) in classes:
            try:
                holds = any(id(part) in shared for part in parts_of(thing))
            except Exception:  # one that is being made, or has failed to be
                continue
            if holds:
                found.append(thing)
    return found


def _with_subclasses(base: type) -> Iterator[type]:
    yield base
    derived: type
    for derived in type.__subclasses__(base):
        yield from _with_subclasses(derived)


def forget_traces(model: Any) -> None:
    """Has Keras trace training steps anew, of this model and of all that hold its layers or that it holds.

    A trace keeps to the constraints it saw. Works within a ``fit`` as well, from a callback.

    Warns:
        UserWarning: for a ``train_step`` that is a ``tf.function`` and has been traced: those traces stay.
    """
    for part in {id(part): part for part in (*models_holding(model), *parts_of(model))}.values():
        step = getattr(part, "train_step", None)
        if step is not None and getattr(step, "experimental_get_tracing_count", int)() > 0:
            warnings.warn(
                f"{type(part).__name__} {part.name!r} has trained with a train_step that is a tf.function of its own, "
                "which keeps to what it saw then: it does not know that masks have come or gone. Make the model anew, "
                "or leave @tf.function out, since Keras compiles train_step itself",
                UserWarning,
                stacklevel=2,
            )
        if getattr(part, "train_function", None) is not None and hasattr(part, "make_train_function"):
            part.make_train_function(force=True)
