"""``strip_pruning``: a model without its pruning wrappers, with exactly the pattern in its weights."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from tensorflow_model_optimization.python.core.keras.compat import keras
from tensorflow_model_optimization.python.core.sparsity.keras import pruning_wrapper

from tfmot_asp.keras_models.kernels import kernel_name, kernels_of
from tfmot_asp.keras_models.variables import read
from tfmot_asp.keras_models.which_keras import is_keras3
from tfmot_asp.keras_models.wrappable import is_graph
from tfmot_asp.training.wrapper import PruneLowMagnitude


def strip_pruning(model: Any) -> Any:
    """Takes the pruning wrappers off again.

    Masks are applied first, and completed where training stopped short of the pattern (with a warning), so that every
    kernel that was wrapped with ``sparsity_m_by_n`` has exactly that pattern in the result.

    Args:
        model: a tf_keras model with pruning wrappers, ours or tfmot's, built or not.

    Returns:
        A plain, uncompiled Keras model that shares its layers with ``model``; it saves and loads without this package.
        A subclassed model, which cannot be copied, comes back itself: its wrapped layers are replaced where it holds
        them, as are those inside custom layers.

    Raises:
        ValueError: if it is no tf_keras model.

    Warns:
        UserWarning: if weights that were wrapped are NaN or infinite.

    Example:
        >>> sparse = tfmot_asp.strip_pruning(pruned)
        >>> sparse.save("sparse.keras")
    """
    if is_keras3(model):
        raise ValueError(
            f"{getattr(model, 'name', model)!r} belongs to Keras 3 and so has no pruning wrappers; a model of "
            "prune_trained_model is plain already, and its PrunedModel.remove() takes the masks off"
        )
    if not isinstance(model, keras.Model):
        raise ValueError(f"strip_pruning takes a tf_keras model with pruning wrappers, got {model!r:.80}")
    wrappers = wrappers_in(model)
    for wrapper in wrappers:
        wrapper.finish_pruning()
    _warn_of_nan(wrappers)
    stripped = _Stripper().stripped(model)
    for wrapper in wrappers:
        wrapper.release()
    return stripped


def wrappers_in(model: Any, kind: type = PruneLowMagnitude) -> list[Any]:
    """The wrappers in a model, wherever it holds them: this package's, or of another class."""
    return [layer for layer in model._flatten_layers(include_self=False) if isinstance(layer, kind)]


class _Stripper:
    """Replaces wrappers by what is in them: graphs of layers are copied, and what holds layers otherwise is changed."""

    def __init__(self) -> None:
        self._copies: dict[int, Any] = {}

    def stripped(self, model: Any) -> Any:
        for holder in list(model._flatten_layers()):
            if not isinstance(holder, pruning_wrapper.PruneLowMagnitude) and not _is_graph(holder):
                for name, value in list(vars(holder).items()):
                    if not name.startswith("_self_") and name not in _OF_KERAS:
                        plain = self._plain(value)
                        if plain is not value:
                            setattr(holder, name, plain)
        if not _is_graph(model):
            model.train_function = model.test_function = model.predict_function = None  # they call the wrappers
            return model
        return keras.models.clone_model(model, clone_function=self._plain_layer)

    def _plain(self, value: Any) -> Any:
        """A layer, or a structure of them, without wrappers; ``value`` itself if there are none in it."""
        if isinstance(value, keras.layers.Layer):
            return self._plain_layer(value)
        if isinstance(value, dict):
            inside = {key: self._plain(item) for key, item in value.items()}
            return inside if any(inside[key] is not value[key] for key in inside) else value
        if isinstance(value, (list, tuple)):
            items = [self._plain(item) for item in value]
            if all(new is old for new, old in zip(items, value, strict=True)):
                return value
            if isinstance(value, list):
                return items
            return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
        return value

    def _plain_layer(self, layer: Any) -> Any:
        if isinstance(layer, pruning_wrapper.PruneLowMagnitude):
            shape = getattr(layer, "_batch_input_shape", None)  # by which a sequential model knows its inputs
            if shape is not None and not hasattr(layer.layer, "_batch_input_shape"):
                layer.layer._batch_input_shape = shape
            return layer.layer
        if not _is_graph(layer):
            return layer
        if id(layer) not in self._copies:
            wrapped = wrappers_in(layer, pruning_wrapper.PruneLowMagnitude)
            self._copies[id(layer)] = (
                keras.models.clone_model(layer, clone_function=self._plain_layer) if wrapped else layer
            )
        return self._copies[id(layer)]


_OF_KERAS = ("_inbound_nodes_value", "_outbound_nodes_value", "_nested_inputs", "_nested_outputs", "_thread_local")


def _is_graph(layer: Any) -> bool:
    return isinstance(layer, keras.Model) and is_graph(layer)


def _warn_of_nan(wrappers: list[PruneLowMagnitude]) -> None:
    bad = [
        kernel_name(wrapper.layer.name, kernel.attribute)
        for wrapper in wrappers
        for kernel in kernels_of(wrapper.layer)
        if not np.isfinite(read(kernel.tf_variable)).all()
    ]
    if bad:
        warnings.warn(
            f"the weights of {', '.join(map(repr, bad))} hold NaN or infinite values: the training has diverged, and "
            "the stripped model will not work",
            UserWarning,
            stacklevel=3,
        )
