"""The random schedule that host and devices share: temperatures of the rounds, and which stripes form a block."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tfmot_asp.permutation.search.counter_random import host_draw, host_key
from tfmot_asp.permutation.search.effort import Workload

SAMPLE = 256
DEALT = 1 << 20
"""Stripes that are dealt out at a time, over all epochs of one chain."""

_Ints = npt.NDArray[np.int64]
HEAT = round(0.11 * 2**16)
"""Initial temperature in units of ``typical_gain`` / 2**16; by measurement (docs/search.md), and flat around it."""


def hottest(unit: int) -> int:
    """The temperature of the first round. ``unit`` is ``typical_gain``."""
    return unit * HEAT >> 16


def temperatures(work: Workload, unit: int, epoch: int) -> _Ints:
    """Temperatures of an epoch's rounds, int64 (work.rounds,).

    They fall linearly over the whole search and are zero in its last twentieth. ``unit`` is ``typical_gain``.
    """
    total = work.epochs * work.rounds
    cold = max(1, total // 20)
    number = range(epoch * work.rounds, (epoch + 1) * work.rounds)
    return np.array([hottest(unit) * max(0, total - cold - k) // max(1, total - cold) for k in number], np.int64)


def bounds(stripes: int, work: Workload) -> _Ints:
    """Where the blocks of an epoch begin and end among its stripes, int64 (blocks + 1,): they differ by one at most."""
    size, longer = divmod(stripes, work.blocks)
    return np.cumsum([0, *[size + 1] * longer, *[size] * (work.blocks - longer)])


def deals_at_once(stripes: int, work: Workload) -> int:
    """How many epochs to deal out at a time, so that it is neither many calls nor much memory."""
    return min(work.epochs, max(1, DEALT // stripes))


def deal(stripes: int, work: Workload, seed: int, chain: int, epochs: Sequence[int]) -> _Ints:
    """Deals the stripes out to the blocks of epochs at random: int64 (epochs, stripes), each block sorted.

    Not by ``numpy.random``: its generators may change their streams from one NumPy version to the next.
    """
    if work.blocks == 1:
        return np.tile(np.arange(stripes), (len(epochs), 1))
    keys = host_key(seed, chain, np.asarray(epochs))
    shuffled = np.argsort(host_draw(keys[:, None], stripes), axis=1, kind="stable")
    edges = bounds(stripes, work)
    for first, last in itertools.pairwise(edges):
        shuffled[:, first:last].sort(axis=1)
    return shuffled


def sample_positions(columns: int, n: int) -> _Ints:
    """First positions of up to 256 evenly spaced stripes, int64: the sample that ``typical_gain`` is taken of."""
    stripes = -(-columns // n)
    size = min(SAMPLE, stripes)
    return np.arange(size) * stripes // size * n
