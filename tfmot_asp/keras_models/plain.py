"""A model without its pruning wrappers."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_asp import masks
from tfmot_asp.keras_models.kernels import kernels_of
from tfmot_asp.keras_models.variables import read
from tfmot_asp.keras_models.which_keras import is_keras3, is_keras_model


def plain_model(model: Any) -> tuple[Any, tuple[int, int]]:
    """The model without pruning wrappers, with all masks applied, and the pattern that they had.

    Args:
        model: a built tf_keras or Keras 3 model, with or without pruning wrappers. It stays as it is: what comes back
            shares its weights.

    Raises:
        ValueError: if the model is none, is not built, holds NaN, its pruning has not reached the pattern, or it mixes
            patterns.
    """
    if not is_keras_model(model):
        raise ValueError(f"export takes a Keras model, got a {type(model).__name__}: {model!s:.80}")
    if not model.built:
        raise ValueError(f"Model {model.name!r} is not built; call it on a batch, or build it, before exporting it")
    _check_numbers(model)
    if is_keras3(model):
        return model, masks.DEFAULT_M_BY_N
    from tensorflow_model_optimization.python.core.sparsity.keras import prune, pruning_wrapper

    wrappers = [
        layer
        for layer in model._flatten_layers(include_self=False)
        if isinstance(layer, pruning_wrapper.PruneLowMagnitude)
    ]
    if not wrappers:
        return model, masks.DEFAULT_M_BY_N
    patterns = {tuple(wrapper.sparsity_m_by_n) for wrapper in wrappers if wrapper.sparsity_m_by_n}
    if len(patterns) > 1:
        raise ValueError(f"Model {model.name!r} mixes the patterns {sorted(patterns)}; export one pattern at a time")
    for wrapper in wrappers:
        wrapper.pruning_obj.weight_mask_op()
    m_by_n = patterns.pop() if patterns else masks.DEFAULT_M_BY_N
    for wrapper in wrappers:
        for kernel in kernels_of(wrapper) if wrapper.sparsity_m_by_n else ():
            axes = kernel.layout.reduction_axes
            if axes and masks.violations(np.asarray(kernel.tf_variable), axes, m_by_n):
                raise ValueError(
                    f"Layer {kernel.layer.name!r} has not reached its {m_by_n} pattern: train to the end of its "
                    "pruning schedule first, or call tfmot_asp.strip_pruning(model), which prunes it now."
                )
    return prune.strip_pruning(model), m_by_n


def _check_numbers(model: Any) -> None:
    """Raises ValueError for NaN in a weight, or infinity in a matrix: nobody wants to deploy those."""
    for variable in model.weights:
        if tf.as_dtype(variable.dtype).is_floating:
            values = read(variable)
            bad = np.isnan(values) if values.ndim < 2 else ~np.isfinite(values)  # a vector of limits may be infinite
            if bad.any():
                name = getattr(variable, "path", None) or variable.name
                raise ValueError(
                    f"weight {name!r} of model {model.name!r} has {int(bad.sum())} NaN or infinite values out of "
                    f"{values.size}: check the training, or the checkpoint that it came from"
                )
