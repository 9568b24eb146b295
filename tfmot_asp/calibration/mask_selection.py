"""Which weights to keep: masks that lose little of the quadratic loss (V - T)ᵀ A (V - T) after the refit.

All in scaled coordinates (``factors``), in float32.
"""

from __future__ import annotations

import numpy as np

from tfmot_asp.calibration.factors import GramBlock
from tfmot_asp.calibration.linear_algebra import product
from tfmot_asp.calibration.swaps import swap_search
from tfmot_asp.masks import m_by_n_mask
from tfmot_asp.pattern import Pattern

OBS_BLOCK = 128
RHO_START = 0.3

SEARCHES = {"balanced": ((1.8, 1.6, 1.3), 100, 0.005, 1), "thorough": ((1.4, 1.3, 1.15), 200, 0.0, 8)}
"""Per effort: how ADMM's penalty grows, its steps at most, when it ends, and rounds of swaps after it."""


def m_by_n_rows(score: np.ndarray, pattern: Pattern, segments: int) -> np.ndarray:
    """The m by n mask of a (K, O) array of scores, its stripes within ``segments`` equal runs of rows."""
    rows, columns = score.shape
    mask = m_by_n_mask(score.reshape(segments, rows // segments, columns), 1, pattern)
    return np.asarray(mask).reshape(rows, columns)


def choose_mask(
    block: GramBlock, target: np.ndarray, pattern: Pattern, segments: int, effort: str
) -> tuple[np.ndarray, np.ndarray]:
    """The mask that an effort pays for, and weights near those that suit it best; see ``reconstruct``."""
    if effort == "fast":
        return obs_mask(block, target, pattern, segments), target
    growth, steps, at_rest, rounds = SEARCHES[effort]
    mask, weight = admm_mask(block, target, pattern, segments, growth=growth, steps=steps, at_rest=at_rest)
    return swap_search(block, target, mask, weight, pattern, segments, rounds=rounds)


def obs_mask(block: GramBlock, target: np.ndarray, pattern: Pattern, segments: int = 1) -> np.ndarray:
    """Goes through the rows once; what a dropped weight did is taken over by the rows after it as well as they can.

    The rule of Optimal Brain Surgeon in the form of SparseGPT (Frantar & Alistarh, ICML 2023): with UᵀU the inverse of
    A, the (w / U_ii)² largest of a stripe are kept, given what the rows before it have passed on.

    Args:
        block: A and its factors.
        target: T, (K, O).
        pattern: zeros in every so many consecutive rows.
        segments: equal runs of rows that stripes lie within.

    Returns:
        (K, O) bool, True where the weight is kept.
    """
    root = block.inverse_root
    pivots = np.diag(root)[:, None]
    work = target.copy()
    mask = np.empty(work.shape, bool)
    for stripes in _grouped(stripe_bounds(len(work), pattern.block, segments)):
        start, stop = stripes[0][0], stripes[-1][1]
        errors = np.empty((stop - start, work.shape[1]), work.dtype)
        for first, end in stripes:
            mask[first:end] = m_by_n_mask(np.square(work[first:end] / pivots[first:end]), 0, pattern)
            for row in range(first, end):
                errors[row - start] = np.where(mask[row], 0, work[row] / root[row, row])
                work[row + 1 : stop] -= root[row, row + 1 : stop, None] * errors[row - start]
        work[stop:] -= product(root[start:stop, stop:], errors, transpose_left=True)
    return mask


def admm_mask(
    block: GramBlock,
    target: np.ndarray,
    pattern: Pattern,
    segments: int = 1,
    *,
    growth: tuple[float, float, float] = (1.8, 1.6, 1.3),
    steps: int = 100,
    at_rest: float = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Alternates between dense weights of least loss near sparse ones and sparse weights near the dense ones.

    The method of ALPS (Meng et al., NeurIPS 2024). The penalty rho that ties the two grows while the support changes.
    It starts from a share of the inputs' own scale: from a fixed number, masks of strongly correlated inputs freeze
    before the correlations have had their say.

    Args:
        block: A and its factors.
        target: T, (K, O).
        pattern: zeros in every so many consecutive rows.
        segments: equal runs of rows that stripes lie within.
        growth: what rho is multiplied by, every eighth step, while more than 10 %, more than 0.5 %, or anything of the
            support changes. Each new rho costs an inverse, as much as several steps.
        steps: iterations, at most; it ends where the support has come to rest.
        at_rest: share of the support that may still change in eight steps then.

    Returns:
        (K, O) bool, True where the weight is kept; and weights that are near the best for it.
    """
    rho = RHO_START * block.half_explained(1 - pattern.sparsity)[0]
    plus_rho = block.inverse_plus(rho)
    pull = product(block.matrix, target)
    settled = mask = m_by_n_rows(np.abs(target), pattern, segments)
    kept = np.count_nonzero(mask)
    sparse = target * mask
    dual = np.zeros_like(target)  # divided by rho
    for step in range(1, steps + 1):
        near = sparse - dual
        near *= np.float32(rho)
        near += pull
        near = product(plus_rho, near)
        near += dual
        mask = m_by_n_rows(np.abs(near), pattern, segments)
        np.multiply(near, mask, out=sparse)
        np.subtract(near, sparse, out=dual)
        if step % 8 == 0:
            changed = np.count_nonzero(mask != settled) / kept
            settled = mask
            if changed <= at_rest:
                break
            factor = growth[0] if changed > 0.1 else growth[1] if changed > 0.005 else growth[2]
            rho *= factor
            dual /= np.float32(factor)
            plus_rho = block.inverse_plus(rho)
    return mask, sparse


def stripe_bounds(rows: int, n: int, segments: int) -> list[tuple[int, int]]:
    """First row and the row after the last, of each stripe; the last of a segment may be short."""
    length = rows // segments
    return [
        (segment + first, segment + min(first + n, length))
        for segment in range(0, rows, length)
        for first in range(0, length, n)
    ]


def _grouped(stripes: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Whole stripes in groups of about ``OBS_BLOCK`` rows."""
    groups: list[list[tuple[int, int]]] = []
    for stripe in stripes:
        if not groups or stripe[1] - groups[-1][0][0] > OBS_BLOCK:
            groups.append([])
        groups[-1].append(stripe)
    return groups
