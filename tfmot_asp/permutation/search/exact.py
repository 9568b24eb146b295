"""The optimum for a few columns: dynamic programming over the sets of columns that are already in stripes.

Every set of n columns is valued once, as a stripe. A set of columns filled stripe by stripe is extended by every stripe
that holds its lowest missing column (so that no two orders of the same stripes are both tried): 1820 stripes and 81,000
extensions for 16 columns and n = 4, in place of 2.6 million partitions.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from tfmot_asp.permutation.search._jit import jit
from tfmot_asp.permutation.search.scores import Scores

MOST_COLUMNS = {"fast": 12, "balanced": 16, "thorough": 20}
MOST_WORK = 4e8
"""Stripe values to compute, in operations, above which the search anneals instead."""


def is_small(rows: int, columns: int, n: int, effort: str) -> bool:
    """Whether a matrix of that shape is solved exactly."""
    return columns <= MOST_COLUMNS[effort] and math.comb(columns, min(n, columns)) * rows * n * 2.0 <= MOST_WORK


def solve(scores: Scores, n: int, keep: int) -> npt.NDArray[np.int64]:
    """Returns an order, int64 (columns,), that keeps the most of any.

    Scores become integers of as many bits as their sum leaves room for (at least 37 for a million rows), so that equal
    input gives equal output on every machine.
    """
    rows, columns = scores.rows, scores.columns
    largest = max(float(block.max()) for _, block in scores.blocks())
    bits = min(52, 62 - (rows * columns).bit_length())
    scale = 2.0**bits / largest if largest > 0.0 else 0.0
    values = np.zeros(1 << columns, np.int64)
    sizes = {n, columns % n} - {0}
    if 0.0 < scale < math.inf:
        for _, block in scores.blocks():
            integers = np.floor(block * scale + 0.5).astype(np.int64)
            for size in sorted(sizes):
                if size <= columns:
                    _add_stripe_values(integers, size, keep, values)
    stripes = _partition(values, columns, n)
    return np.array([c for stripe in stripes for c in range(columns) if int(stripe) >> c & 1], np.int64)


@jit
def _next_subset(subset):
    """The next larger integer with as many bits set (Gosper's hack)."""
    lowest = subset & -subset
    ripple = subset + lowest
    return ripple | (((subset ^ ripple) >> 2) // lowest)


@jit
def _add_stripe_values(block, size, keep, values):
    """Adds to values[subset] what a stripe of these ``size`` columns keeps of an int64 (rows, columns) block."""
    rows, columns = block.shape
    top = np.empty(keep, np.int64)
    member = np.empty(size, np.int64)
    subset = (1 << size) - 1
    while subset < 1 << columns:
        k = 0
        for c in range(columns):
            if subset >> c & 1:
                member[k] = c
                k += 1
        total = np.int64(0)
        for r in range(rows):
            for q in range(keep):
                top[q] = 0
            for k in range(size):
                value = block[r, member[k]]
                for q in range(keep):
                    if value > top[q]:
                        top[q], value = value, top[q]
            for q in range(keep):
                total += top[q]
        values[subset] += total
        subset = _next_subset(subset)


@jit
def _partition(values, columns, n):
    """The best partition of the columns into stripes, as bit masks; a stripe of fewer than n columns comes last."""
    full = (1 << columns) - 1
    best = np.full(1 << columns, -1, np.int64)
    last = np.zeros(1 << columns, np.int64)
    narrow = columns % n
    if narrow:
        subset = (1 << narrow) - 1
        while subset <= full:
            best[subset] = values[subset]
            last[subset] = subset
            subset = _next_subset(subset)
    else:
        best[0] = 0
    for filled in range(full):
        if best[filled] < 0:
            continue
        missing = full & ~filled
        lowest = missing & -missing
        # Subsets of the other missing columns, n - 1 at a time, in a compressed numbering: bit k is the k-th of them.
        others = missing ^ lowest
        count = 0
        rest = others
        while rest:
            rest &= rest - 1
            count += 1
        chosen = (1 << (n - 1)) - 1
        while chosen < 1 << count:
            stripe = lowest
            rest = others
            bits = chosen
            while bits:
                bit = rest & -rest
                if bits & 1:
                    stripe |= bit
                rest ^= bit
                bits >>= 1
            value = best[filled] + values[stripe]
            if value > best[filled | stripe]:
                best[filled | stripe] = value
                last[filled | stripe] = stripe
            chosen = _next_subset(chosen)
    stripes = np.empty((columns + n - 1) // n, np.int64)
    filled = full
    count = 0
    while filled:
        stripes[count] = last[filled]
        filled ^= last[filled]
        count += 1
    return stripes[:count]
