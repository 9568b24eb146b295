"""The best kept weights for a mask: conjugate gradients on all columns at once."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfmot_asp.calibration.linear_algebra import product

STEPS = 30

_ENOUGH = 1e-11  # of the target's square, for the residual's: float32 knows no better
_GAIN = 1e-5  # of the loss, for what a step gains


def refit(
    matrix: Any, target: np.ndarray, mask: np.ndarray, start: np.ndarray | None = None, steps: int = STEPS
) -> np.ndarray:
    """Minimizes (V - T)ᵀ A (V - T) over the weights that the mask keeps, per column.

    In scaled coordinates (``factors``), where A has a diagonal of ones: these are conjugate gradients with Jacobi's
    preconditioner. A column that has converged stands still; it ends where a step gains nothing worth mentioning.

    Args:
        matrix: A, (K, K), a symmetric positive definite tensor.
        target: T, (K, O).
        mask: (K, O) bool.
        start: V to start from, where the mask is True; ``target`` if None.
        steps: iterations, at most.

    Returns:
        V, (K, O), zero where the mask is False.
    """
    kept = mask.astype(target.dtype)
    weight = (target if start is None else start) * kept
    missing = target - weight
    residual = product(matrix, missing)
    loss = float(np.vdot(missing, residual))
    residual *= kept
    direction = residual.copy()
    square = _squares(residual)
    enough = np.float32(_ENOUGH) * _squares(target)
    for _ in range(steps):
        moving = square > enough
        if not moving.any():
            break
        image = product(matrix, direction)
        image *= kept
        curvature = np.einsum("ko,ko->o", direction, image)
        moving &= curvature > 0
        length = np.divide(square, curvature, out=np.zeros_like(square), where=moving)
        image *= length
        residual -= image
        weight += np.multiply(direction, length, out=image)
        gained = float(length @ square)
        loss -= gained
        if gained < _GAIN * loss:
            break
        before, square = square, _squares(residual)
        direction *= np.divide(square, before, out=np.zeros_like(square), where=before > 0)
        direction += residual
    return weight


def _squares(array: np.ndarray) -> np.ndarray:
    return np.einsum("ko,ko->o", array, array)
