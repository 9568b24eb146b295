"""The best kept weights for a mask: conjugate gradients on all columns at once."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

STEPS = 30


def refit(matrix: Any, target: Any, mask: Any, start: Any = None, steps: int = STEPS) -> Any:
    """Minimizes (V - T)ᵀ A (V - T) over the weights that the mask keeps, per column.

    In scaled coordinates (``factors``), where A has a diagonal of ones: these are conjugate gradients with Jacobi's
    preconditioner. A column that has converged stands still.

    Args:
        matrix: A, (K, K), symmetric positive definite.
        target: T, (K, O).
        mask: (K, O) bool.
        start: V to start from, where the mask is True; ``target`` if None.
        steps: iterations, at most.

    Returns:
        V, (K, O), zero where the mask is False.
    """
    kept = tf.cast(mask, target.dtype)
    weight = (target if start is None else start) * kept
    residual = (matrix @ (target - weight)) * kept
    direction = residual
    square = _squares(residual)
    enough = 1e-12 * _squares(target)
    for _ in range(steps):
        if not tf.reduce_any(square > enough):
            break
        image = (matrix @ direction) * kept
        curvature = tf.reduce_sum(direction * image, 0)
        length = tf.where((square > enough) & (curvature > 0), tf.math.divide_no_nan(square, curvature), 0)
        weight += length * direction
        residual -= length * image
        before, square = square, _squares(residual)
        direction = residual + tf.math.divide_no_nan(square, before) * direction
    return weight


def _squares(array: Any) -> Any:
    return tf.reduce_sum(array * array, 0)
