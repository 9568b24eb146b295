"""The assignment solver against brute force and scipy."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import linear_sum_assignment

from tfmot_asp.permutation.search.assignment import COST_BITS, assign


def solve(cost: np.ndarray) -> np.ndarray:
    size = len(cost)
    column_of_row, row_of_column = np.zeros(size, np.int64), np.zeros(size, np.int64)
    assign(np.ascontiguousarray(cost, np.int32), column_of_row, row_of_column, np.zeros((5, size), np.int32))
    np.testing.assert_array_equal(column_of_row[row_of_column], np.arange(size))
    return column_of_row


def total(cost: np.ndarray, columns: np.ndarray) -> int:
    return int(cost[np.arange(len(cost)), columns].astype(np.int64).sum())


square = st.integers(1, 6).flatmap(
    lambda size: st.sampled_from([2, 5, 1000, (1 << COST_BITS) - 1]).flatmap(
        lambda most: hnp.arrays(np.int32, (size, size), elements=st.integers(0, most))
    )
)


@given(square)
def test_least_cost_of_all_permutations(cost):
    best = min(total(cost, np.array(p)) for p in itertools.permutations(range(len(cost))))
    assert total(cost, solve(cost)) == best


@pytest.mark.parametrize("size", [31, 32, 33, 64, 255, 256])
@pytest.mark.parametrize("kind", ["uniform", "ties", "extreme", "low rank", "one column"])
def test_least_cost_at_full_size(size, kind):
    rng = np.random.default_rng(size)
    top = (1 << COST_BITS) - 1
    cost = {
        "uniform": lambda: rng.integers(0, top + 1, (size, size)),
        "ties": lambda: rng.integers(0, 3, (size, size)),
        "extreme": lambda: rng.choice([0, top], (size, size)),
        "low rank": lambda: np.add.outer(rng.integers(0, top // 2, size), rng.integers(0, top // 2, size)),
        "one column": lambda: np.where(np.arange(size) == 3, 0, top) * np.ones((size, 1), np.int64),
    }[kind]().astype(np.int32)
    rows, columns = linear_sum_assignment(cost)
    assert total(cost, solve(cost)) == int(cost[rows, columns].astype(np.int64).sum())
