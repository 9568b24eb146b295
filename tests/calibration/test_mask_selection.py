"""Masks and refits against slow float64 versions that go row by row and column by column."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.calibration import oracle
from tfmot_asp.calibration.factors import GramBlock
from tfmot_asp.calibration.mask_selection import OBS_BLOCK, admm_mask, choose_mask, m_by_n_rows, obs_mask
from tfmot_asp.calibration.refit import refit
from tfmot_asp.calibration.swaps import swap_search
from tfmot_asp.pattern import TWO_FOUR, Pattern

PATTERNS = [Pattern(*pair) for pair in [(2, 4), (1, 4), (3, 4), (1, 2), (5, 8), (2, 3)]]
EFFORTS = ["fast", "balanced", "thorough"]


def problem(seed: int, size: int, outputs: int, rank: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """A scaled matrix of correlated inputs and a target, float64 with float32's digits."""
    rng = np.random.default_rng(seed)
    rank = rank or max(1, size // 2)
    rows = rng.standard_normal((4 * size, rank)) @ rng.standard_normal((rank, size))
    gram = oracle.damped(rows.T @ rows)
    scale = 1 / np.sqrt(np.diag(gram))
    matrix = (gram * scale[:, None] * scale).astype(np.float32).astype(float)
    return matrix, rng.standard_normal((size, outputs)).astype(np.float32).astype(float)


def block_of(matrix: np.ndarray) -> GramBlock:
    size = len(matrix)
    return GramBlock(slice(0, size), np.ones(size, np.float32), tf.constant(matrix, tf.float32))


def single(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32)


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 23), st.integers(1, 6), st.sampled_from(PATTERNS),
    st.integers(1, 3), st.integers(0, 2**31),
)  # fmt: skip
def test_obs_is_the_row_by_row_rule(length: int, outputs: int, pattern: Pattern, segments: int, seed: int) -> None:
    matrix, target = problem(seed, length * segments, outputs)
    found = obs_mask(block_of(matrix), single(target), pattern, segments)
    expected = oracle.obs_mask(matrix, target, *pattern, segments)
    assert oracle.keeps_pattern(found, *pattern, segments)
    # Near ties may go either way in float32: the same masks, or ones that lose the same.
    lost = [oracle.loss(matrix, oracle.refit(matrix, target, mask), target) for mask in (found, expected)]
    assert (found == expected).mean() > 0.97 or lost[0] == pytest.approx(lost[1], rel=0.02)


