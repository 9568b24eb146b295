"""One kernel pruned with data: its mask chosen, its kept weights refitted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tfmot_asp.calibration.factors import Factors, GramBlock
from tfmot_asp.calibration.linear_algebra import full_precision, product
from tfmot_asp.calibration.mask_selection import choose_mask, m_by_n_rows
from tfmot_asp.calibration.refit import refit
from tfmot_asp.calibration.statistics import Moments
from tfmot_asp.calibration.target import Correction, choose_correction, corrected
from tfmot_asp.pattern import TWO_FOUR, Pattern, PatternLike

METHODS = ("magnitude", "activation", "reconstruction")
EFFORTS = ("fast", "balanced", "thorough")


@dataclass(frozen=True)
class Reconstruction:
    """A kernel pruned with data.

    Attributes:
        weight: V, (K, O), the pruned kernel, in the given kernel's dtype; exactly zero where the mask is False.
        mask: (K, O) bool, True where a weight is kept.
        error_before: relative error of the product's outputs with the kernel pruned by magnitude alone.
        error_after: relative error ‖X̂V - XW‖ / ‖XW‖ of the product's outputs with V, on the moments' sample of rows.
        alpha: how much of the earlier layers' errors the target corrects, from 0 to 1.
        note: what was approximated, in one line, or None.
    """

    weight: np.ndarray
    mask: np.ndarray
    error_before: float
    error_after: float
    alpha: float
    note: str | None = None


@full_precision()
def reconstruct(
    weight: npt.ArrayLike,
    inputs: Factors,
    *,
    m_by_n: PatternLike = TWO_FOUR,
    segments: int = 1,
    method: str = "reconstruction",
    effort: str = "balanced",
    scores: npt.ArrayLike | None = None,
    alpha: float | None = None,
) -> Reconstruction:
    """Prunes a kernel so that its outputs on the data change as little as possible.

    Deterministic: the same arguments give the same weights on the same machine.

    Args:
        weight: W, (K, O), of the dense model, K in the order of the inputs' rows; float32, float64, float16 or
            bfloat16.
        inputs: of the tensor that the kernel reads.
        m_by_n: m zeros in every n consecutive values along K.
        segments: kernel positions of a convolution; stripes lie within each of the ``segments`` runs of K // segments
            inputs, the last one of a run possibly incomplete.
        method: "magnitude" and "activation" only choose a mask, by |w| or by |w| times the norm of the weight's
            input (Wanda), and leave the kept weights; "reconstruction" refits them as well.
        effort: how masks are chosen for a reconstruction; "fast" in one sweep that spreads errors (SparseGPT),
            "balanced" and "thorough" iteratively (ALPS, then swaps within stripes).
        scores: (K, O), a score per weight to choose the mask from instead; the kept weights are refitted all the same
            if the method is "reconstruction".
        alpha: how much of the earlier layers' errors the target corrects; None chooses it on held-out rows.

    Returns:
        The pruned kernel, its mask, and its errors.

    Raises:
        ValueError: for shapes or names that make no sense, for a kernel that is not finite, and for moments in blocks
            that cut stripes.
    """
    pattern = Pattern.of(m_by_n, "m_by_n")
    _check_name("method", method, METHODS)
    _check_name("effort", effort, EFFORTS)
    given = np.asarray(weight)
    size = inputs.moments.size
    if given.ndim != 2 or given.shape[0] != size:
        raise ValueError(f"weight must be of shape ({size}, outputs), as the moments' inputs are; got {given.shape}")
    if segments < 1 or size % segments:
        raise ValueError(f"{size} inputs cannot be {segments} segments of equal length")
    dense = given.astype(np.float32)
    if not np.isfinite(dense).all():
        raise ValueError("weight has values that are NaN, infinite, or too large for float32")
    if scores is not None and np.shape(scores) != given.shape:
        raise ValueError(f"scores must be of the weight's shape {given.shape}, got {np.shape(scores)}")
    if alpha is not None and not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be from 0 to 1, got {alpha!r}")
    magnitude = m_by_n_rows(np.abs(dense), pattern, segments)
    if method == "reconstruction":
        correction = choose_correction(dense, inputs) if alpha is None else Correction(alpha)
    else:
        correction = Correction(0.0)
    if scores is not None:
        mask = m_by_n_rows(np.asarray(scores), pattern, segments)
    elif method == "magnitude":
        mask = magnitude
    elif method == "activation":
        mask = m_by_n_rows(np.abs(dense) * inputs.input_norms()[:, None], pattern, segments)
    else:
        mask = np.zeros(dense.shape, bool)  # chosen below, block by block
    pruned = np.where(mask, dense, 0)
    if method == "reconstruction":
        target = corrected(dense, inputs, correction)
        # The data says nothing of these: they give way to the others of their stripe, and stay as they are if kept.
        dead = inputs.input_norms() == 0
        target[dead] = 1e-3 * dense[dead]
        for block in inputs.blocks:
            wanted = target[block.inputs] / block.scale[:, None]
            start = wanted
            if scores is None:
                within = _segments_in(block, size // segments, pattern.block)
                mask[block.inputs], start = choose_mask(block, wanted, pattern, within, effort)
            refitted = refit(block.matrix, wanted, mask[block.inputs], start)
            pruned[block.inputs] = refitted * block.scale[:, None]
        pruned[dead] = dense[dead]
    result = np.where(mask, pruned, 0).astype(given.dtype)
    return Reconstruction(
        weight=result,
        mask=mask,
        error_before=output_error(np.where(magnitude, dense, 0), dense, inputs.moments),
        error_after=output_error(result.astype(np.float32), dense, inputs.moments),
        alpha=correction.alpha,
        note=inputs.moments.note,
    )


def output_error(pruned: np.ndarray, dense: np.ndarray, moments: Moments) -> float:
    """‖X̂V - XW‖ / ‖XW‖ on the moments' sample of rows; 0 where both are zero."""
    wanted = product(moments.dense_sample, dense)
    norm, error = np.linalg.norm(wanted), np.linalg.norm(product(moments.sample, pruned) - wanted)
    return float(error / norm) if norm else float("inf") if error else 0.0


def _segments_in(block: GramBlock, segment: int, n: int) -> int:
    """How many segments, or 1 if it is a piece of one, a block of inputs holds: it must not cut a stripe."""
    start, stop = block.inputs.start, block.inputs.stop
    whole = start % segment == 0 and stop % segment == 0
    inside = start // segment == (stop - 1) // segment
    if not whole and not (inside and start % segment % n == 0 and (stop % segment == 0 or stop % segment % n == 0)):
        raise ValueError(
            f"the moments' block of inputs {start} to {stop} cuts a stripe of {n} within segments of {segment}: "
            "give the accumulator the same segments and stripe"
        )
    return (stop - start) // segment if whole else 1


def _check_name(what: str, name: str, names: tuple[str, ...]) -> None:
    if name not in names:
        raise ValueError(f"{what} must be one of {', '.join(map(repr, names))}; got {name!r}")
