"""Masks as variable constraints: every Keras optimizer applies a variable's constraint as part of each update.

This is what keeps the pattern after every optimizer step, in ``fit`` and in custom loops alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfmot_asp import layouts, masks


class MaskConstraint:
    """A variable constraint that keeps masked weights at zero, after the user's own constraint if there is one.

    Attributes:
        mask: bool variable of the weight's shape.
        inner: the constraint that the variable had before, or None.
    """

    def __init__(self, mask: Any, inner: Callable[[Any], Any] | None) -> None:
        self.mask = mask
        self.inner = inner

    def __call__(self, weight: Any) -> Any:
        """Returns the constrained weight as a tensor."""
        if self.inner is not None:
            weight = self.inner(weight)
        return masks.apply_mask(tf.convert_to_tensor(weight), self.mask.read_value())


def attach_mask(variable: Any, mask: Any) -> None:
    """Makes ``mask`` part of the variable's constraint, in place of an earlier mask if there is one."""
    for component in _components(variable):
        inner = component.constraint
        component._constraint = MaskConstraint(mask, inner.inner if isinstance(inner, MaskConstraint) else inner)


def detach_mask(variable: Any) -> None:
    """Gives the variable back the constraint that it had before ``attach_mask``."""
    for component in _components(variable):
        if isinstance(component.constraint, MaskConstraint):
            component._constraint = component.constraint.inner


def _components(variable: Any) -> list[Any]:
    """The plain variables behind a distributed one (a list of the variable itself otherwise)."""
    variable = layouts.underlying_variable(variable)
    return list(getattr(variable, "values", None) or [variable]) if hasattr(variable, "_values") else [variable]
