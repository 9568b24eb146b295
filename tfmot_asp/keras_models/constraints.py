"""Masks as variable constraints: every Keras optimizer applies a variable's constraint as part of each update.

This is what keeps the pattern after every optimizer step, in ``fit`` and in custom loops alike: with tf_keras' current
and legacy optimizers, and with those of Keras 3.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf
from tensorflow.python.distribute import distribute_lib

from tfmot_asp import masks
from tfmot_asp.keras_models.variables import read, underlying_variable


class MaskConstraint:
    """A variable constraint that keeps masked weights at zero, after the user's own constraint if there is one.

    Attributes:
        mask: bool variable of the weight's shape.
        inner: the constraint that the variable had before, or None.
        averages: gives the moving averages of the weight, which are masked with it.
        applied: called whenever the constraint is, so once per update of the weight (or when that is traced).
    """

    def __init__(
        self,
        mask: Any,
        inner: Callable[[Any], Any] | None,
        averages: Callable[[], Iterator[Any]] | None = None,
        applied: Callable[[], None] | None = None,
    ) -> None:
        self.mask = mask
        self.inner = inner
        self.averages = averages
        self.applied = applied

    def __call__(self, weight: Any) -> Any:
        """Returns the constrained weight as a tensor."""
        if self.applied is not None:
            self.applied()
        if self.inner is not None:
            weight = self.inner(weight)
        mask = self.mask.read_value()
        for average in self.averages() if self.averages is not None else ():
            in_cross_replica_context(
                lambda strategy, new: assign(strategy, average, new),  # noqa: B023 (called at once)
                masks.apply_mask(average.read_value(), mask),
            )
        return masks.apply_mask(tf.convert_to_tensor(weight), mask)


def attach_mask(variable: Any, mask: Any, model: Any = None, applied: Callable[[], None] | None = None) -> None:
    """Makes ``mask`` part of the variable's constraint, in place of an earlier mask if there is one.

    Args:
        variable: a ``tf.Variable``, tf_keras ``AutoCastVariable`` or Keras 3 ``Variable``, also a distributed one.
        mask: bool variable of the same shape, True where a weight is kept.
        model: whose optimizer may keep a moving average of the variable (``use_ema=True``). Keras adds the weight to it
            before it applies constraints, and writes it over the weight when ``fit`` ends, so it is masked as well.
        applied: called with each update of the variable.
    """
    averages = None if model is None else _AveragesOf(model, variable)
    for holder in _holders(variable):
        inner = holder.constraint
        inner = inner.inner if isinstance(inner, MaskConstraint) else inner
        holder._constraint = MaskConstraint(mask, inner, averages, applied)


def detach_mask(variable: Any, mask: Any = None) -> None:
    """Gives the variable back the constraint that it had before ``attach_mask``.

    Args:
        variable: as for ``attach_mask``.
        mask: take this mask off and leave another one that has replaced it; None takes off any.
    """
    for holder in _holders(variable):
        constraint = holder.constraint
        if isinstance(constraint, MaskConstraint) and (mask is None or constraint.mask is mask):
            holder._constraint = constraint.inner


def mask_of(variable: Any) -> Any:
    """The mask variable that is part of the variable's constraint, or None."""
    constraint = getattr(_holders(variable)[0], "constraint", None)
    return constraint.mask if isinstance(constraint, MaskConstraint) else None


def is_masked(variable: Any) -> bool:
    """Whether the variable has a mask that holds something back, unlike those of pruning that has not begun yet."""
    mask = mask_of(variable)
    return mask is not None and not read(mask).all()


_ON_PARAMETER_SERVERS = frozenset({"CachingVariable", "AggregatingVariable"})


def _holders(variable: Any) -> list[Any]:
    """The objects whose ``_constraint`` the optimizers read.

    That is Keras 3's own variable; for tf_keras the ``tf.Variable`` inside, or each replica's of a distributed one.
    Raises ValueError for one that is in several pieces.
    """
    plain = underlying_variable(variable)
    if type(plain).__name__ == "ShardedVariable":
        raise ValueError(
            f"{plain.name!r} is split over parameter servers, and a mask is for a variable as a whole: make the "
            "ParameterServerStrategy without a variable_partitioner, then the model in its scope"
        )
    if plain is not variable and "_constraint" in vars(variable):  # tf_keras' AutoCastVariable only forwards it
        return [variable]
    while type(plain).__name__ in _ON_PARAMETER_SERVERS:  # these forward it too
        plain = plain._v
    return list(getattr(plain, "values", None) or [plain]) if hasattr(plain, "_values") else [plain]


def in_cross_replica_context(fn: Callable[..., Any], *args: Any) -> Any:
    """Calls ``fn(strategy, *args)`` once for all replicas: one replica alone may not assign variables of all."""
    replica = tf.distribute.get_replica_context()
    if replica is None:
        return fn(tf.distribute.get_strategy(), *args)
    return replica.merge_call(fn, args=args)


def assign(strategy: Any, variable: Any, value: Any) -> Any:
    """Assigns a variable in cross-replica context: on all replicas, or on the one that is being updated there."""
    if distribute_lib.get_update_replica_id() is not None:  # legacy optimizers update one replica after another
        return variable.assign(value)
    return strategy.extended.update(variable, lambda component, new: component.assign(new), args=(value,))


class _AveragesOf:
    """The moving averages that a model's optimizer keeps of one of its variables, looked up when they are needed.

    The model may be compiled after its masks were attached, and its optimizer makes the averages when it is built.
    """

    def __init__(self, model: Any, variable: Any) -> None:
        self._model = weakref.ref(model)
        self._variable = variable

    def __call__(self) -> Iterator[Any]:
        optimizer = getattr(self._model(), "optimizer", None)
        while optimizer is not None:
            averages = getattr(optimizer, "_model_variables_moving_average", None) or ()
            index = self._index(optimizer) if averages else None
            if index is not None:
                yield underlying_variable(averages[index])
            optimizer = getattr(optimizer, "inner_optimizer", None)

    def _index(self, optimizer: Any) -> int | None:
        if hasattr(optimizer, "_index_dict"):  # tf_keras
            return optimizer._index_dict.get(optimizer._var_key(underlying_variable(self._variable)))
        tracked = getattr(optimizer, "_trainable_variables", ())
        return next((i for i, other in enumerate(tracked) if other is self._variable), None)
