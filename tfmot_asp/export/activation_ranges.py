"""The ranges of activations: which magnitude of a tensor int8's 127 is to stand for."""

from __future__ import annotations

import numpy as np

METHODS = ("percentile", "mse", "entropy", "minmax")

_BINS = 2048
_TIE = 1e-9
_LEVELS = 128  # magnitudes of int8: 0 to 127


class Histogram:
    """How often a tensor's magnitudes occur, collected batch by batch in constant memory.

    The range doubles when a larger value comes, and neighbouring bins are merged; onnxruntime's own collectors keep all
    activations of all batches, or add bins without bound.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(_BINS, np.int64)
        self.limit = 0.0
        self.largest = 0.0

    def add(self, values: np.ndarray) -> None:
        """Counts the values of a batch, any shape."""
        magnitudes = np.abs(np.asarray(values, np.float64).reshape(-1))
        largest = float(magnitudes.max(initial=0.0))
        if not np.isfinite(largest):
            raise ValueError("an activation is NaN or infinite on the calibration data")
        if largest > self.limit:
            if self.limit == 0.0:
                zeros, self.limit = int(self.counts.sum()), largest
                self.counts[:] = 0
                self.counts[0] = zeros
            while self.limit < largest:
                self.limit *= 2
                self.counts[: _BINS // 2] = self.counts.reshape(-1, 2).sum(axis=1)
                self.counts[_BINS // 2 :] = 0
        self.largest = max(self.largest, largest)
        if self.limit == 0.0:
            self.counts[0] += magnitudes.size
        else:
            self.counts += np.histogram(magnitudes, _BINS, range=(0.0, self.limit))[0]

    def range(self, method: str, percentile: float) -> float:
        """The magnitude that int8's 127 is to stand for; 0 if all values were zero."""
        if method == "minmax" or self.limit == 0.0:
            return self.largest
        if method == "percentile":
            share = np.cumsum(self.counts) / self.counts.sum()
            bins = int(np.searchsorted(share, percentile / 100)) + 1
        else:
            bins = (_entropy_bins if method == "entropy" else _mse_bins)(self.counts)
        return min(bins * self.limit / _BINS, self.largest)


def _mse_bins(counts: np.ndarray) -> int:
    """How many bins to keep so that rounding and clipping make the least squared error."""
    top = int(np.flatnonzero(counts)[-1]) + 1
    centers = np.arange(_BINS) + 0.5
    best, least = top, np.inf
    for bins in range(_LEVELS // 2, top + 1):
        step = bins / (_LEVELS - 1)
        levels = np.minimum(np.rint(centers / step), _LEVELS - 1)
        error = float(np.dot(counts, (centers - levels * step) ** 2))
        if error < least:
            best, least = bins, error
    return best


def _entropy_bins(counts: np.ndarray) -> int:
    """How many bins to keep so that 128 levels lose the least information (Migacz, GTC 2017).

    For each candidate, the values beyond it are clipped into its last bin; the distribution is then compared, by its
    Kullback-Leibler divergence, with itself on 128 levels. The first bin, of zeros, says nothing about where to clip:
    it counts as the second. Of candidates that are equally good the one that clips least is taken: images of few grey
    levels lose nothing even if all are clipped to one.
    """
    top = int(np.flatnonzero(counts)[-1]) + 1
    counts = np.concatenate([counts[1:2], counts[1:]])
    if not counts.any():
        return top
    best, best_divergence = top, np.inf
    for bins in range(_LEVELS, max(top, _LEVELS) + 1):
        kept = counts[:bins].astype(np.float64)
        clipped = kept.copy()
        clipped[-1] += counts[bins:].sum()
        edges = np.arange(_LEVELS) * bins // _LEVELS
        sums = np.add.reduceat(kept, edges)
        nonzero = np.add.reduceat((kept > 0).astype(np.float64), edges)
        level = np.divide(sums, nonzero, out=np.zeros(_LEVELS), where=nonzero > 0)
        coarse = np.repeat(level, np.diff(np.append(edges, bins))) * (kept > 0)
        present = clipped > 0
        if not coarse.any() or (coarse[present] == 0).any():
            continue  # clipping put values where the candidate has none: infinitely far apart
        p, q = clipped / clipped.sum(), coarse / coarse.sum()
        divergence = float(np.sum(p[present] * np.log(p[present] / q[present])))
        if divergence <= best_divergence + _TIE:
            best, best_divergence = bins, min(divergence, best_divergence)
    return best
