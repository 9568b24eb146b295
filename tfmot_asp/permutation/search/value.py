"""Exact (float64) value of an order: what is reported, and what decides whether an order is accepted."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tfmot_asp.permutation.search._jit import jit
from tfmot_asp.permutation.search.scores import Scores


class Value(NamedTuple):
    """Retained magnitudes: of the given order, the found one, and each row's largest values, wherever they are."""

    given: float
    found: float
    ideal: float


@jit
def _kept(block, order, n, keep):
    """Sum of what the m by n mask keeps of a float64 (rows, columns) block in the given order."""
    rows, columns = block.shape
    top = np.empty(keep, np.float64)
    total = 0.0
    for r in range(rows):
        in_row = 0.0
        for first in range(0, columns, n):
            for q in range(keep):
                top[q] = 0.0
            for k in range(first, min(first + n, columns)):
                value = block[r, order[k]]
                for q in range(keep):
                    if value > top[q]:
                        top[q], value = value, top[q]
            for q in range(keep):
                in_row += top[q]
        total += in_row
    return total


def evaluate(scores: Scores, orders: list[npt.NDArray[np.int64]], n: int, keep: int, threads: int) -> list[Value]:
    """Reads the matrix once, and values each of ``orders`` beside the given order and the unstructured bound."""
    columns = scores.columns
    every = [np.arange(columns), *orders]
    ideal_count = min(-(-columns // n) * keep, columns)

    def of_block(first: int, block: npt.NDArray[np.float64]) -> list[float]:
        sums = [_kept(block, order, n, keep) for order in every]
        if ideal_count < columns:
            block.partition(columns - ideal_count, axis=1)
        return [*sums, float(block[:, columns - ideal_count :].sum())]

    given, *found, ideal = (math.fsum(sums) for sums in zip(*scores.map(of_block, threads), strict=True))
    return [Value(given, value, ideal) for value in found]


def efficacy(value: Value) -> float:
    """100 * (found - given) / (ideal - given), in per cent; 0 where nothing could be gained.

    J. Pool, C. Yu, "Channel Permutations for N:M Sparsity", NeurIPS 2021.
    """
    room = value.ideal - value.given
    if not math.isfinite(room) or room <= 1e-12 * abs(value.ideal):
        return 0.0
    return 100.0 * (value.found - value.given) / room
