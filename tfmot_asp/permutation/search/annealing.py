"""The random schedule that host and devices share: temperatures of the rounds, and which stripes form a block."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tfmot_asp.permutation.search.counter_random import host_draw, host_key
from tfmot_asp.permutation.search.effort import Workload

SAMPLE = 256

_Ints = npt.NDArray[np.int64]
HEAT = round(0.11 * 2**16)
"""Initial temperature in units of ``typical_gain`` / 2**16; by measurement (docs/search.md), and flat around it."""


def temperatures(work: Workload, unit: int, epoch: int) -> _Ints:
    """Temperatures of an epoch's rounds, int64 (work.rounds,).

    They fall linearly over the whole search and are zero in its last twentieth. ``unit`` is ``typical_gain``.
    """
    total = work.epochs * work.rounds
    cold = max(1, total // 20)
    hottest = unit * HEAT >> 16
    number = range(epoch * work.rounds, (epoch + 1) * work.rounds)
    return np.array([hottest * max(0, total - cold - k) // max(1, total - cold) for k in number], np.int64)


def deal(stripes: int, work: Workload, seed: int, chain: int, epoch: int) -> list[_Ints]:
    """Deals the stripes out to the epoch's blocks at random, each block int64 and sorted.

    Not by ``numpy.random``: its generators may change their streams from one NumPy version to the next.
    """
    if work.blocks == 1:
        return [np.arange(stripes)]
    random = host_draw(host_key(seed, chain, epoch), stripes)
    shuffled = np.argsort(random, kind="stable")
    return [np.sort(block) for block in np.array_split(shuffled, work.blocks)]


def sample_positions(columns: int, n: int) -> _Ints:
    """First positions of up to 256 evenly spaced stripes, int64: the sample that ``typical_gain`` is taken of."""
    stripes = -(-columns // n)
    size = min(SAMPLE, stripes)
    return np.arange(size) * stripes // size * n
