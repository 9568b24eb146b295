"""A local search on masks: a kept weight and a dropped one of its stripe change places where the refitted loss falls.

For a column with support S and refitted weights v, let P be the inverse of A's part on S and g the gradient A(T - V),
which is zero on S. Dropping a costs v_a² / P_aa after a refit, and what adding j then gains has a closed form in P too.
P differs from column to column; but how much of an input the kept half of the others cannot explain hardly depends on
which half that is, so that one matrix serves for all columns: the mean of P over random supports (``half_explained``).
Its gains only propose; a column takes its swaps if its loss after the refit is lower, and proposes fewer next time if
not. So the loss never rises.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_asp.calibration.factors import Block
from tfmot_asp.calibration.refit import refit

REFIT_STEPS = 8
"""Steps of conjugate gradients after each round of swaps: weights start from the round before."""


def swap_search(
    block: Block, target: Any, mask: Any, m_by_n: tuple[int, int], segments: int = 1, *, rounds: int
) -> tuple[Any, Any]:
    """Improves a mask by rounds of swaps within stripes.

    Args:
        block: A and its factors.
        target: T, (K, O).
        mask: (K, O) bool tensor of the m by n pattern.
        m_by_n: m zeros in every n consecutive rows.
        segments: equal runs of rows that stripes lie within.
        rounds: at most; it ends where no column proposes anything.

    Returns:
        The mask and the weights refitted to it, (K, O).
    """
    stripes = _Stripes(target.shape[0], m_by_n[1], segments)
    precision = _Precision(block, m_by_n, stripes)
    best = _State.refitted(block.matrix, target, mask, target, 30)
    threshold = tf.zeros_like(best.loss)
    for _ in range(rounds):
        swaps = _propose(best, precision, stripes)
        largest = tf.reduce_max(swaps.gain, 0)
        chosen = (swaps.gain > 0) & (swaps.gain >= threshold * largest)
        chosen &= largest > 1e-7 * best.loss
        if not tf.reduce_any(chosen):
            break
        flipped, start = swaps.applied(best, chosen, stripes)
        tried = _State.refitted(block.matrix, target, flipped, start, REFIT_STEPS)
        better = tried.loss < best.loss
        best = best.where(better, tried)
        threshold = tf.where(better, threshold / 2, (1 + 2 * threshold) / 3)
    return best.mask, best.weight


@dataclass(frozen=True)
class _State:
    """A mask, its refitted weights, the gradient A(T - V), and each column's loss."""

    mask: Any
    weight: Any
    gradient: Any
    loss: Any

    @classmethod
    def refitted(cls, matrix: Any, target: Any, mask: Any, start: Any, steps: int) -> _State:
        weight = refit(matrix, target, mask, start, steps)
        gradient = matrix @ (target - weight)
        return cls(mask, weight, gradient, tf.reduce_sum((target - weight) * gradient, 0))

    def where(self, better: Any, other: _State) -> _State:
        return _State(
            tf.where(better, other.mask, self.mask),
            tf.where(better, other.weight, self.weight),
            tf.where(better, other.gradient, self.gradient),
            tf.where(better, other.loss, self.loss),
        )


class _Stripes:
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

    def split(self, array: Any) -> list[Any]:
        """(K, O) to n arrays (stripes, O), one per place in the stripe; what is not there is zero or False."""
        if not self._whole:
            array = tf.concat([array, tf.zeros_like(array[:1])], 0)
            array = tf.gather(array, np.where(self.present, self.rows, array.shape[0] - 1).ravel())
        return tf.unstack(tf.reshape(array, (len(self.rows), self.n, -1)), axis=1)

    def join(self, places: list[Any]) -> Any:
        """The inverse of ``split``."""
        array = tf.reshape(tf.stack(places, 1), (self.rows.size, -1))
        return array if self._whole else tf.gather(array, self._back)


class _Precision:
    """The mean of P over random supports, within each stripe: (stripes, 1) for every pair of places."""

    def __init__(self, block: Block, m_by_n: tuple[int, int], stripes: _Stripes) -> None:
        m, n = m_by_n
        share = (n - m) / n
        _, mean = block.half_explained(share)
        rows = np.maximum(stripes.rows, 0)
        within = mean[rows[:, :, None], rows[:, None, :]]  # (stripes, n, n)
        own = np.diagonal(within, axis1=1, axis2=2) / share
        limit = 0.9 * np.sqrt(own[:, :, None] * own[:, None, :])
        self.own = own.astype(np.float32)
        self.pair = np.clip(within / share**2, -limit, limit).astype(np.float32)


@dataclass(frozen=True)
class _Swaps:
    """The best swap of each stripe and column, (stripes, O): what it gains, which places, the added weight's value."""

    gain: Any
    dropped: Any
    added: Any
    value: Any

    def applied(self, state: _State, chosen: Any, stripes: _Stripes) -> tuple[Any, Any]:
        """The mask and the weights to start the refit from, with the chosen swaps made."""
        masks, weights = [], []
        for place, (kept, weight) in enumerate(
            zip(stripes.split(state.mask), stripes.split(state.weight), strict=True)
        ):
            drop, add = chosen & (self.dropped == place), chosen & (self.added == place)
            masks.append((kept & ~drop) | add)
            weights.append(tf.where(add, self.value, tf.where(drop, 0, weight)))
        return stripes.join(masks), stripes.join(weights)


def _propose(state: _State, precision: _Precision, stripes: _Stripes) -> _Swaps:
    """The swap of the highest estimated gain in each stripe and column; gain 0 where none would gain."""
    kept, weight = stripes.split(state.mask), stripes.split(state.weight)
    gradient = stripes.split(state.gradient)
    nothing, nowhere = tf.zeros_like(weight[0]), tf.zeros_like(weight[0], tf.int32)
    best = _Swaps(nothing, nowhere, nowhere, nothing)
    for a in range(stripes.n):
        for j in range(stripes.n):
            if a == j:
                continue
            own_a, own_j, pair = precision.own[:, a, None], precision.own[:, j, None], precision.pair[:, a, j, None]
            # P of the support without j, and j's regression on a, from P of the support with both.
            own_a = own_a - pair**2 / own_j
            slope = -pair / own_j
            pull = gradient[j] + (slope / own_a) * weight[a]
            stiffness = 1 / own_j + slope**2 / own_a
            gain = pull * pull / stiffness - weight[a] * weight[a] / own_a
            possible = kept[a] & ~kept[j] & stripes.present[:, j, None] & (gain > best.gain)
            best = _Swaps(
                tf.where(possible, gain, best.gain),
                tf.where(possible, a, best.dropped),
                tf.where(possible, j, best.added),
                tf.where(possible, pull / stiffness, best.value),
            )
    return best
