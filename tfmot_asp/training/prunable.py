"""Which weights of a layer the pruning wrapper masks, and what it asks of a layer before it wraps it."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from tensorflow_model_optimization.python.core.keras.compat import keras
from tensorflow_model_optimization.python.core.sparsity.keras import prune_registry

from tfmot_asp.keras_models.kernels import kernels_of
from tfmot_asp.keras_models.layouts import ATTENTION_KINDS, kind_of
from tfmot_asp.keras_models.variables import underlying_variable


def check_wrappable(layer: Any) -> None:
    """Makes sure that tfmot's constructor takes the layer; its own registry knows exact classes only."""
    if not isinstance(layer, keras.layers.Layer) or hasattr(layer, "get_prunable_weights"):
        return  # what is no layer gets tfmot's error
    if prune_registry.PruneRegistry.supports(layer):
        return
    if kind_of(layer) is None:
        raise ValueError(
            f"Layer {layer.name!r} of type {type(layer).__name__} has no kernel that is known. Define a method "
            "get_prunable_weights on it that lists the weights to prune, or leave it out."
        )
    layer.get_prunable_weights = lambda: [weight for weight, _ in prunable_weights(layer)]


def build_projections(layer: Any) -> None:
    """Builds the projections of an attention layer that was made from its config: Keras does so at the first call."""
    if kind_of(layer) not in ATTENTION_KINDS or kernels_of(layer):
        return
    query = getattr(layer, "_query_shape", None)
    if query is None:
        raise ValueError(
            f"Layer {layer.name!r} of type {type(layer).__name__} has not been called, so its projections do not exist "
            "yet. Call it once (or build the model around it), then wrap it."
        )
    heads = (*query[:-1], layer._num_heads, layer._value_dim)
    for projection, shape in (
        (layer._query_dense, query),
        (layer._key_dense, layer._key_shape),
        (layer._value_dense, layer._value_shape),
        (layer._output_dense, heads),
    ):
        # The name scopes that a call would open: variable names, and so checkpoints, stay the same.
        with tf.name_scope(projection.name):
            projection.build(tf.TensorShape(shape))


def prunable_weights(layer: Any) -> list[tuple[Any, tuple[int, ...]]]:
    """The weights of a built layer to prune, each with its reduction axes."""
    kernels = [kernel for kernel in kernels_of(layer) if kernel.layout.reduction_axes]
    by_identity = {id(kernel.tf_variable): kernel.layout.reduction_axes for kernel in kernels}
    if not hasattr(type(layer), "get_prunable_weights") and kind_of(layer) is not None:
        return [(kernel.variable, kernel.layout.reduction_axes) for kernel in kernels]
    found = []
    for weight in layer.get_prunable_weights():
        axes = by_identity.get(id(underlying_variable(weight)))
        if axes is None:
            if isinstance(layer, keras.layers.Embedding) or len(weight.shape) < 2:
                raise ValueError(
                    f"Layer {layer.name!r} of type {type(layer).__name__} asks to prune a weight of shape "
                    f"{tuple(weight.shape)}, which no matrix product reads along a reduction axis; sparsity_m_by_n "
                    "does not apply to it. Leave the layer out, or use sparsity_m_by_n=None."
                )
            axes = (len(weight.shape) - 2,)  # (..., inputs, outputs): the layout of all of Keras' own kernels
        found.append((weight, axes))
    return found
