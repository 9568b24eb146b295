"""Calibration data as batches by input name, and the ranges of the activations that they give."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

# Where an open batch axis leaves the choice: little, since the activations of all layers are kept at once.
_BATCH = 8

METHODS = ("percentile", "mse", "entropy", "minmax")

_BINS = 2048
_TIE = 1e-9
_LEVELS = 128  # magnitudes of int8: 0 to 127


def calibration_batches(data: Any, specs: Sequence[tf.TensorSpec]) -> Iterator[dict[str, np.ndarray]]:
    """Calibration data as one dict of arrays per batch, checked.

    Args:
        data: one of

            - an array or tensor, for a model with one input: all samples;
            - a tuple of arrays, one per input, or a dict of arrays by input name: all samples;
            - a ``tf.data.Dataset``, generator, list or other iterable of batches, or a function that returns one. A
              batch is an array, a tuple of arrays, or a dict; labels that follow the inputs are left out.
        specs: the model's inputs, with names.

    Yields:
        Batches, in the dtypes of ``specs``.

    Raises:
        ValueError: if there is no data, a batch does not fit the inputs, or it holds NaN or infinity.
    """
    if data is None:
        raise ValueError(
            "precision='int8' needs calibration_data: a few hundred typical inputs, as an array, a dict of arrays by "
            "input name, or a tf.data.Dataset of batches"
        )
    if isinstance(data, (str, bytes)):
        raise ValueError(f"calibration_data must hold inputs, got {data!r}; load the file first")
    if isinstance(data, tf.data.Dataset) and int(data.cardinality()) == tf.data.INFINITE_CARDINALITY:
        raise ValueError("calibration_data is an endless dataset; say how much of it to use: dataset.take(100)")
    count = 0
    for count, batch in enumerate(_split(data, specs), 1):
        yield _checked(batch, specs, count)
    if not count:
        raise ValueError("calibration_data is empty: no batch came out of it")


def _split(data: Any, specs: Sequence[tf.TensorSpec]) -> Iterator[dict[str, np.ndarray]]:
    if callable(data) and not tf.is_tensor(data):
        data = data()
    is_whole = isinstance(data, (np.ndarray, Mapping)) or tf.is_tensor(data)
    is_whole = is_whole or (isinstance(data, tuple) and len(data) == len(specs) > 1 and all(map(_is_array, data)))
    if not is_whole:
        if not isinstance(data, Iterable):
            raise ValueError(f"calibration_data must be arrays or an iterable of batches, got a {type(data).__name__}")
        yield from (_by_name(batch, specs) for batch in data)
        return
    samples = _by_name(data, specs)
    counts = {name: array.shape[0] if array.ndim else 0 for name, array in samples.items()}
    if len(set(counts.values())) != 1:
        raise ValueError(f"calibration_data has different numbers of samples: {counts}")
    fixed = next((spec.shape[0] for spec in specs if spec.shape.rank and spec.shape[0] is not None), None)
    size, total = fixed or _BATCH, next(iter(counts.values()))
    if fixed and total < fixed:
        raise ValueError(
            f"calibration_data has {total} samples, less than the one batch of {fixed} that the model takes"
        )
    for start in range(0, total - total % size if fixed else total, size):
        yield {name: array[start : start + size] for name, array in samples.items()}


def _is_array(thing: Any) -> bool:
    return isinstance(thing, np.ndarray) or tf.is_tensor(thing)


def _by_name(batch: Any, specs: Sequence[tf.TensorSpec]) -> dict[str, np.ndarray]:
    """A batch in any of its forms as a dict."""
    names = [spec.name for spec in specs]
    if isinstance(batch, (tuple, list)) and batch:
        nested = isinstance(batch[0], (tuple, list, Mapping))
        if nested or (len(names) == 1 and (_is_array(batch[0]) and len(batch) <= 3)):
            batch = batch[0]  # (inputs, labels) or (inputs, labels, weights)
    if isinstance(batch, Mapping):
        if set(batch) != set(names):
            raise ValueError(f"calibration_data has the inputs {sorted(map(str, batch))}, the model {sorted(names)}")
        return {name: np.asarray(batch[name]) for name in names}
    values = list(batch) if isinstance(batch, (tuple, list)) and len(names) > 1 else [batch]
    if len(values) != len(names):
        raise ValueError(f"calibration_data gives {len(values)} inputs, the model takes {len(names)}: {names}")
    return {name: np.asarray(value) for name, value in zip(names, values, strict=True)}


def _checked(batch: dict[str, np.ndarray], specs: Sequence[tf.TensorSpec], number: int) -> dict[str, np.ndarray]:
    sizes = set()
    for spec in specs:
        array, dtype = batch[spec.name], spec.dtype.as_numpy_dtype
        if not spec.shape.is_compatible_with(array.shape):
            hint = ""
            if spec.shape[1:].is_compatible_with(array.shape):
                hint = "; its batch axis is missing: dataset.batch(32)"
            raise ValueError(
                f"calibration_data, batch {number}: input {spec.name!r} has shape {array.shape}, "
                f"the model takes {tuple(spec.shape)}{hint}"
            )
        if array.dtype.kind not in "biuf" or (array.dtype.kind == "f" and not spec.dtype.is_floating):
            raise ValueError(
                f"calibration_data, batch {number}: input {spec.name!r} is of type {array.dtype}, "
                f"the model takes {spec.dtype.name}"
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"calibration_data, batch {number}: input {spec.name!r} holds NaN or infinity")
        batch[spec.name] = np.ascontiguousarray(array.astype(dtype, copy=False))
        sizes.add(array.shape[0] if array.ndim else 1)
    if len(sizes) > 1:
        raise ValueError(f"calibration_data, batch {number}: inputs differ in their number of samples: {sorted(sizes)}")
    if sizes == {0}:
        raise ValueError(f"calibration_data, batch {number} is empty")
    return batch


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
