"""Products and inverses in full float32 or float64, on TensorFlow's GPU where there is one.

TensorFlow's own threads multiply here, not those of NumPy's BLAS: the two in one process wait for each other, busily.
The inverses are recursive, so that nearly all of their work is products too. What goes element by element stays in
NumPy, which needs fewer and smaller passes for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf

_SMALL = 192


@contextmanager
def full_precision() -> Iterator[None]:
    """Keeps GPUs from rounding float32 factors to TF32's ten bits, and puts the setting back."""
    rounding = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(rounding)


def product(left: Any, right: Any, transpose_left: bool = False) -> np.ndarray:
    """left · right, or leftᵀ · right, of arrays or tensors; a left factor used often is best given as a tensor."""
    return tf.matmul(left, right, transpose_a=transpose_left).numpy()


def solve(matrix: Any, right: np.ndarray) -> np.ndarray:
    """The inverse of a symmetric positive definite matrix, times (K, O)."""
    root = inverse_root(matrix)
    return product(root, tf.matmul(root, right), transpose_left=True)


def inverse(matrix: Any) -> Any:
    """The inverse of a symmetric positive definite matrix."""
    return _root_and_inverse(matrix, True)[1]


def inverse_root(matrix: Any) -> Any:
    """U, upper triangular with UᵀU the inverse of a symmetric positive definite matrix."""
    return _root_and_inverse(matrix, False)[0]


def _root_and_inverse(matrix: Any, whole: bool) -> tuple[Any, Any]:
    """U, and UᵀU if the whole inverse is asked for, from those of halves.

    The inverse of U is R with ``matrix`` = RRᵀ, R upper triangular: the last half's factor comes from the last half
    alone, and that of the first from what is left of it. As stable as a Cholesky factorization, unlike block inverses.
    """
    size = matrix.shape[0]
    if size <= _SMALL:
        # With both axes reversed, the lower Cholesky factor is R.
        root = tf.linalg.cholesky(matrix[::-1, ::-1])[::-1, ::-1]
        root = tf.linalg.triangular_solve(root, tf.eye(size, dtype=matrix.dtype), lower=False)
        return root, tf.matmul(root, root, transpose_a=True) if whole else None
    half = size // 2
    last, last_inverse = _root_and_inverse(matrix[half:, half:], whole)
    side = tf.matmul(matrix[:half, half:], last, transpose_b=True)
    first, first_inverse = _root_and_inverse(matrix[:half, :half] - tf.matmul(side, side, transpose_b=True), whole)
    side = -(first @ side) @ last
    root = _quarters(first, side, tf.zeros((size - half, half), matrix.dtype), last)
    if not whole:
        return root, None
    side_inverse = tf.matmul(first, side, transpose_a=True)
    last_inverse += tf.matmul(side, side, transpose_a=True)
    return root, _quarters(first_inverse, side_inverse, tf.transpose(side_inverse), last_inverse)


def _quarters(first: Any, right: Any, below: Any, last: Any) -> Any:
    return tf.concat([tf.concat([first, right], 1), tf.concat([below, last], 1)], 0)
