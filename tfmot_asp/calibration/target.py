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

from tfmot_asp.calibration.factors import Factors, damped
from tfmot_asp.calibration.linear_algebra import product, solve
from tfmot_asp.calibration.statistics import Moments

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
    moments = inputs.moments
    rest = without_sample(moments)
    if rest is None:
        return Correction(0.0)
    weight = weight[:, :: -(-weight.shape[1] // CHOICE_COLUMNS)]
    grams, drifts = rest
    error = product(moments.dense_sample - moments.sample, weight)
    scaled = [damped(gram, inputs.damping) for gram in grams]
    best, explained = Correction(0.0), 0.0
    for ridge in RIDGES:
        predicted = product(moments.sample, _step(weight, drifts, scaled, ridge))
        size, agreement = float(np.vdot(predicted, predicted)), float(np.vdot(predicted, error))
        alpha = min(1.0, max(0.0, agreement / size)) if size else 0.0
        gain = 2 * alpha * agreement - alpha * alpha * size
        if gain > explained:
            best, explained = Correction(alpha, ridge), gain
    return best


def without_sample(moments: Moments) -> tuple[list[np.ndarray], list[np.ndarray]] | None:
    """H and D, as blocks, of the rows that are not in the sample; None if there are no others or no drift."""
    if moments.drift is None or moments.sample_share >= 1:
        return None
    difference = moments.dense_sample - moments.sample
    own = np.float32(moments.sample_share / len(moments.sample))
    rest = np.float32(1 / (1 - moments.sample_share))
    grams, drifts, first = [], [], 0
    for gram, drift in zip(moments.gram, moments.drift, strict=True):
        rows = moments.sample[:, first : first + len(gram)]
        shifted = difference[:, first : first + len(gram)]
        grams.append(rest * (gram - own * product(rows, rows, transpose_left=True)))
        drifts.append(rest * (drift - own * product(rows, shifted, transpose_left=True)))
        first += len(gram)
    return grams, drifts


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
