"""Few columns: the optimum, against trying all orders."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests import naive
from tfmot_asp import search
from tfmot_asp.permutation.search import cpu, exact
from tfmot_asp.permutation.search.effort import make_workload
from tfmot_asp.permutation.search.fixed_point import encode, survey
from tfmot_asp.permutation.search.scores import Scores


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 8)), elements=st.floats(-100, 100, width=32)),
    st.integers(2, 8).flatmap(lambda n: st.tuples(st.integers(1, n - 1), st.just(n))),
    st.sampled_from(["fast", "balanced", "thorough"]),
)
@settings(max_examples=60)
def test_optimum_of_up_to_eight_columns(matrix, m_by_n, effort):
    result = search(matrix, m_by_n=m_by_n, effort=effort, device="cpu")
    assert result.retained_after == pytest.approx(naive.optimum(matrix, *m_by_n), rel=1e-9, abs=1e-30)


@pytest.mark.parametrize("columns", [8, 12])
@pytest.mark.parametrize("seed", range(5))
def test_thorough_finds_the_optimum_of_eight_and_twelve_columns(columns, seed):
    np.random.seed(seed)
    matrix = np.random.rand(32, columns)
    result = search(matrix, effort="thorough", device="cpu")
    assert result.retained_after == pytest.approx(naive.optimum(matrix, 2, 4), rel=1e-12)


@pytest.mark.parametrize(("m_by_n", "columns"), [((1, 2), 9), ((1, 3), 10), ((4, 8), 11), ((2, 5), 12)])
def test_optimum_with_an_incomplete_stripe(m_by_n, columns):
    matrix = np.random.default_rng(columns).normal(size=(5, columns))
    result = search(matrix, m_by_n=m_by_n, effort="thorough", device="cpu")
    assert result.retained_after == pytest.approx(naive.optimum(matrix, *m_by_n), rel=1e-12)


def test_annealing_finds_the_optimum_of_sixteen_columns():
    # Two independent ways to the same 25 numbers: dynamic programming (what `search` uses for so few columns, checked
    # above by brute force) and annealing (what it uses for more), which is not told the answer.
    work = dataclasses.replace(make_workload(16, 32, 4, "thorough"), chains=6)  # a quarter of the chains will do
    found = 0
    for seed in range(25):
        np.random.seed(seed)
        matrix = np.random.rand(32, 16)
        best = search(matrix, effort="thorough", device="cpu").retained_after
        scores = Scores(matrix)
        codes = encode(scores, survey(scores, 2)[0], 2)
        orders, _ = cpu.search_codes(codes, 4, 2, work, 0, 2, lambda fraction: False)
        reached = max(naive.retained(matrix, order, 2, 4) for order in orders)
        assert reached <= best * (1 + 1e-12)
        found += reached >= best * (1 - 1e-12)
    assert found >= 24


def test_exact_search_is_bounded():
    assert exact.is_small(32, 16, 4, "balanced")
    assert not exact.is_small(32, 17, 4, "balanced")
    assert exact.is_small(32, 20, 4, "thorough")
    assert not exact.is_small(10**8, 16, 4, "thorough")
    assert exact.is_small(8, 3, 16, "fast")
