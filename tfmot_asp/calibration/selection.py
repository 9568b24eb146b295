"""Which weights to keep: masks that lose little of the quadratic loss (V - T)ᵀ A (V - T) after the refit.

All in scaled coordinates (``factors``), on float32 tensors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_asp.calibration.factors import Block
from tfmot_asp.calibration.swaps import swap_search
from tfmot_asp.masks import m_by_n_mask

OBS_BLOCK = 128
RHO_START = 0.3

SEARCHES = {"balanced": ((1.3, 1.2, 1.1), 100, 2), "thorough": ((1.15, 1.1, 1.05), 200, 8)}
"""Per effort: how ADMM's penalty grows, its steps at most, and rounds of swaps after it."""


def m_by_n_rows(score: Any, m_by_n: tuple[int, int], segments: int) -> Any:
    """The m by n mask of a (K, O) array or tensor of scores, its stripes within ``segments`` equal runs of rows."""
    rows, columns = score.shape
    if segments == 1:
        return m_by_n_mask(score, 0, m_by_n)
    reshape = tf.reshape if tf.is_tensor(score) else np.reshape
    return reshape(m_by_n_mask(reshape(score, (segments, rows // segments, columns)), 1, m_by_n), (rows, columns))


def choose_mask(block: Block, target: Any, m_by_n: tuple[int, int], segments: int, effort: str) -> tuple[Any, Any]:
    """The mask that an effort pays for, and weights near those that suit it best; see ``reconstruct``."""
    if effort == "fast":
        return obs_mask(block, target, m_by_n, segments), target
    growth, steps, rounds = SEARCHES[effort]
    mask = admm_mask(block, target, m_by_n, segments, growth=growth, steps=steps)
    return swap_search(block, target, mask, m_by_n, segments, rounds=rounds)


def obs_mask(block: Block, target: Any, m_by_n: tuple[int, int], segments: int = 1) -> Any:
    """Goes through the rows once; what a dropped weight did is taken over by the rows after it as well as they can.

    The rule of Optimal Brain Surgeon in the form of SparseGPT (Frantar & Alistarh, ICML 2023): with UᵀU the inverse of
    A, the (w / U_ii)² largest of a stripe are kept, given what the rows before it have passed on.

    Args:
        block: A and its factors.
        target: T, (K, O).
        m_by_n: m zeros in every n consecutive rows.
        segments: equal runs of rows that stripes lie within.

    Returns:
        (K, O) bool tensor, True where the weight is kept.
    """
    root: np.ndarray = block.inverse_root
    pivots = np.diag(root)[:, None]
    work: np.ndarray = np.array(target)
    mask = np.empty(work.shape, bool)
    for stripes in _grouped(stripe_bounds(len(work), m_by_n[1], segments)):
        start, stop = stripes[0][0], stripes[-1][1]
        errors = np.empty((stop - start, work.shape[1]), work.dtype)
        for first, end in stripes:
            mask[first:end] = m_by_n_mask(np.square(work[first:end] / pivots[first:end]), 0, m_by_n)
            for row in range(first, end):
                errors[row - start] = np.where(mask[row], 0, work[row] / root[row, row])
                work[row + 1 : stop] -= root[row, row + 1 : stop, None] * errors[row - start]
        work[stop:] -= tf.matmul(root[start:stop, stop:], errors, transpose_a=True).numpy()
    return tf.constant(mask)


def admm_mask(
    block: Block,
    target: Any,
    m_by_n: tuple[int, int],
    segments: int = 1,
    *,
    growth: tuple[float, float, float] = (1.3, 1.2, 1.1),
    steps: int = 100,
) -> Any:
    """Alternates between dense weights of least loss near sparse ones and sparse weights near the dense ones.

    The method of ALPS (Meng et al., NeurIPS 2024). The penalty rho that ties the two grows while the support changes.
    It starts from a share of the inputs' own scale: from a fixed number, masks of strongly correlated inputs freeze
    before the correlations have had their say.

    Args:
        block: A and its factors.
        target: T, (K, O).
        m_by_n: m zeros in every n consecutive rows.
        segments: equal runs of rows that stripes lie within.
        growth: what rho is multiplied by, every third step, while more than 10 %, more than 0.5 %, or anything of the
            support changes.
        steps: iterations, at most; it ends where the support has come to rest.

    Returns:
        (K, O) bool tensor, True where the weight is kept.
    """
    rho = RHO_START * block.half_explained(1 - m_by_n[0] / m_by_n[1])[0]
    plus_rho = block.inverse_plus(rho)
    pull = block.matrix @ target
    settled = mask = m_by_n_rows(tf.abs(target), m_by_n, segments)
    kept = np.count_nonzero(mask)
    sparse = tf.where(mask, target, 0)
    dual = tf.zeros_like(target)
    for step in range(1, steps + 1):
        dense = plus_rho @ (pull - dual + rho * sparse)
        near = dense + dual / rho
        mask = m_by_n_rows(tf.abs(near), m_by_n, segments)
        sparse = tf.where(mask, near, 0)
        dual += rho * (dense - sparse)
        if step % 3 == 0:
            changed = np.count_nonzero(mask != settled) / kept
            settled = mask
            if not changed:
                break
            rho *= growth[0] if changed > 0.1 else growth[1] if changed > 0.005 else growth[2]
            plus_rho = block.inverse_plus(rho)
    return mask


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
