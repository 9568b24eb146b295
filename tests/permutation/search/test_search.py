"""What `search` promises of its result, for any matrix, pattern, dtype and option."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests import naive
from tfmot_asp import SearchResult, search

PATTERNS = [(1, 2), (1, 4), (2, 4), (3, 4), (4, 8), (6, 8), (1, 3), (2, 5), (8, 16), (15, 16), (1, 16)]

patterns = st.one_of(
    st.sampled_from(PATTERNS), st.integers(2, 16).flatmap(lambda n: st.tuples(st.integers(1, n - 1), st.just(n)))
)
finite = st.floats(-1e6, 1e6, width=32)
matrices = st.one_of(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=24), elements=finite),
    # few distinct values: ties, zero rows, equal columns
    hnp.arrays(np.int8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=24), elements=st.integers(-2, 2)),
)


def check(result: SearchResult, matrix: np.ndarray, m_by_n: tuple[int, int]) -> None:
    """Everything that is true of any result."""
    columns = matrix.shape[1]
    given_order = range(columns)
    assert sorted(result.permutation) == list(given_order)
    before = naive.retained(matrix, given_order, *m_by_n)
    after = naive.retained(matrix, result.permutation, *m_by_n)
    assert result.retained_before == pytest.approx(before, rel=1e-12)
    assert result.retained_after == pytest.approx(after, rel=1e-12)
    assert result.retained_after >= result.retained_before
    room = naive.ideal(matrix, *m_by_n) - before
    if room > 1e-9 * before:
        assert result.efficacy == pytest.approx(100 * (after - before) / room, rel=1e-6, abs=1e-6)
    assert -1e-9 <= result.efficacy <= 100 + 1e-9


@given(matrices, patterns, st.sampled_from(["fast", "balanced"]), st.integers(-(2**70), 2**70))
@settings(max_examples=60)
def test_result_is_an_order_never_worse_and_honestly_valued(matrix, m_by_n, effort, seed):
    check(search(matrix, m_by_n=m_by_n, effort=effort, seed=seed, device="cpu"), matrix, m_by_n)


@pytest.mark.parametrize("m_by_n", PATTERNS)
@pytest.mark.parametrize("columns", [17, 34, 64, 75])
def test_every_pattern_gains_on_random_weights(m_by_n, columns):
    matrix = np.random.default_rng(columns).normal(size=(20, columns))
    result = search(matrix, m_by_n=m_by_n, effort="fast", device="cpu")
    check(result, matrix, m_by_n)
    if m_by_n[1] <= columns / 2:
        assert result.retained_after > result.retained_before


@pytest.mark.parametrize("shape", [(40, 52), (9, 129), (24, 1100), (1, 64)])
@pytest.mark.parametrize("effort", ["fast", "balanced"])
def test_threads_and_runs_do_not_change_the_result(shape, effort):
    matrix = np.random.default_rng(0).normal(size=shape)
    orders = [search(matrix, effort=effort, threads=t, device="cpu").permutation for t in (1, 2, 3, 1)]
    for order in orders[1:]:
        np.testing.assert_array_equal(order, orders[0])


@pytest.mark.parametrize(
    ("shape", "options", "expected"),
    [
        ((32, 64), {"effort": "fast"}, "c7025234612fc3bb"),
        ((48, 80), {"m_by_n": (4, 8)}, "6d435f4970c7bf44"),
        ((16, 1100), {"effort": "fast", "seed": 3}, "9168d100346d4716"),
        ((20, 12), {}, "660733df67e4b4b3"),
    ],
)
def test_result_is_the_same_on_every_machine(shape, options, expected):
    # Pinned: a change here changes everybody's permutations, and belongs in the changelog.
    np.random.seed(1)
    order = search(np.random.rand(*shape), device="cpu", **options).permutation
    assert hashlib.sha256(order.astype("<i8").tobytes()).hexdigest()[:16] == expected


def test_seed_changes_the_search():
    matrix = np.random.default_rng(0).random((32, 64))
    a, b = (search(matrix, effort="fast", seed=seed, device="cpu").permutation for seed in (0, 1))
    assert (a != b).any()


@pytest.mark.parametrize("effort", ["fast", "balanced", "thorough"])
def test_more_effort_is_no_worse_than_the_floor(effort):
    # Floors well below what is reached (benchmarks/results), far above stripe-pair greedy search (26.5).
    np.random.seed(1)
    floor = {"fast": 28.0, "balanced": 29.2, "thorough": 30.3}[effort]
    if effort != "thorough":
        assert search(np.random.rand(256, 256), effort=effort, device="cpu").efficacy >= floor
    np.random.seed(1)
    floor = {"fast": 35.5, "balanced": 38.0, "thorough": 39.2}[effort]
    assert search(np.random.rand(128, 64), effort=effort, device="cpu").efficacy >= floor


def test_structure_is_found():
    # Given order: four large columns side by side, so half of them are lost. Perfect order: at most two to a stripe.
    matrix = np.tile(np.array([100.0] * 4 + [1.0] * 12 + [0.0] * 16), (8, 1))
    result = search(matrix, effort="fast", device="cpu")
    assert result.efficacy == pytest.approx(100.0)


@pytest.mark.parametrize(
    "dtype", ["float16", "float32", "float64", "bfloat16", "int8", "uint8", "int32", "int64", ">f4"]
)
def test_dtypes_that_hold_the_same_numbers_give_the_same_result(dtype):
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes").bfloat16
    numbers = np.random.default_rng(3).integers(0, 100, (24, 40))
    expected = search(numbers.astype(np.float64), effort="fast", device="cpu")
    result = search(numbers.astype(dtype), effort="fast", device="cpu")
    np.testing.assert_array_equal(result.permutation, expected.permutation)
    assert result.retained_after == expected.retained_after


def test_strides_do_not_matter_and_the_matrix_is_left_alone():
    big = np.random.default_rng(4).normal(size=(40, 96)).astype(np.float32)
    view = big[::-2, ::3].T
    before = big.copy()
    expected = search(np.ascontiguousarray(view), effort="fast", device="cpu")
    np.testing.assert_array_equal(search(view, effort="fast", device="cpu").permutation, expected.permutation)
    np.testing.assert_array_equal(big, before)
    big.flags.writeable = False
    search(big, effort="fast", device="cpu")


@pytest.mark.parametrize("value", [0.0, 1.0, -2.5])
def test_constant_matrix_keeps_the_given_order(value):
    result = search(np.full((5, 32), value), device="cpu")
    np.testing.assert_array_equal(result.permutation, np.arange(32))
    assert result.efficacy == 0.0


def test_one_stripe_keeps_the_given_order():
    matrix = np.random.default_rng(5).normal(size=(6, 4))
    np.testing.assert_array_equal(search(matrix, device="cpu").permutation, np.arange(4))
    np.testing.assert_array_equal(search(matrix[:, :3], device="cpu").permutation, np.arange(3))


def test_weights_are_factors_of_the_scores():
    rng = np.random.default_rng(6)
    matrix, rows, columns = rng.normal(size=(30, 44)), rng.random(30), rng.random(44)
    weighted = np.abs(matrix) * rows[:, None] * columns
    expected = search(weighted, effort="fast", device="cpu")
    result = search(matrix, row_weights=rows, column_weights=columns, effort="fast", device="cpu")
    np.testing.assert_array_equal(result.permutation, expected.permutation)
    assert result.retained_after == pytest.approx(expected.retained_after, rel=1e-12)
    assert (result.permutation != search(matrix, effort="fast", device="cpu").permutation).any()


def test_rows_of_weight_zero_do_not_count():
    rng = np.random.default_rng(7)
    matrix, noise = rng.normal(size=(12, 24)), rng.normal(size=(12, 24))
    weights = np.repeat([1.0, 0.0], 12)
    both = search(np.concatenate([matrix, noise]), row_weights=weights, effort="fast", device="cpu")
    assert both.retained_after == pytest.approx(naive.retained(matrix, both.permutation, 2, 4), rel=1e-12)


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e30, 1e300, 2.0**-1074])
def test_extreme_scales(scale):
    numbers = np.random.default_rng(8).integers(0, 50, (10, 32)).astype(np.float64)
    result = search(numbers * scale, effort="fast", device="cpu")
    assert sorted(result.permutation) == list(range(32))
    assert result.retained_after >= result.retained_before
    if scale != 2.0**-1074:  # scores of a few subnormals are zero for all that a code can tell
        assert result.efficacy > 10.0


def test_outliers_do_not_hide_the_rest():
    # One score a million times the others: a plain linear code would turn everything else to zero.
    rng = np.random.default_rng(9)
    matrix = rng.random((64, 64))
    plain = search(matrix, effort="fast", device="cpu")
    matrix[17, 5] = 1e6
    result = search(matrix, effort="fast", device="cpu")
    gained = result.retained_after - result.retained_before
    assert gained > 0.8 * (plain.retained_after - plain.retained_before)


def test_one_dominant_row_is_what_counts():
    # The opposite of an outlier: one row so large that nothing else matters, all of its values beyond a clipping cap.
    rng = np.random.default_rng(9)
    matrix = rng.random((64, 64))
    matrix[17] *= 1e6
    result = search(matrix, effort="fast", device="cpu")
    assert result.efficacy == pytest.approx(100.0, abs=1.0)


def test_rare_large_scores_among_dust():
    rng = np.random.default_rng(9)
    matrix = rng.random((200, 64)) * 1e-9
    matrix[rng.random(matrix.shape) < 0.05] = 1.0
    dust = search(matrix, effort="fast", device="cpu")
    clean = search(np.where(matrix == 1.0, 1.0, 0.0), effort="fast", device="cpu")
    assert dust.efficacy >= clean.efficacy - 1.0


def test_sixteen_thousand_columns():
    matrix = np.random.default_rng(10).normal(size=(8, 16_384)).astype(np.float32)
    result = search(matrix, effort="fast", device="cpu")
    assert sorted(result.permutation) == list(range(16_384))
    assert result.efficacy > 50.0


def test_result_prints_and_serializes():
    import json

    result = search(np.random.default_rng(0).random((16, 32)), effort="fast", device="cpu")
    assert "32 columns, 2:4: efficacy" in str(result)
    loaded = json.loads(json.dumps(result.to_dict()))
    assert loaded["permutation"] == result.permutation.tolist()
    assert loaded["retained_after"] == result.retained_after
    assert loaded["finished"] is True
