"""A model without its pruning wrappers."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfmot_asp import masks
from tfmot_asp.keras_models.checks import check_built, check_finite
from tfmot_asp.keras_models.kernels import kernels_by_name, kernels_of, layers_with_kernels
from tfmot_asp.keras_models.which_keras import is_keras3, is_keras_model


def plain_model(model: Any) -> tuple[Any, tuple[int, int]]:
    """The model without pruning wrappers, with all masks applied, and the pattern that they had.

    Args:
        model: a built tf_keras or Keras 3 model, with or without pruning wrappers. It stays as it is: what comes back
            shares its weights.

    Raises:
        ValueError: if the model is none or not built, holds NaN, its pruning has not reached the pattern, or it mixes
            patterns.
    """
    if not is_keras_model(model):
        raise ValueError(f"export takes a Keras model, got a {type(model).__name__}: {model!s:.80}")
    check_built(model, "export it")
    kernels = kernels_by_name(layers_with_kernels(model))
    check_finite({name: kernel.variable for name, kernel in kernels.items()}, model.weights)
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
