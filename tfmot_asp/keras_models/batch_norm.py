"""The batch normalizations of a model, with the statistics that inference uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tfmot_asp.keras_models.layers import all_layers
from tfmot_asp.keras_models.variables import underlying_variable


@dataclass(frozen=True, eq=False)
class BatchNorm:
    """A batch normalization.

    Attributes:
        name: of the layer, in its model.
        mean, variance: the plain variables of its moving statistics.
        axes: the axes of its input that have statistics of their own, as the layer counts them.
    """

    name: str
    mean: Any
    variance: Any
    axes: tuple[int, ...]


def batch_norms(model: Any) -> list[BatchNorm]:
    """All layers of a model that keep a moving mean and variance, each once; of tf_keras and Keras 3."""
    found = []
    for name, layer in all_layers(model):
        mean, variance = getattr(layer, "moving_mean", None), getattr(layer, "moving_variance", None)
        if mean is None or variance is None:
            continue
        axis = getattr(layer, "axis", -1)
        axes = tuple(int(a) for a in axis) if isinstance(axis, (list, tuple)) else (int(axis),)
        found.append(BatchNorm(name, underlying_variable(mean), underlying_variable(variance), axes))
    return found
