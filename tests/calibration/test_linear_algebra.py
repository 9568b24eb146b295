"""Inverses and their roots against NumPy's, of sizes around those where the recursion splits."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfmot_asp.calibration.linear_algebra import full_precision, inverse, inverse_root


def ill_conditioned(size: int) -> np.ndarray:
    rng = np.random.default_rng(size)
    rows = np.maximum(
        rng.standard_normal((2 * size, max(1, size // 4))) @ rng.standard_normal((max(1, size // 4), size)), 0
    )
    gram = rows.T @ rows / len(rows)
    return gram / np.trace(gram) * size + 0.01 * np.eye(size)


@pytest.mark.parametrize("size", [1, 2, 127, 128, 129, 300, 513])
def test_root_and_inverse(size: int) -> None:
    matrix = ill_conditioned(size)
    root = inverse_root(tf.constant(matrix)).numpy()
    np.testing.assert_array_equal(root, np.triu(root))
    np.testing.assert_allclose(root.T @ root @ matrix, np.eye(size), atol=1e-8)
    np.testing.assert_allclose(inverse(tf.constant(matrix)).numpy(), np.linalg.inv(matrix), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("size", [64, 513, 1100])
def test_float32_suffices(size: int) -> None:
    matrix = ill_conditioned(size).astype(np.float32)
    found = inverse(tf.constant(matrix)).numpy()
    exact = np.linalg.inv(matrix.astype(np.float64))
    assert np.linalg.norm(found - exact) < 2e-3 * np.linalg.norm(exact)


def test_full_precision_puts_the_setting_back() -> None:
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    during = []

    @full_precision()
    def fail() -> None:
        during.append(tf.config.experimental.tensor_float_32_execution_enabled())
        raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert during == [False]
    assert tf.config.experimental.tensor_float_32_execution_enabled() == before