@pytest.mark.parametrize("size", [OBS_BLOCK - 2, OBS_BLOCK + 9])
@pytest.mark.parametrize("pattern", [TWO_FOUR, Pattern(4, 7)])
def test_obs_spreads_errors_across_blocks_of_rows(size: int, pattern: Pattern) -> None:
    matrix, target = problem(size, size, 2)
    found = obs_mask(block_of(matrix), single(target), pattern)
    assert (found == oracle.obs_mask(matrix, target, *pattern, 1)).mean() > 0.98


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 30), st.integers(1, 5), st.booleans(), st.integers(0, 2**31))
def test_refit_is_the_exact_least_squares_of_each_column(size: int, outputs: int, started: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix, target = problem(seed, size, outputs)
    mask = rng.random(target.shape) < 0.5
    start = single(rng.standard_normal(target.shape)) if started else None
    found = refit(tf.constant(matrix, tf.float32), single(target), mask, start, steps=100)
    assert not found[~mask].any()
    exact = oracle.loss(matrix, oracle.refit(matrix, target, mask), target)
    assert oracle.loss(matrix, found, target) == pytest.approx(exact, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("size", [96, 161])
def test_thirty_steps_of_the_refit_reach_the_exact_loss(size: int) -> None:
    matrix, target = problem(size, size, 40, rank=size // 4)
    mask = np.array(m_by_n_rows(np.abs(target), TWO_FOUR, 1))
    found = oracle.loss(matrix, refit(tf.constant(matrix, tf.float32), single(target), mask), target)
    assert found <= 1.01 * oracle.loss(matrix, oracle.refit(matrix, target, mask), target)


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("pattern", [TWO_FOUR, Pattern(1, 4), Pattern(5, 8)])
@pytest.mark.parametrize(("length", "segments"), [(3, 1), (1, 5), (22, 1), (64, 2)])
def test_masks_keep_the_pattern(effort: str, pattern: Pattern, length: int, segments: int) -> None:
    matrix, target = problem(length, length * segments, 5)
    mask = choose_mask(block_of(matrix), single(target), pattern, segments, effort)[0]
    assert oracle.keeps_pattern(mask, *pattern, segments)


@pytest.mark.parametrize("effort", EFFORTS)
def test_independent_inputs_leave_nothing_to_do_but_magnitude(effort: str) -> None:
    target = np.random.default_rng(0).standard_normal((33, 7))
    mask = choose_mask(block_of(np.eye(33)), single(target), TWO_FOUR, 1, effort)[0]
    np.testing.assert_array_equal(mask, m_by_n_rows(np.abs(target), TWO_FOUR, 1))


@pytest.mark.parametrize("rank", [16, 48])
def test_more_effort_loses_less(rank: int) -> None:
    matrix, target = problem(rank, 96, 32, rank)
    masks = [np.array(m_by_n_rows(np.abs(target), TWO_FOUR, 1))]
    masks += [choose_mask(block_of(matrix), single(target), TWO_FOUR, 1, effort)[0] for effort in EFFORTS]
    lost = [oracle.loss(matrix, oracle.refit(matrix, target, mask), target) for mask in masks]
    assert lost[1] < 1.05 * lost[0]
    assert lost[2] < 0.95 * min(lost[:2])
    assert lost[3] < lost[2]


@pytest.mark.parametrize("pattern", [TWO_FOUR, Pattern(1, 4), Pattern(3, 5)])
@pytest.mark.parametrize(("length", "segments"), [(20, 1), (11, 2)])
def test_swaps_never_lose_and_end_near_where_no_single_swap_helps(pattern: Pattern, length: int, segments: int) -> None:
    matrix, target = problem(length, length * segments, 3, rank=16)
    mask = m_by_n_rows(np.abs(single(target)), pattern, segments)
    lost = [
        oracle.loss(matrix, oracle.refit(matrix, target, found), target)
        for found in (
            swap_search(block_of(matrix), single(target), mask, single(target), pattern, segments, rounds=rounds)[0]
            for rounds in (0, 1, 4, 30)
        )
    ]
    assert all(after <= 1.001 * before for before, after in itertools.pairwise(lost))
    assert lost[-1] < 0.99 * lost[0]
    best = oracle.swapped(matrix, target, np.array(mask), *pattern, segments)
    least = oracle.loss(matrix, oracle.refit(matrix, target, best), target)
    assert lost[-1] - least < 0.6 * (lost[0] - least)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("rank", [2, 20, 60])
def test_the_ridge_leaves_as_many_degrees_of_freedom_as_weights(share: float, rank: int) -> None:
    matrix, _ = problem(rank, 60, 1, rank)
    ridge, found = block_of(matrix).half_explained(share)
    np.testing.assert_allclose(found, np.linalg.inv(matrix + ridge * np.eye(60)), rtol=1e-2, atol=1e-3)
    values = np.linalg.eigvalsh(matrix)
    assert np.mean(values / (values + ridge)) == pytest.approx(share, abs=0.035)


def test_admm_comes_near_the_best_of_all_masks() -> None:
    ratios = []
    for seed in range(12):
        matrix, target = problem(seed, 12, 1, rank=8)
        best = oracle.loss(matrix, oracle.refit(matrix, target, oracle.best_mask(matrix, target, 2, 4)), target)
        mask = admm_mask(block_of(matrix), single(target), TWO_FOUR)[0]
        ratios.append(oracle.loss(matrix, oracle.refit(matrix, target, mask), target) / best)
    assert min(ratios) > 1 - 1e-6
    assert np.median(ratios) < 1.05
