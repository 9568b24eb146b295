"""The dense weights that a pruned kernel should come near: those that also correct the errors of the layers before it.

W* = W + α·H_μ⁻¹·D·W minimizes ‖X̂V - XW‖ over dense V for α = 1 without ridge. With few rows that fits noise, so α and
the ridge μ are chosen on rows held out: for a given ridge the best α is a regression coefficient, in closed form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_asp.calibration.factors import Factors
from tfmot_asp.calibration.linear_algebra import product, solve

RIDGES = (0.0, 0.1)
"""What may be added to the scaled matrix, whose diagonal is one and has the damping in it already."""

CHOICE_COLUMNS = 256
"""Outputs that the correction is chosen on, evenly spread, at most."""


@dataclass(frozen=True)
class Correction:
    """How far earlier errors are corrected: by ``alpha``, 0 to 1, of the step with that ``ridge``."""

    alpha: float
    ridge: float = 0.0


def corrected(weight: np.ndarray, inputs: Factors, correction: Correction) -> np.ndarray:
    """W*, (K, O) float32, not scaled."""
    drift = inputs.moments.drift
    if drift is None or correction.alpha == 0:
        return weight.copy()
    step = _step(weight, drift, [(block.scale, block.matrix) for block in inputs.blocks], correction.ridge)
    return weight + np.float32(correction.alpha) * step


def choose_correction(weight: np.ndarray, inputs: Factors) -> Correction:
    """The correction that explains most of the outputs' error on held-out rows, given moments without these rows.

    Args:
        weight: W, (K, O) float32.
        inputs: of the tensor that it reads.
    """
    moments, rest = inputs.moments, inputs.without_sample
    if rest is None:
        return Correction(0.0)
    weight = weight[:, :: -(-weight.shape[1] // CHOICE_COLUMNS)]
    scaled, drifts = rest
    error = product(moments.dense_sample - moments.sample, weight)
    best, explained = Correction(0.0), 0.0
    for ridge in RIDGES:
        predicted = product(moments.sample, _step(weight, drifts, scaled, ridge))
        size, agreement = float(np.vdot(predicted, predicted)), float(np.vdot(predicted, error))
        alpha = min(1.0, max(0.0, agreement / size)) if size else 0.0
        gain = 2 * alpha * agreement - alpha * alpha * size
        if gain > explained:
            best, explained = Correction(alpha, ridge), gain
    return best


def _step(
    weight: np.ndarray, drift: Sequence[np.ndarray], scaled: list[tuple[np.ndarray, Any]], ridge: float
) -> np.ndarray:
    """H_μ⁻¹·D·W, block by block."""
    steps, first = [], 0
    for (scale, matrix), block in zip(scaled, drift, strict=True):
        inputs = slice(first, first := first + len(block))
        pull = scale[:, None] * product(block, weight[inputs])
        steps.append(scale[:, None] * solve(matrix + ridge * tf.eye(len(block)), pull))
    return np.concatenate(steps)
