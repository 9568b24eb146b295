"""Pruning schedules for m by n patterns: how far one goes, and what is due at a step."""

from __future__ import annotations

import warnings
from typing import Any

import tensorflow as tf
from tensorflow_model_optimization.python.core.sparsity.keras import pruning_schedule

from tfmot_asp.pattern import Pattern
from tfmot_asp.types import Schedule

# The sparsity of a schedule is a decimal fraction and a pattern's often is none: 1/3 is written 0.333.
SPARSITY_TOLERANCE = 1e-3


def default_schedule(pattern: Pattern | None) -> Schedule:
    """One shot at the first training step for an m by n pattern; tfmot's default otherwise."""
    if pattern is None:
        return pruning_schedule.ConstantSparsity(0.5, 0)
    return pruning_schedule.ConstantSparsity(pattern.sparsity, begin_step=1, end_step=1, frequency=1)


def check_schedule(schedule: Schedule | None, pattern: Pattern) -> None:
    """Checks that a schedule can bring a kernel to the pattern.

    Args:
        schedule: a tfmot ``PruningSchedule`` or None.
        pattern: what it is for.

    Raises:
        ValueError: if it is no schedule, or one of tfmot's that ends at less than the pattern's sparsity.
    """
    if schedule is None:
        return
    if not isinstance(schedule, pruning_schedule.PruningSchedule):
        raise ValueError(f"pruning_schedule must be a tfmot PruningSchedule or None, got {schedule!r}")
    final = _stated_end(schedule)
    if final is not None and final < pattern.sparsity - SPARSITY_TOLERANCE:
        raise ValueError(
            f"{type(schedule).__name__} ends at a sparsity of {final:g}, but {pattern} is a sparsity of "
            f"{pattern.sparsity:g}. Give a schedule that reaches it, or leave pruning_schedule out to prune at once."
        )


def warn_of_excess(schedule: Schedule | None, pattern: Pattern, stacklevel: int) -> None:
    """Says so, with both figures, if a schedule asks for more zeros than the pattern has.

    Args:
        schedule: one that ``check_schedule`` has passed.
        pattern: what it is for.
        stacklevel: of the warning.
    """
    final = None if schedule is None else _stated_end(schedule)
    end = getattr(schedule, "end_step", None)
    if schedule is not None and final is None and end is not None and end >= 0:
        final = float(schedule(tf.constant(end, tf.int64))[1])
    if final is not None and final > pattern.sparsity + SPARSITY_TOLERANCE:
        warnings.warn(
            f"{type(schedule).__name__} asks for a sparsity of {final:g}, but {pattern} is a sparsity of "
            f"{pattern.sparsity:g}, and no kernel gets more: training ends there, with {1 - pattern.sparsity:.0%} of "
            "each pruned kernel kept. For more zeros, without sparse Tensor Cores, give sparsity_m_by_n=None",
            UserWarning,
            stacklevel=stacklevel + 1,
        )


class Due:
    """What a schedule has for each step.

    Masks change at the first step, whenever the schedule says so, and, whatever its frequency, when it ends.

    Args:
        schedule: tfmot's, constant or not.
        pattern: that it leads to.
    """

    def __init__(self, schedule: Schedule, pattern: Pattern) -> None:
        self._schedule = schedule
        self._pattern = pattern
        self._once = isinstance(schedule, pruning_schedule.ConstantSparsity)
        self._first = max(1, int(getattr(schedule, "begin_step", 1)))
        end = getattr(schedule, "end_step", None)
        self._end = None if end is None or end < 0 or _stated_end(schedule) is None else max(1, int(end))

    def at(self, step: Any) -> Any:
        """Whether masks are to change at a step, a scalar tensor."""
        due = tf.equal(step, self._first)
        if self._once:
            return due
        ends = self._is_whole(step)
        ends = tf.equal(step, self._end) if self._end is not None else ends & ~self._is_whole(step - 1)
        return due | self._schedule(step)[0] | ends

    def fraction(self, step: Any) -> Any:
        """The share of the stripes that are masked at a step, in [0, 1]; None for all of them, at any step."""
        if self._once:
            return None
        share = tf.cast(self._schedule(step)[1], tf.float64) / self._pattern.sparsity
        return tf.where(self._is_whole(step), tf.ones_like(share), share)

    def _is_whole(self, step: Any) -> Any:
        # A schedule that ends at 0.333 for 2:3 means the whole pattern.
        whole = self._schedule(step)[1] >= self._pattern.sparsity - SPARSITY_TOLERANCE
        return whole if self._end is None else whole | (step >= self._end)


def _stated_end(schedule: Schedule) -> float | None:
    """The sparsity that a schedule ends at, where it says so as tfmot's do."""
    return getattr(schedule, "final_sparsity", getattr(schedule, "target_sparsity", None))
