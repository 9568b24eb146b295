"""Codes and exact values."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests import naive
from tfmot_asp.permutation.search import scores as scores_module
from tfmot_asp.permutation.search.fixed_point import CLIPPED, CODE_MAX, FINEST, encode, survey
from tfmot_asp.permutation.search.scores import Scores
from tfmot_asp.permutation.search.value import efficacy, evaluate


@given(
    hnp.arrays(np.float64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=70), elements=st.floats(0, 1e9)),
    st.floats(1e-3, 1e9),
    st.integers(1, 5),
)
def test_codes_are_rounded_scores(matrix, cap, step):
    codes = encode(Scores(matrix).sampled(step), cap, 2)
    rows = matrix[::step]
    assert codes.shape == (matrix.shape[1], -(-len(rows) // 16) * 16)
    expected = np.floor(np.minimum(rows, cap) * (CODE_MAX / cap) + 0.5)
    np.testing.assert_array_equal(codes[:, : len(rows)], expected.T)
    assert not codes[:, len(rows) :].any()
    assert codes.max() <= CODE_MAX


def cap_of(matrix: np.ndarray) -> tuple[float, ...]:
    return survey(Scores(np.asarray(matrix)), 2)


@pytest.mark.parametrize("scale", [1e-300, 1.0, 3e7, 1e300])
def test_ordinary_weights_are_not_clipped(scale):
    rng = np.random.default_rng(0)
    for matrix in (rng.random((50, 60)), rng.normal(size=(50, 60)), rng.laplace(size=(50, 60))):
        assert cap_of(matrix * scale) == (np.abs(matrix * scale).max(),)


def test_zeros_do_not_lower_the_cap():
    matrix = np.zeros((100, 100))
    matrix[3, 4:10] = [1, 2, 3, 4, 5, 6]
    assert cap_of(matrix) == (6.0,)
    assert cap_of(np.zeros((3, 3))) == ()


@given(st.integers(1, 40), st.floats(1, 12))
def test_heavy_tails_keep_typical_scores_visible(seed, power):
    matrix = np.random.default_rng(seed).random((60, 60)) ** -power
    caps = cap_of(matrix)
    typical = np.minimum(matrix, caps[0]).mean() * CODE_MAX / caps[0]
    assert typical >= FINEST / 2  # exponents stand for scores: a factor of two either way
    clipped = np.maximum(matrix - caps[0], 0).sum() / matrix.sum()
    assert len(caps) == 2 or clipped <= 4 * CLIPPED
    assert caps[-1] <= matrix.max()
    if len(caps) == 2:
        assert caps[1] == matrix.max()


@given(
    hnp.arrays(np.float64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=20), elements=st.floats(-1e3, 1e3)),
    st.integers(2, 8).flatmap(lambda n: st.tuples(st.integers(1, n - 1), st.just(n))),
    st.integers(1, 60),
    st.randoms(use_true_random=False),
)
def test_values_are_the_naive_ones(matrix, m_by_n, block, random):
    m, n = m_by_n
    order = list(range(matrix.shape[1]))
    random.shuffle(order)
    whole = scores_module.BLOCK_ELEMENTS
    scores_module.BLOCK_ELEMENTS = block  # several blocks of rows
    try:
        (value,) = evaluate(Scores(matrix), [np.array(order)], n, n - m, 2)
    finally:
        scores_module.BLOCK_ELEMENTS = whole
    assert value.given == pytest.approx(naive.retained(matrix, range(matrix.shape[1]), m, n), rel=1e-12)
    assert value.found == pytest.approx(naive.retained(matrix, order, m, n), rel=1e-12)
    assert value.ideal == pytest.approx(naive.ideal(matrix, m, n), rel=1e-12)


def test_efficacy_is_zero_where_nothing_can_be_gained():
    (value,) = evaluate(Scores(np.ones((3, 8))), [np.arange(8)], 4, 2, 2)
    assert efficacy(value) == 0.0


def test_large_matrices_are_searched_on_evenly_spaced_rows(monkeypatch):
    from tfmot_asp import search
    from tfmot_asp.permutation.search import api, cpu, effort

    seen = []
    real = cpu.search_codes
    monkeypatch.setattr(api.cpu, "search_codes", lambda codes, *rest: seen.append(codes.shape) or real(codes, *rest))
    monkeypatch.setattr(effort, "LARGEST_CODES", 64 * 100)
    # What repeats in every row can be learned from any of them.
    profile = np.random.default_rng(0).permutation(64) + 1.0
    matrix = np.tile(profile, (1000, 1))
    result = search(matrix, effort="fast", device="cpu")
    assert seen == [(64, 112)]
    assert result.efficacy > 95.0
    assert result.retained_after == pytest.approx(naive.retained(matrix, result.permutation, 2, 4), rel=1e-12)
