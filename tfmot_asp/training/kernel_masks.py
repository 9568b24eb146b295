"""The masks of a model's kernels in checkpoints: by position, as Keras finds weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfmot_asp.keras_models.kernels import Kernel
from tfmot_asp.keras_models.variables import underlying_variable


@dataclass(frozen=True)
class _Named:
    """What ``tf.Module`` would track if it were an attribute of one."""

    masks: dict[str, Any]
    as_saved_before: Any


class KernelMasks(tf.Module):
    """Owns the masks of kernels, bool variables, one byte per weight.

    Automatic names of layers differ from one build of a model to the next, so a checkpoint has the masks in the order
    of the kernels. Checkpoints that have them by name, as earlier versions wrote, are read too.

    Args:
        name: of the module.
        kernels: by name, in the model's order.
        values: of their masks.
    """

    def __init__(self, name: str, kernels: Mapping[str, Kernel], values: Mapping[str, npt.ArrayLike]) -> None:
        super().__init__(name=name)
        variables = [create_mask(kernel.variable, values[key]) for key, kernel in kernels.items()]
        named = dict(zip(kernels, variables, strict=True))
        self._named = _Named(named, tf.__internal__.tracking.wrap(dict(named)))
        self._by_position = variables

    @property
    def masks(self) -> dict[str, Any]:
        """The mask of each kernel, by the kernel's name."""
        return dict(self._named.masks)

    def _lookup_dependency(self, name: str, cached_dependencies: Any = None) -> Any:
        if name == "masks":
            return self._named.as_saved_before
        return super()._lookup_dependency(name, cached_dependencies)


def create_mask(variable: Any, value: npt.ArrayLike) -> tf.Variable:
    """A bool variable for the mask of ``variable``, on its device and distributed like it.

    Args:
        variable: the kernel, in any of the forms that ``underlying_variable`` takes.
        value: of the mask.
    """
    plain = underlying_variable(variable)
    strategy = getattr(plain, "distribute_strategy", None) if hasattr(plain, "_values") else None
    with strategy.scope() if strategy is not None else tf.init_scope():
        return tf.Variable(
            np.asarray(value, bool),
            trainable=False,
            dtype=tf.bool,
            name="mask",
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )
