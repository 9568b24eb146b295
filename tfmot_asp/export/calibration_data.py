"""Calibration data, in whatever form it is given, as batches by input name."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_asp.calibration.data import Inputs, iterate
from tfmot_asp.graph.probes import NamedArrays

# Where an open batch axis leaves the choice: little, since the activations of all layers are kept at once.
_BATCH = 8

# Batches that are kept for the comparison of outputs.
_COMPARED = 4


def calibration_batches(data: Any, specs: Sequence[tf.TensorSpec]) -> Iterator[NamedArrays]:
    """Calibration data as one dict of arrays per batch, checked.

    Args:
        data: one of

            - an array or tensor, for a model with one input: all samples;
            - a list or tuple of arrays, one per input, or a dict of arrays by input name: all samples;
            - a ``tf.data.Dataset``, generator, list or other iterable of batches, or a function that returns one. A
              batch is an array, a list or tuple of arrays, or a dict.

            Labels and sample weights that follow the inputs, as Keras takes them, are left out.
        specs: the model's inputs, with names.

    Yields:
        Batches, in the dtypes of ``specs``.

    Raises:
        TypeError: for something that is no data.
        ValueError: if there is none, a batch does not fit the inputs, or it holds NaN or infinity.
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


def _split(data: Any, specs: Sequence[tf.TensorSpec]) -> Iterator[NamedArrays]:
    inputs = Inputs("the model", list(specs), strict=True)
    whole = inputs.as_whole(data)
    if whole is None:
        yield from (_by_name(batch, specs, inputs) for batch in iterate(data))
        return
    samples = _by_name(whole[0], specs, inputs)
    numbers = {spec.name for spec in specs if spec.shape.rank == 0}
    counts = {name: array.shape[0] if array.ndim else 0 for name, array in samples.items() if name not in numbers}
    if len(set(counts.values())) != 1:
        raise ValueError(f"calibration_data has different numbers of samples: {counts}")
    fixed = next((spec.shape[0] for spec in specs if spec.shape.rank and spec.shape[0] is not None), None)
    size, total = fixed or _BATCH, next(iter(counts.values()))
    if fixed and total < fixed:
        raise ValueError(
            f"calibration_data has {total} samples, less than the one batch of {fixed} that the model takes"
        )
    for start in range(0, total - total % size if fixed else total, size):
        yield {name: a if name in numbers else a[start : start + size] for name, a in samples.items()}


def _by_name(batch: Any, specs: Sequence[tf.TensorSpec], inputs: Inputs) -> NamedArrays:
    """Samples in any of their forms as a dict."""
    names = [spec.name for spec in specs]
    batch, _ = inputs.split(batch)
    if isinstance(batch, Mapping):
        if set(batch) != set(names):
            raise ValueError(f"calibration_data has the inputs {sorted(map(str, batch))}, the model {sorted(names)}")
        return {name: np.asarray(batch[name]) for name in names}
    values = list(batch) if isinstance(batch, (tuple, list)) and len(names) > 1 else [batch]
    inputs.check_number(len(values), "calibration_data")
    return {name: np.asarray(value) for name, value in zip(names, values, strict=True)}


def _checked(batch: NamedArrays, specs: Sequence[tf.TensorSpec], number: int) -> NamedArrays:
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
        batch[spec.name] = np.asarray(array, dtype, order="C")
        if spec.shape.rank != 0:
            sizes.add(array.shape[0] if array.ndim else 1)
    if len(sizes) > 1:
        raise ValueError(f"calibration_data, batch {number}: inputs differ in their number of samples: {sorted(sizes)}")
    if sizes == {0}:
        raise ValueError(f"calibration_data, batch {number} is empty")
    return batch


class CalibrationBatches:
    """Calibration data that is read once, from the first batch on, which is checked at once.

    Attributes:
        samples: how many ``all`` gave.
    """

    def __init__(self, data: Any, specs: Sequence[tf.TensorSpec]) -> None:
        """Reads the first batch; ``data`` and ``specs`` are as in ``calibration_batches``."""
        self._rest = calibration_batches(data, specs)
        self._kept = [next(self._rest)]
        self.samples = 0

    def all(self) -> Iterator[NamedArrays]:
        """Every batch; the first few are kept."""
        for batch in itertools.chain(list(self._kept), self._rest):
            if batch is not self._kept[0] and len(self._kept) < _COMPARED:
                self._kept.append(batch)
            self.samples += max((array.shape[0] if array.ndim else 1 for array in batch.values()), default=0)
            yield batch

    def some(self) -> list[NamedArrays]:
        """The first few batches, for comparisons."""
        while len(self._kept) < _COMPARED:
            batch = next(self._rest, None)
            if batch is None:
                break
            self._kept.append(batch)
        return self._kept
