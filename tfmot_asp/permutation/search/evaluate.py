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


def evaluate(scores: Scores, orders: list[npt.NDArray[np.int64]], n: int, keep: int) -> list[Value]:
    """Reads the matrix once, and values each of ``orders`` beside the given order and the unstructured bound."""
    columns = scores.columns
    given_order = np.arange(columns)
    ideal_count = min(-(-columns // n) * keep, columns)
    given, ideal = [], []
    found: list[list[float]] = [[] for _ in orders]
    for _, block in scores.blocks():
        given.append(_kept(block, given_order, n, keep))
        for sums, order in zip(found, orders, strict=True):
            sums.append(_kept(block, order, n, keep))
        if ideal_count < columns:
            block.partition(columns - ideal_count, axis=1)
        ideal.append(float(block[:, columns - ideal_count :].sum()))
    return [Value(math.fsum(given), math.fsum(sums), math.fsum(ideal)) for sums in found]


def efficacy(value: Value) -> float:
    """100 * (found - given) / (ideal - given), in per cent; 0 where nothing could be gained.

    J. Pool, C. Yu, "Channel Permutations for N:M Sparsity", NeurIPS 2021.
    """
    room = value.ideal - value.given
    if not math.isfinite(room) or room <= 1e-12 * abs(value.ideal):
        return 0.0
    return 100.0 * (value.found - value.given) / room
