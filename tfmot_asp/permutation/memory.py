"""What a permutation will need, from its plan alone."""

from __future__ import annotations

import math

from tfmot_asp.permutation.groups import Group, PlannedKernel
from tfmot_asp.permutation.plan import ModelPlan
from tfmot_asp.permutation.search.effort import make_workload, searched_rows

_WINDOWS = 1 << 26  # rows, masks and places that are made a window at a time


def memory_needed(plan: ModelPlan, effort: str = "balanced") -> int:
    """Bytes that `permute` will need at most beside the model, for one of three things that it does in turn.

    The search of the largest group, with its codes and thresholds; the proof, with a copy of the weights; writing, with
    a copy of the largest weight.
    """
    kernels = plan.plan.kernels
    search = max((_search(group, kernels, plan.pattern.block, effort) for group in plan.plan.groups), default=0)
    woven = {kernel for group in plan.plan.groups if group.woven for kernel in group.kernels}
    weaving = sum(4 * math.prod(kernels[kernel].shape) for kernel in woven)
    sizes = [int(v.dtype.size) * math.prod(int(n) for n in v.shape) for v in plan.graph.variables]
    return max(search, weaving, sum(sizes)) + _WINDOWS


def _search(group: Group, kernels: tuple[PlannedKernel, ...], n: int, effort: str) -> int:
    if not group.parts:
        return 0
    columns = len(group.columns)
    searched = searched_rows(sum(kernels[part.kernel].rows for part in group.parts), columns)
    return 2 * columns * searched * (1 + make_workload(columns, searched, n, effort).chains)
