"""The random schedule that host and devices share: temperatures of the rounds, and which stripes form a block."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tfmot_asp.permutation.search.counter_random import host_draw, host_key
from tfmot_asp.permutation.search.effort import Plan

_Ints = npt.NDArray[np.int64]
_ONE = 1 << 16


def temperatures(plan: Plan, unit: int, epoch: int) -> tuple[_Ints, _Ints]:
    """Temperatures of an epoch's rounds, for the assignment and the pair move, int64 (plan.rounds,) each.

    They fall linearly over the whole search and are zero in its last twentieth. ``unit`` is ``typical_gain``.
    """
    total = plan.epochs * plan.rounds
    number = epoch * plan.rounds + np.arange(plan.rounds, dtype=np.int64)
    cold = max(1, total // 20)
    remaining = np.maximum(0, total - cold - number)
    span = max(1, total - cold)

    def falling(heat: float) -> _Ints:
        hottest = unit * round(heat * _ONE) >> 16
        return np.array([hottest * int(left) // span for left in remaining], np.int64)

    return falling(plan.heat), falling(plan.pair_heat)


def deal(stripes: int, plan: Plan, seed: int, chain: int, epoch: int) -> list[_Ints]:
    """Deals the stripes out to the epoch's blocks at random, each block int64 and sorted.

    Not by ``numpy.random``: its generators may change their streams from one NumPy version to the next.
    """
    if plan.blocks == 1:
        return [np.arange(stripes)]
    random = host_draw(host_key(seed, chain, epoch), stripes)
    shuffled = np.argsort(random, kind="stable")
    return [np.sort(block) for block in np.array_split(shuffled, plan.blocks)]
