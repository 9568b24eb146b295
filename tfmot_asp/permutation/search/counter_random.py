"""Random numbers that are a pure function of (key, counter): the same on every device and for every number of threads.

The mixing function is the finalizer of splitmix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number
generators", OOPSLA 2014). Nothing carries state from one draw to the next, so work may be split in any way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tfmot_asp.permutation.search._jit import jit

TABLE_BITS = 12
FRACTION_BITS = 16
"""Gumbel noise is tabulated in units of 2**-16."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)
_S27, _S30, _S31, _S33, _S52 = np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(33), np.uint64(64 - TABLE_BITS)


@jit
def draw(key, counter):
    """64 random bits (uint64) for a uint64 key and a non-negative integer counter."""
    z = np.uint64(key) + (np.uint64(counter) + np.uint64(1)) * _GOLDEN
    z = (z ^ (z >> _S30)) * _MIX1
    z = (z ^ (z >> _S27)) * _MIX2
    return z ^ (z >> _S31)


@jit
def below(bits, bound):
    """An integer in 0 .. bound - 1 from 64 random bits; bound below 2**31."""
    return np.int64(bits >> _S33) % np.int64(bound)


@jit
def gumbel(bits, table, temperature):
    """Gumbel noise of the given temperature, an integer in the temperature's unit."""
    return (table[bits >> _S52] * np.int64(temperature)) >> np.int64(FRACTION_BITS)


def gumbel_table() -> npt.NDArray[np.int64]:
    """Quantiles of the standard Gumbel distribution in fixed point, shape (2**TABLE_BITS,).

    Adding T * Gumbel noise to every candidate's gain and taking the largest picks candidate k with a probability
    proportional to exp(gain_k / T): heat-bath annealing with a maximum in place of exponentials and divisions.
    """
    u = (np.arange(1 << TABLE_BITS) + 0.5) / (1 << TABLE_BITS)
    return np.rint(-np.log(-np.log(u)) * (1 << FRACTION_BITS)).astype(np.int64)


def host_draw(key: Any, count: int) -> npt.NDArray[np.uint64]:
    """``draw(key, 0)`` .. ``draw(key, count - 1)`` with NumPy, uint64 (count,); of keys (..., 1) a row for each."""
    z = key + (np.arange(count, dtype=np.uint64) + np.uint64(1)) * _GOLDEN
    z = (z ^ (z >> _S30)) * _MIX1
    z = (z ^ (z >> _S27)) * _MIX2
    return z ^ (z >> _S31)


def host_key(*parts: Any) -> Any:
    """A uint64 key from a few integers (seed, chain, epoch, ...), or from arrays of them that broadcast."""
    key = np.zeros((), np.uint64)
    for part in parts:
        bits = (
            np.uint64(part & (1 << 64) - 1) if isinstance(part, int) else np.asarray(part, np.int64).astype(np.uint64)
        )
        key = host_draw((key ^ bits)[..., None], 1)[..., 0]
    return key[()]


def host_keys(seed: int, chain: int, epochs: Sequence[int], blocks: int) -> npt.NDArray[np.uint64]:
    """The key of each block of some epochs, uint64 (epochs, blocks)."""
    return host_key(seed, chain, np.asarray(epochs)[:, None], np.arange(blocks))
