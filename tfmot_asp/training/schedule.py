"""Pruning schedules for m by n patterns."""

from __future__ import annotations

from typing import Any

from tensorflow_model_optimization.python.core.sparsity.keras import pruning_schedule

# The sparsity of a schedule is a decimal fraction and m / n often is none: 1/3 is written 0.333.
SPARSITY_TOLERANCE = 1e-3


def default_schedule(m_by_n: tuple[int, int] | None) -> Any:
    """One shot at the first training step for an m by n pattern; tfmot's default otherwise."""
    if m_by_n is None:
        return pruning_schedule.ConstantSparsity(0.5, 0)
    m, n = m_by_n
    return pruning_schedule.ConstantSparsity(m / n, begin_step=1, end_step=1, frequency=1)


def check_schedule(schedule: Any, m_by_n: tuple[int, int]) -> None:
    """Checks that a schedule can bring a kernel to the pattern.

    Args:
        schedule: a tfmot ``PruningSchedule`` or None.
        m_by_n: the pattern.

    Raises:
        ValueError: if it is no schedule, or one of tfmot's that ends at less than m / n.
    """
    if schedule is None:
        return
    if not isinstance(schedule, pruning_schedule.PruningSchedule):
        raise ValueError(f"pruning_schedule must be a tfmot PruningSchedule or None, got {schedule!r}")
    final = getattr(schedule, "final_sparsity", getattr(schedule, "target_sparsity", None))
    wanted = m_by_n[0] / m_by_n[1]
    if final is not None and final < wanted - SPARSITY_TOLERANCE:
        raise ValueError(
            f"{type(schedule).__name__} ends at a sparsity of {final:g}, but sparsity_m_by_n={tuple(m_by_n)} is a "
            f"sparsity of {wanted:g}. Give a schedule that reaches it, or leave pruning_schedule out to prune at once."
        )
