"""Pruning schedules for m by n patterns."""

from __future__ import annotations

from typing import Any

from tensorflow_model_optimization.python.core.sparsity.keras import pruning_schedule

from tfmot_asp.pattern import Pattern

# The sparsity of a schedule is a decimal fraction and a pattern's often is none: 1/3 is written 0.333.
SPARSITY_TOLERANCE = 1e-3


def default_schedule(pattern: Pattern | None) -> Any:
    """One shot at the first training step for an m by n pattern; tfmot's default otherwise."""
    if pattern is None:
        return pruning_schedule.ConstantSparsity(0.5, 0)
    return pruning_schedule.ConstantSparsity(pattern.sparsity, begin_step=1, end_step=1, frequency=1)


def check_schedule(schedule: Any, pattern: Pattern) -> None:
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
    final = getattr(schedule, "final_sparsity", getattr(schedule, "target_sparsity", None))
    if final is not None and final < pattern.sparsity - SPARSITY_TOLERANCE:
        raise ValueError(
            f"{type(schedule).__name__} ends at a sparsity of {final:g}, but {pattern} is a sparsity of "
            f"{pattern.sparsity:g}. Give a schedule that reaches it, or leave pruning_schedule out to prune at once."
        )
