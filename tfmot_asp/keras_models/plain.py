"""A model without its pruning wrappers."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfmot_asp import masks
from tfmot_asp.keras_models.checks import check_built, check_finite
from tfmot_asp.keras_models.kernels import kernels_by_name, kernels_of, layers_with_kernels
from tfmot_asp.keras_models.which_keras import is_keras3, is_keras_model
from tfmot_asp.keras_models.wrappable import is_graph, outer_layers
from tfmot_asp.pattern import TWO_FOUR, Pattern, PatternLike


def plain_model(model: Any, sparsity_m_by_n: PatternLike | None = None) -> tuple[Any, Pattern]:
    """The model without pruning wrappers, with all masks applied, and the pattern that they had.

    Args:
        model: a built tf_keras or Keras 3 model, with or without pruning wrappers. It stays as it is: what comes back
            shares its weights.
        sparsity_m_by_n: the pattern of a model that has been stripped; None for that of its wrappers, else 2:4.

    Raises:
        ValueError: if the model is none or not built, holds NaN, its pruning has not reached the pattern, it mixes
            patterns, or has another than the one that is given.
    """
    given = None if sparsity_m_by_n is None else Pattern.of(sparsity_m_by_n)
    if not is_keras_model(model):
        raise ValueError(f"export takes a Keras model, got a {type(model).__name__}: {model!s:.80}")
    check_built(model, "export it")
    kernels = kernels_by_name(layers_with_kernels(model))
    check_finite({name: kernel.variable for name, kernel in kernels.items()}, model.weights)
    if is_keras3(model):
        return model, given or TWO_FOUR
    from tensorflow_model_optimization.python.core.sparsity.keras import prune, pruning_wrapper

    wrappers = [
        layer
        for layer in model._flatten_layers(include_self=False)
        if isinstance(layer, pruning_wrapper.PruneLowMagnitude)
    ]
    if not wrappers:
        return model, given or TWO_FOUR
    outer = {id(layer) for _, layer in outer_layers(model)} if is_graph(model) else set()
    inside = next((wrapper for wrapper in wrappers if id(wrapper) not in outer), None)
    if inside is not None:
        raise ValueError(
            f"Layer {inside.layer.name!r} is wrapped inside a subclassed model or a custom layer, where its wrapper "
            "can only be taken off for good: export what tfmot_asp.strip_pruning(model) returns"
        )
    patterns = {Pattern.of(wrapper.sparsity_m_by_n) for wrapper in wrappers if wrapper.sparsity_m_by_n}
    if len(patterns) > 1:
        mixed = " and ".join(map(str, sorted(patterns)))
        raise ValueError(f"Model {model.name!r} mixes the patterns {mixed}; export one pattern at a time")
    for wrapper in wrappers:
        wrapper.pruning_obj.weight_mask_op()
    pattern = patterns.pop() if patterns else given or TWO_FOUR
    if given not in (None, pattern):
        raise ValueError(f"sparsity_m_by_n={given!s} was given, but the wrappers of {model.name!r} prune it {pattern}")
    for wrapper in wrappers:
        for kernel in kernels_of(wrapper) if wrapper.sparsity_m_by_n else ():
            axes = kernel.layout.reduction_axes
            if axes and masks.violations(np.asarray(kernel.tf_variable), axes, pattern):
                raise ValueError(
                    f"Layer {kernel.layer.name!r} has not reached its pattern {pattern}: train to the end of its "
                    "pruning schedule first, or call tfmot_asp.strip_pruning(model), which prunes it now."
                )
    return prune.strip_pruning(model), pattern
