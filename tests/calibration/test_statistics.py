"""Moments: against sums row by row, in any batches, with padding, and in blocks where memory is short."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.calibration import oracle
from tfmot_asp.calibration.factors import Factors
from tfmot_asp.calibration.statistics import SAMPLE_ROWS, Moments, MomentsAccumulator


def rows_of(rng: np.random.Generator, rows: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    pruned = rng.standard_normal((rows, size)).astype(np.float32)
    return pruned, pruned + 0.3 * rng.standard_normal((rows, size)).astype(np.float32)


def gathered(pruned: np.ndarray, dense: np.ndarray | None, batch: int = 7, **options: int) -> Moments:
    accumulator = MomentsAccumulator(pruned.shape[1], **options)
    for first in range(0, len(pruned), batch):
        chosen = slice(first, first + batch)
        accumulator.add(pruned[chosen], None if dense is None else dense[chosen])
    return accumulator.result()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 13), st.integers(1, 50), st.integers(0, 2**31))
def test_moments_are_the_sums_over_rows_whatever_the_batches(rows: int, size: int, batch: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pruned, dense = rows_of(rng, rows, size)
    weights = rng.integers(0, 3, rows).astype(np.float32)
    weights[0] = 1
    accumulator = MomentsAccumulator(size)
    for first in range(0, rows, batch):
        chosen = slice(first, first + batch)
        accumulator.add(pruned[chosen], dense[chosen], weights[chosen])
    found = accumulator.result()
    gram, drift = oracle.moments(pruned, dense, weights)
    assert found.drift is not None
    np.testing.assert_allclose(found.gram[0], gram, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.drift[0], drift, rtol=1e-5, atol=1e-5)
    assert found.rows == np.count_nonzero(weights)
    assert 0 < found.sample_share <= 1
    assert found.size == size


def test_batches_whose_inputs_are_the_dense_models_own_have_no_drift() -> None:
    pruned, _ = rows_of(np.random.default_rng(0), 30, 8)
    found = gathered(pruned, None)
    assert found.drift is None
    assert found.dense_sample is found.sample
    same = gathered(pruned, pruned)
    assert same.drift is not None
    assert not same.drift[0].any()


def test_padding_does_not_count_even_where_it_is_nan() -> None:
    rng = np.random.default_rng(1)
    pruned, dense = rows_of(rng, 40, 6)
    padded = np.zeros((40, 6), np.float32)
    padded[::2] = pruned[::2]
    padded[1::2] = np.nan
    accumulator = MomentsAccumulator(6)
    accumulator.add(padded, dense, (np.arange(40) % 2 == 0).astype(np.float32))
    expected = gathered(pruned[::2], dense[::2], batch=40)
    np.testing.assert_array_equal(accumulator.result().gram[0], expected.gram[0])
    np.testing.assert_array_equal(accumulator.result().sample, expected.sample)


def test_the_sample_is_spread_over_the_batches_and_bounded() -> None:
    rows = np.arange(40_000, dtype=np.float32)[:, None] + 1
    sample = gathered(rows, None, batch=100).sample
    assert SAMPLE_ROWS / 4 < len(sample) <= SAMPLE_ROWS
    assert sample.min() < 4_000 < 36_000 < sample.max()
    assert np.all(np.isin(np.diff(sample[:, 0])[:10], [1]))  # neighbours
    assert len(gathered(rows, None, batch=40_000).sample) == SAMPLE_ROWS


@pytest.mark.parametrize(
    ("size", "segments", "stripe", "memory", "lengths"),
    [
        (36, 9, 4, 40 * 36 * 36, [36]),
        (36, 9, 4, 40 * 36 * 35, [20, 16]),  # whole kernel positions
        (36, 9, 4, 40 * 36 * 4, [4] * 9),
        (60, 3, 4, 40 * 60 * 12, [12, 8] * 3),  # a position that does not fit is cut between stripes
        (30, 1, 4, 40 * 30 * 10, [8, 8, 8, 6]),
        (30, 1, 4, 0, [4] * 7 + [2]),
        (10, 1, 16, 0, [10]),
    ],
)
def test_short_memory_leaves_blocks_that_cut_no_stripe(
    size: int, segments: int, stripe: int, memory: int, lengths: list[int]
) -> None:
    pruned, dense = rows_of(np.random.default_rng(2), 50, size)
    found = gathered(pruned, dense, segments=segments, stripe=stripe, memory=memory)
    assert [len(block) for block in found.gram] == lengths
    whole = gathered(pruned, dense)
    assert whole.drift is not None
    assert found.drift is not None
    first = 0
    for gram, drift in zip(found.gram, found.drift, strict=True):
        block = slice(first, first + len(gram))
        np.testing.assert_allclose(gram, whole.gram[0][block, block], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(drift, whole.drift[0][block, block], rtol=1e-5, atol=1e-6)
        first += len(gram)
    assert whole.note is None
    if len(lengths) > 1:
        assert found.note is not None
        assert f"{len(lengths)} blocks of at most {lengths[0]} inputs" in found.note


@pytest.mark.parametrize("dead", [[], [2], [0, 1, 2, 3], range(8)])
def test_damping_with_inputs_that_are_always_zero(dead: list[int]) -> None:
    pruned, _ = rows_of(np.random.default_rng(3), 50, 8)
    pruned[:, list(dead)] = 0
    found = gathered(pruned, None)
    block = Factors(found).blocks[0]
    gram, _ = oracle.moments(pruned, pruned, np.ones(50))
    unscaled = block.matrix.numpy() / block.scale[:, None] / block.scale
    np.testing.assert_allclose(unscaled, oracle.damped(gram), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(np.diag(block.matrix.numpy()), 1)


def test_what_does_not_fit_is_refused_and_adds_nothing() -> None:
    accumulator = MomentsAccumulator(4)
    with pytest.raises(ValueError, match="no rows to take statistics of"):
        accumulator.result()
    good = np.ones((3, 4), np.float32)
    bad = good.copy()
    bad[1, 2] = np.nan
    with pytest.raises(ValueError, match=r"pruned_rows must be of shape \(rows, 4\), got \(3, 5\)"):
        accumulator.add(np.ones((3, 5)))
    with pytest.raises(ValueError, match=r"same rows as pruned_rows, \(3, 4\); got \(2, 4\)"):
        accumulator.add(good, good[:2])
    with pytest.raises(ValueError, match="weights must be 3 finite numbers of at least 0"):
        accumulator.add(good, weights=np.array([1, -1, 1]))
    with pytest.raises(ValueError, match="pruned_rows has NaN or infinite"):
        accumulator.add(bad)
    with pytest.raises(ValueError, match="dense_rows has NaN or infinite"):
        accumulator.add(good, bad * np.inf)
    with pytest.raises(ValueError, match="no rows"):
        accumulator.result()
    with pytest.raises(ValueError, match="10 inputs cannot be 3 segments"):
        MomentsAccumulator(10, segments=3)
