"""A local search on masks: a kept weight and a dropped one of its stripe change places where the refitted loss falls.

For a column with support S and refitted weights v, let P be the inverse of A's part on S and g the gradient A(T - V),
which is zero on S. Dropping a costs v_a² / P_aa after a refit, and what adding j then gains has a closed form in P too.
P differs from column to column; but how much of an input the kept half of the others cannot explain hardly depends on
which half that is, so that one matrix serves for all columns: the mean of P over random supports (``half_explained``).
Its gains only propose; a column takes its swaps if its loss after the refit is lower, and proposes fewer next time if
not. So the loss never rises.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np

from tfmot_asp.calibration.factors import GramBlock
from tfmot_asp.calibration.linear_algebra import product
from tfmot_asp.calibration.refit import refit
from tfmot_asp.pattern import Pattern

REFIT_STEPS = 8
"""Steps of conjugate gradients after each round of swaps: weights start from those of the round before."""


def swap_search(
    block: GramBlock,
    target: np.ndarray,
    mask: np.ndarray,
    weight: np.ndarray,
    pattern: Pattern,
    segments: int = 1,
    *,
    rounds: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Improves a mask by rounds of swaps within stripes.

    Args:
        block: A and its factors.
        target: T, (K, O).
        mask: (K, O) bool, that keeps the pattern.
        weight: V to start from, (K, O).
        pattern: zeros in every so many consecutive rows.
        segments: equal runs of rows that stripes lie within.
        rounds: at most; it ends where no column proposes anything.

    Returns:
        The mask and the weights refitted to it, (K, O).
    """
    stripes = _Grid(target.shape[0], pattern.block, segments)
    precision = _Precision(block, pattern, stripes)
    best = _refitted(block.matrix, target, mask, weight)
    threshold = np.zeros_like(best.loss)
    for _ in range(rounds):
        swaps = _propose(best, precision, stripes)
        largest = swaps.gain.max(0)
        chosen = (swaps.gain > 0) & (swaps.gain >= threshold * largest) & (largest > 1e-7 * best.loss)
        if not chosen.any():
            break
        tried = _refitted(block.matrix, target, *swaps.applied(best, chosen, stripes))
        better = tried.loss < best.loss
        for mine, new in zip(best, tried, strict=True):
            np.copyto(mine, new, where=better)
        threshold = np.where(better, threshold / 2, (1 + 2 * threshold) / 3)
    return best.mask, best.weight


class _State(NamedTuple):
    """A mask, its refitted weights, the gradient A(T - V), and each column's loss."""

    mask: np.ndarray
    weight: np.ndarray
    gradient: np.ndarray
    loss: np.ndarray


def _refitted(matrix: Any, target: np.ndarray, mask: np.ndarray, start: np.ndarray) -> _State:
    weight = refit(matrix, target, mask, start, REFIT_STEPS)
    missing = target - weight
    gradient = product(matrix, missing)
    return _State(mask.copy(), weight, gradient, np.einsum("ko,ko->o", missing, gradient))


class _Grid:
    """Rows cut into stripes of n; short ones are filled up with rows that are not there."""

    def __init__(self, rows: int, n: int, segments: int) -> None:
        length = rows // segments
        each = -(-length // n)
        places = np.full((segments, each * n), -1)
        places[:, :length] = np.arange(rows).reshape(segments, length)
        self.n = n
        self.rows = places.reshape(segments * each, n)
        self.present = self.rows >= 0
        self._whole = bool(self.present.all())
        self._back = np.flatnonzero(self.present)

    def split(self, array: np.ndarray) -> np.ndarray:
        """(K, O) to (n, stripes, O), by place in the stripe; what is not there is zero or False."""
        if not self._whole:
            padded = np.zeros((self.rows.size, array.shape[1]), array.dtype)
            padded[self._back] = array
            array = padded
        return array.reshape(*self.rows.shape, -1).swapaxes(0, 1)

    def join(self, places: np.ndarray) -> np.ndarray:
        """The inverse of ``split``."""
        array = places.swapaxes(0, 1).reshape(self.rows.size, -1)
        return array if self._whole else array[self._back]


class _Precision:
    """The mean of P over random supports, within each stripe: (stripes, 1) for every pair of places."""

    def __init__(self, block: GramBlock, pattern: Pattern, stripes: _Grid) -> None:
        share = 1 - pattern.sparsity
        _, mean = block.half_explained(share)
        rows = np.maximum(stripes.rows, 0)
        within = mean[rows[:, :, None], rows[:, None, :]]  # (stripes, n, n)
        own = np.diagonal(within, axis1=1, axis2=2) / share
        limit = 0.9 * np.sqrt(own[:, :, None] * own[:, None, :])
        self.own = own.astype(np.float32)
        self.pair = np.clip(within / share**2, -limit, limit).astype(np.float32)


class _Swaps(NamedTuple):
    """The best swap of each stripe and column, (stripes, O): what it gains, which places, the added weight's value."""

    gain: np.ndarray
    dropped: np.ndarray
    added: np.ndarray
    value: np.ndarray

    def applied(self, state: _State, chosen: np.ndarray, stripes: _Grid) -> tuple[np.ndarray, np.ndarray]:
        """The mask and the weights to start the refit from, with the chosen swaps made."""
        mask, weight = stripes.split(state.mask).copy(), stripes.split(state.weight).copy()
        where = np.nonzero(chosen)
        dropped, added = (self.dropped[where], *where), (self.added[where], *where)
        mask[dropped], weight[dropped] = False, 0
        mask[added], weight[added] = True, self.value[where]
        return stripes.join(mask), stripes.join(weight)


def _propose(state: _State, precision: _Precision, stripes: _Grid) -> _Swaps:
    """The swap of the highest estimated gain in each stripe and column; gain 0 where none would gain."""
    kept, weight, gradient = (stripes.split(array) for array in (state.mask, state.weight, state.gradient))
    shape = kept.shape[1:]
    best = _Swaps(*(np.zeros(shape, dtype) for dtype in (np.float32, np.int16, np.int16, np.float32)))
    for a, j in itertools.permutations(range(stripes.n), 2):
        own_j, pair = precision.own[:, j, None], precision.pair[:, a, j, None]
        # P of the support without j, and j's regression on a, from P of the support with both.
        own_a = precision.own[:, a, None] - pair**2 / own_j
        slope = -pair / own_j
        pull = gradient[j] + (slope / own_a) * weight[a]
        stiffness = 1 / own_j + slope**2 / own_a
        gain = pull * pull / stiffness - weight[a] * weight[a] / own_a
        possible = kept[a] & ~kept[j] & stripes.present[:, j, None] & (gain > best.gain)
        for mine, new in zip(best, (gain, a, j, pull / stiffness), strict=True):
            np.copyto(mine, new, where=possible, casting="unsafe")
    return best
