"""One kernel pruned with data: exact cases, the correction of earlier errors, convolutions, and inputs of all kinds."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tests.calibration import oracle
from tests.calibration.test_statistics import gathered
from tfmot_asp.calibration.factors import Factors
from tfmot_asp.calibration.reconstruct import EFFORTS, METHODS, output_error, reconstruct
from tfmot_asp.calibration.statistics import MomentsAccumulator
from tfmot_asp.calibration.target import Correction, choose_correction, corrected
from tfmot_asp.masks import m_by_n_mask, violations


def correlated(rng: np.random.Generator, rows: int, size: int, rank: int | None = None) -> np.ndarray:
    rank = rank or max(1, size // 2)
    mixed = rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, size))
    return (mixed + 0.1 * rng.standard_normal((rows, size))).astype(np.float32)


def kernel(rng: np.random.Generator, size: int, outputs: int) -> np.ndarray:
    return (rng.standard_normal((size, outputs)) / np.sqrt(size)).astype(np.float32)


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("segments", [1, 3])
def test_data_of_rank_two_per_stripe_loses_nothing(effort: str, segments: int) -> None:
    rng = np.random.default_rng(0)
    stripes = [rng.standard_normal((200, 2)) @ rng.standard_normal((2, 4)) for _ in range(12)]
    rows = np.concatenate(stripes, 1).astype(np.float32)
    weight = kernel(rng, 48, 9)
    inputs = Factors(gathered(rows, None), damping=1e-6)
    found = reconstruct(weight, inputs, effort=effort, segments=segments)
    assert found.error_before > 0.2
    assert found.error_after < 2e-3
    assert violations(found.weight, 0) == 0


def test_target_is_the_dense_least_squares_of_the_dense_outputs() -> None:
    rng = np.random.default_rng(1)
    pruned = correlated(rng, 300, 12, 12)
    dense = pruned + 0.5 * rng.standard_normal(pruned.shape).astype(np.float32)
    weight = kernel(rng, 12, 5)
    found = corrected(weight, Factors(gathered(pruned, dense), damping=1e-7), Correction(1.0))
    expected, *_ = np.linalg.lstsq(pruned.astype(float), dense.astype(float) @ weight, rcond=None)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    gram, drift = oracle.moments(pruned, dense, np.ones(300))
    damped = oracle.damped(gram)
    half = corrected(weight, Factors(gathered(pruned, dense)), Correction(0.5))
    np.testing.assert_allclose(half, weight + 0.5 * np.linalg.solve(damped, drift @ weight), rtol=1e-3, atol=1e-4)


def test_moments_without_the_sample_are_those_of_the_other_rows() -> None:
    rng = np.random.default_rng(2)
    pruned = correlated(rng, 80, 6)
    dense = pruned + rng.standard_normal(pruned.shape).astype(np.float32)
    weights = rng.integers(1, 4, 80).astype(np.float32)
    accumulator = MomentsAccumulator(6)
    accumulator.add(pruned, dense, weights)
    rest = accumulator.result().without_sample()
    assert rest is not None
    gram, drift = oracle.moments(pruned[:70], dense[:70], weights[:70])
    np.testing.assert_allclose(rest[0][0], gram, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(rest[1][0], drift, rtol=1e-4, atol=1e-4)


def drifted(rng: np.random.Generator, rows: int, size: int, predictable: float) -> tuple[np.ndarray, np.ndarray]:
    """Pruned and dense rows whose difference is a linear function of the pruned rows in part, and noise."""
    pruned = correlated(rng, rows, size)
    mix = predictable * rng.standard_normal((size, size)) / np.sqrt(size)
    dense = pruned + pruned @ mix + 0.5 * pruned.std() * rng.standard_normal((rows, size))
    return pruned, dense.astype(np.float32)


def test_alpha_grows_with_rows_and_vanishes_for_noise() -> None:
    rng = np.random.default_rng(3)
    mixed = np.random.default_rng(4)
    alphas = []
    for rows in (48, 400, 6000):
        pruned, dense = drifted(np.random.default_rng(5), rows, 32, 0.3)
        alphas.append(choose_correction(kernel(mixed, 32, 16), Factors(gathered(pruned, dense))).alpha)
    assert 0 <= alphas[0] < alphas[1] < alphas[2] <= 1
    assert alphas[2] > 0.9
    pruned, dense = drifted(rng, 400, 32, 0.0)
    assert choose_correction(kernel(rng, 32, 16), Factors(gathered(pruned, dense))).alpha < 0.2


def test_correcting_earlier_errors_helps_on_other_rows() -> None:
    rng = np.random.default_rng(6)
    pruned, dense = drifted(rng, 4000, 32, 0.3)
    weight = kernel(rng, 32, 16)
    inputs = Factors(gathered(pruned[:2000], dense[:2000]))
    fresh = gathered(pruned[2000:], dense[2000:])
    error = {alpha: output_error(reconstruct(weight, inputs, alpha=alpha).weight, weight, fresh) for alpha in (None, 0)}
    assert error[None] < 0.9 * error[0]
    assert reconstruct(weight, inputs).alpha > 0.5


@pytest.mark.parametrize("method", METHODS)
def test_methods_without_a_refit_are_masks_of_the_kernel(method: str) -> None:
    rng = np.random.default_rng(7)
    rows = correlated(rng, 100, 22) * np.exp(rng.standard_normal(22)).astype(np.float32)
    weight = kernel(rng, 22, 6)
    found = reconstruct(weight, Factors(gathered(rows, None)), method=method)
    scores = {"magnitude": np.abs(weight), "activation": np.abs(weight) * np.sqrt(np.mean(rows**2, 0))[:, None]}
    if method in scores:
        np.testing.assert_array_equal(found.mask, m_by_n_mask(scores[method], 0))
        np.testing.assert_array_equal(found.weight, np.where(found.mask, weight, 0))
    else:
        assert found.error_after < found.error_before
    assert found.alpha == 0


def test_given_scores_choose_the_mask_and_the_refit_is_exact() -> None:
    rng = np.random.default_rng(8)
    rows = correlated(rng, 200, 16)
    weight, scores = kernel(rng, 16, 5), rng.random((16, 5))
    found = reconstruct(weight, Factors(gathered(rows, None)), scores=scores)
    np.testing.assert_array_equal(found.mask, m_by_n_mask(scores, 0))
    gram, _ = oracle.moments(rows, rows, np.ones(200))
    expected = oracle.refit(oracle.damped(gram), weight, found.mask)
    np.testing.assert_allclose(found.weight, expected, rtol=2e-3, atol=2e-3)


def test_a_convolution_is_its_explicit_columns() -> None:
    rng = np.random.default_rng(9)
    images = correlated(rng, 3 * 8 * 8, 6).reshape(3, 8, 8, 6)
    weight = kernel(rng, 3 * 3 * 6, 5)
    patches = tf.image.extract_patches(images, [1, 3, 3, 1], [1] * 4, [1] * 4, "VALID").numpy()
    moments = gathered(patches.reshape(-1, 54), None, segments=9)
    found = reconstruct(weight, Factors(moments), segments=9)
    assert violations(found.weight.reshape(3, 3, 6, 5), 2) == 0
    outputs = [tf.nn.conv2d(images, w.reshape(3, 3, 6, 5), 1, "VALID").numpy() for w in (weight, found.weight)]
    error = np.linalg.norm(outputs[1] - outputs[0]) / np.linalg.norm(outputs[0])
    assert error == pytest.approx(found.error_after, rel=0.2)  # which is of a sample of the rows
    assert error < 0.7 * found.error_before


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize(
    ("size", "outputs", "rows"), [(1, 1, 1), (3, 1, 50), (7, 4, 2), (64, 1, 5), (130, 3, 20), (5, 40, 100)]
)
def test_any_size_and_fewer_rows_than_inputs(effort: str, size: int, outputs: int, rows: int) -> None:
    rng = np.random.default_rng(size)
    pruned = correlated(rng, rows, size)
    dense = pruned + 0.2 * correlated(rng, rows, size)
    weight = kernel(rng, size, outputs)
    found = reconstruct(weight, Factors(gathered(pruned, dense)), effort=effort)
    assert np.isfinite(found.weight).all()
    assert oracle.keeps_pattern(found.mask, 2, 4, 1)
    assert not found.weight[~found.mask].any()
    assert found.weight.dtype == np.float32


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("constant", [0.0, 3.0])
def test_inputs_that_never_change(effort: str, constant: float) -> None:
    weight = kernel(np.random.default_rng(10), 24, 6)
    rows = np.full((40, 24), constant, np.float32)
    found = reconstruct(weight, Factors(gathered(rows, rows)), effort=effort)
    assert np.isfinite(found.weight).all()
    assert oracle.keeps_pattern(found.mask, 2, 4, 1)
    if constant:
        assert found.error_after < 0.05
    else:
        np.testing.assert_array_equal(found.weight, np.where(m_by_n_mask(np.abs(weight), 0), weight, 0))
        assert found.error_after == 0


def test_weights_of_inputs_that_are_always_zero_are_dropped_first() -> None:
    rng = np.random.default_rng(11)
    rows = correlated(rng, 300, 16)
    rows[:, [1, 3, 5, 7, 9, 11, 13, 15]] = 0
    found = reconstruct(kernel(rng, 16, 20), Factors(gathered(rows, None)))
    assert found.mask[::2].mean() > 0.95
    assert found.error_after < 0.05


@pytest.mark.parametrize("dtype", [np.float16, tf.bfloat16.as_numpy_dtype, np.float64])
def test_other_precisions_are_rounded_once_at_the_end(dtype: type) -> None:
    rng = np.random.default_rng(12)
    inputs = Factors(gathered(correlated(rng, 200, 20), None))
    weight = kernel(rng, 20, 6).astype(dtype)
    found = reconstruct(weight, inputs)
    assert found.weight.dtype == weight.dtype
    exact = reconstruct(weight.astype(np.float32), inputs)
    np.testing.assert_array_equal(found.mask, exact.mask)
    np.testing.assert_array_equal(found.weight, exact.weight.astype(dtype))


def test_the_same_arguments_give_the_same_weights() -> None:
    rng = np.random.default_rng(13)
    pruned, dense = drifted(rng, 700, 140, 0.2)
    weight = kernel(rng, 140, 30)
    results = [reconstruct(weight, Factors(gathered(pruned, dense, 100))).weight for _ in range(2)]
    np.testing.assert_array_equal(*results)
    shared = Factors(gathered(pruned, dense, 100))
    reconstruct(kernel(rng, 140, 8), shared, effort="fast")
    np.testing.assert_array_equal(reconstruct(weight, shared).weight, results[0])


def test_blocks_for_want_of_memory_are_each_reconstructed() -> None:
    rng = np.random.default_rng(14)
    rows, weight = correlated(rng, 400, 36), kernel(rng, 36, 8)
    moments = gathered(rows, None, segments=3, memory=40 * 36 * 12)
    found = reconstruct(weight, Factors(moments), segments=3)
    assert found.note is not None
    assert "3 blocks" in found.note
    for first in (0, 12, 24):
        part = slice(first, first + 12)
        alone = reconstruct(weight[part], Factors(gathered(rows[:, part], None)))
        np.testing.assert_allclose(found.weight[part], alone.weight, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="block of inputs 0 to 12 cuts a stripe of 8"):
        reconstruct(weight, Factors(moments), m_by_n=(4, 8))


def test_what_makes_no_sense_is_refused() -> None:
    inputs = Factors(gathered(np.ones((5, 8), np.float32), None))
    weight = np.ones((8, 3), np.float32)
    with pytest.raises(ValueError, match=r"weight must be of shape \(8, outputs\).*got \(7, 3\)"):
        reconstruct(weight[:7], inputs)
    with pytest.raises(ValueError, match="8 inputs cannot be 3 segments"):
        reconstruct(weight, inputs, segments=3)
    with pytest.raises(
        ValueError, match="method must be one of 'magnitude', 'activation', 'reconstruction'; got 'best'"
    ):
        reconstruct(weight, inputs, method="best")
    with pytest.raises(ValueError, match="effort must be one of 'fast', 'balanced', 'thorough'; got 'max'"):
        reconstruct(weight, inputs, effort="max")
    with pytest.raises(ValueError, match=r"scores must be of the weight's shape \(8, 3\), got \(3, 8\)"):
        reconstruct(weight, inputs, scores=weight.T)
    with pytest.raises(ValueError, match="two integers"):
        reconstruct(weight, inputs, m_by_n=(4, 4))
    with pytest.raises(ValueError, match="alpha must be from 0 to 1, got 2"):
        reconstruct(weight, inputs, alpha=2)
    with pytest.raises(ValueError, match="NaN, infinite, or too large"):
        reconstruct(weight * np.nan, inputs)
