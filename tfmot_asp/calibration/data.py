"""Calibration data in whatever form it comes: arrays, batches, generators, datasets, made into a list of batches.

Keras' conventions hold: a batch is x or a tuple (x, y[, sample_weight]); x is an array, or a list or dict of arrays
where the model has several inputs. Labels are ignored.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_asp.graph.inputs import describe, known_inputs

logger = logging.getLogger(__name__)

BATCH_SIZE = 32
"""How many samples of an array make a batch."""


@dataclass(frozen=True, eq=False)
class CalibrationBatch:
    """A batch of calibration data.

    Attributes:
        inputs: what the model is called on: a tensor, or a list or dict of them.
        weights: sample weights, (samples,) or (samples, positions); positions of weight 0 are padding. None: all count.
        samples: how many there are.
    """

    inputs: Any
    weights: np.ndarray | None
    samples: int

    @property
    def leaves(self) -> list[tf.Tensor]:
        """The inputs one by one, in the order in which a traced function takes them."""
        return tf.nest.flatten(self.inputs)


def collect(model: Any, data: Any, samples: int | None = None) -> list[CalibrationBatch]:
    """Reads calibration data.

    Args:
        model: that it is for: its inputs tell several inputs from several batches, and shapes are checked with them.
        data: an array, or a dict of arrays; a list of arrays, one for each input of the model; a tuple (x, y[, w]) of
            these; or batches: a list, any iterable, a generator function, a ``tf.data.Dataset``, a Keras ``Sequence``
            or ``PyDataset``.
        samples: how many to use: of arrays evenly spaced ones, of batches the first; None uses all.

    Returns:
        The batches; at least one, each with at least one sample.

    Raises:
        TypeError: for something that is no data.
        ValueError: if there is none, or it has NaN or infinite values, or its shapes do not fit the model.
    """
    if samples is not None and (isinstance(samples, bool) or int(samples) != samples or samples < 1):
        raise ValueError(f"calibration_samples must be a positive number of samples, or None for all; got {samples!r}")
    inputs = Inputs.of_model(model)
    whole = inputs.as_whole(data)
    if whole is not None:
        batches = _cut(*whole, samples)
    else:
        _check_ends(data, samples)
        batches = _limited(map(inputs.split, iterate(data)), samples)
    found: list[CalibrationBatch] = []
    for x, weights in batches:
        x = inputs.prepared(x, f"batch {len(found)}")
        count = int(tf.nest.flatten(x)[0].shape[0])
        if count:
            found.append(CalibrationBatch(x, _checked_weights(weights, count), count))
    if not found:
        raise ValueError(
            "calibration_data holds no sample. A generator that has been read to its end stays empty: give a fresh "
            "one, or the function that makes it"
        )
    return found


class Inputs:
    """What a model takes: how many inputs, of what shape and dtype, as far as it knows.

    Args:
        title: what to call the model.
        known: its inputs, a spec or a list or dict of them; None if they are not known.
        strict: whether all their sizes must be met, not only the number of axes.
    """

    def __init__(self, title: str, known: Any, strict: bool) -> None:
        self.title, self.known, self.strict = title, known, strict
        self.specs = None if self.known is None else [s for s in tf.nest.flatten(self.known) if hasattr(s, "shape")]
        self.count = None if self.specs is None else len(self.specs)

    @classmethod
    def of_model(cls, model: Any) -> Inputs:
        """Those of a model or layer."""
        known = known_inputs(model)
        inputs = known[0][0] if known and len(known[0]) == 1 else list(known[0]) if known and known[0] else None
        # What another model was first called with says how many axes there are, not how long they must be.
        strict = (
            getattr(model, "_is_graph_network", False)
            or getattr(model, "_inputs_struct", None) is not None
            or getattr(getattr(model, "_functional", None), "_inputs_struct", None) is not None
        )
        return cls(describe(model), inputs, bool(strict))

    def as_whole(self, data: Any) -> tuple[Any, Any] | None:
        """(x, sample_weight) if the data is arrays of all samples; None if it is batches."""
        if is_array(data):
            return data, None
        if isinstance(data, Mapping):
            if not data or not all(is_array(value) for value in data.values()):
                raise TypeError(f"a dict of calibration data must hold arrays by input name, got {_summary(data)}")
            return dict(data), None
        if isinstance(data, (list, tuple)) and data:
            if self.one_each(data):
                return list(data), None
            if isinstance(data, tuple) and len(data) in (2, 3) and self._is_x(data[0]) and _labels(data):
                return data[0], data[2] if len(data) == 3 else None
            if isinstance(data[0], (str, bytes, int, float, np.number)) or _is_nested_numbers(data[0]):
                return np.asarray(data), None
        return None

    def split(self, batch: Any) -> tuple[Any, Any]:
        """x and sample weights of one batch."""
        return (list(batch), None) if self.one_each(batch) else split(batch, self.count)

    def one_each(self, data: Any) -> bool:
        """Whether it is an array for each of several inputs; fitting ones, unless the model is sure what it takes."""
        if not isinstance(data, (list, tuple)) or self.count is None or not 1 < self.count == len(data):
            return False
        return self._fits(list(data)) or (self.strict and all(map(is_array, data)))

    def prepared(self, x: Any, where: str) -> Any:
        """x as tensors of the dtypes that the model takes, checked."""
        if isinstance(x, tuple):
            x = list(x)
        specs = self._specs_for(x)
        leaves = tf.nest.flatten(x)
        self._check_all_given(x, leaves, where)
        if not leaves or not all(is_array(leaf) or isinstance(leaf, (list, str, int, float)) for leaf in leaves):
            raise TypeError(f"{where} of calibration_data must hold arrays, got {_summary(x)}")
        tensors = [
            self._tensor(leaf, spec, where) for leaf, spec in zip(leaves, specs or [None] * len(leaves), strict=True)
        ]
        sizes = {int(tensor.shape[0]) for tensor in tensors}
        if len(sizes) > 1:
            raise ValueError(f"{where} of calibration_data has inputs of {sorted(sizes)} samples; they must agree")
        return tf.nest.pack_sequence_as(x, tensors)

    def _check_all_given(self, x: Any, leaves: list[Any], where: str) -> None:
        """Several inputs of a model that knows them: as many, or by their names."""
        if not self.strict or self.specs is None or len(self.specs) < 2:
            return
        if not isinstance(x, Mapping):
            self.check_number(len(leaves), f"{where} of calibration_data")
        elif not set(names := self._names()) <= set(x):
            raise ValueError(f"{where} of calibration_data has the inputs {sorted(x)}, {self.title} takes {names}")

    def check_number(self, given: int, what: str) -> None:
        """Raises ValueError if data, called ``what``, is not for as many inputs as the model is known to have."""
        names = self._names()
        if given != len(names):
            raise ValueError(
                f"{what} gives {given} inputs, {self.title} takes {len(names)}: {names}. Several inputs are a list or "
                "dict of arrays, for all samples or for each batch"
            )

    def _names(self) -> list[str]:
        return sorted(self.known) if isinstance(self.known, Mapping) else [spec.name for spec in self.specs or ()]

    def _tensor(self, leaf: Any, spec: Any, where: str) -> tf.Tensor:
        array = leaf if tf.is_tensor(leaf) else np.asarray(leaf)
        if isinstance(array, tf.RaggedTensor):
            array = array.to_tensor()
        tensor = tf.convert_to_tensor(array) if array.dtype != np.dtype("O") else tf.constant(array.tolist())
        if tensor.shape.rank == 0:
            raise ValueError(f"{where} of calibration_data is a single number; a batch has its samples on axis 0")
        if tensor.dtype.is_floating:
            finite = tf.math.is_finite(tensor)
            bad = int(tf.size(finite, tf.int64)) - int(tf.math.count_nonzero(finite))
            if bad:
                raise ValueError(
                    f"{where} of calibration_data has {bad} NaN or infinite values among {int(tf.size(tensor))}: what "
                    "is computed from them would be meaningless. Nothing was changed; leave such samples out"
                )
        if spec is not None:
            expected = self._shape(spec)
            if not expected.is_compatible_with(tensor.shape):
                missing = expected.rank == (tensor.shape.rank or 0) + 1
                hint = ": its batch axis is missing, as in x[None] or dataset.batch(32)" if missing else ""
                raise ValueError(
                    f"{where} of calibration_data has shape {tuple(tensor.shape)}, but {self.title} takes "
                    f"{tuple(expected)}{hint}"
                )
            both_floating = tensor.dtype.is_floating and spec.dtype.is_floating
            if tensor.dtype != spec.dtype and (both_floating or (self.strict and tf.string != tensor.dtype)):
                tensor = tf.cast(tensor, spec.dtype)
        elif tensor.dtype == tf.float64:
            tensor = tf.cast(tensor, tf.float32)
        return tensor

    def _shape(self, spec: Any) -> tf.TensorShape:
        if spec.shape.rank is None or not spec.shape.rank:
            return tf.TensorShape(None)
        return tf.TensorShape([None, *(spec.shape[1:] if self.strict else [None] * (spec.shape.rank - 1))])

    def _specs_for(self, x: Any) -> list[Any] | None:
        """The specs of the leaves of x, in their order; None where they are not known."""
        if self.specs is None:
            return None
        leaves = tf.nest.flatten(x)
        if isinstance(x, Mapping) and not isinstance(self.known, Mapping):
            by_name = {spec.name: spec for spec in self.specs}
            return [by_name.get(key) for key in sorted(x)]
        return self.specs if len(leaves) == len(self.specs) else None

    def _fits(self, arrays: list[Any]) -> bool:
        """Whether a list holds one array for each input, of equally many samples."""
        assert self.specs is not None
        if len(arrays) != self.count or not all(is_array(array) and len(array.shape) for array in arrays):
            return False
        shapes = map(self._shape, self.specs)
        same = len({int(array.shape[0]) for array in arrays}) == 1
        return same and all(s.is_compatible_with(a.shape) for s, a in zip(shapes, arrays, strict=True))

    def _is_x(self, value: Any) -> bool:
        if is_array(value) or (isinstance(value, Mapping) and all(is_array(item) for item in value.values())):
            return True
        return isinstance(value, (list, tuple)) and bool(self.count and self.count > 1) and self._fits(list(value))


def split(batch: Any, inputs: int | None) -> tuple[Any, Any]:
    """x and sample weights of a batch by Keras' conventions.

    Args:
        batch: x, or (x,), (x, y), (x, y, sample_weight).
        inputs: how many the model has; None if that is not known.

    Raises:
        ValueError: for a longer tuple.
    """
    if isinstance(batch, list) and 1 <= len(batch) <= 3:  # as PyTorch's loaders give (x, y)
        alone, several = is_array(batch[0]), isinstance(batch[0], (tuple, list, Mapping))
        if alone if inputs == 1 else several and not _is_nested_numbers(batch[0]):
            batch = tuple(batch)
    if not isinstance(batch, tuple):
        return batch, None
    if not 1 <= len(batch) <= 3:
        raise ValueError(
            f"a batch that is a tuple must be (x,), (x, y) or (x, y, sample_weight), got {len(batch)} entries; "
            "several inputs go in a list or dict"
        )
    return batch[0], batch[2] if len(batch) == 3 else None


def _cut(x: Any, weights: Any, samples: int | None) -> Iterator[tuple[Any, Any]]:
    """Arrays of all samples, in batches."""
    count = int(tf.nest.flatten(x)[0].shape[0])
    chosen = None
    if samples is not None and samples < count:
        chosen = np.linspace(0, count - 1, samples).round().astype(np.int64)
        count = samples

    def part(array: Any, start: int) -> Any:
        if chosen is None:
            return array[start : start + BATCH_SIZE]
        rows = chosen[start : start + BATCH_SIZE]
        return tf.gather(array, rows) if tf.is_tensor(array) else array[rows]

    for start in range(0, count, BATCH_SIZE):
        piece = tf.nest.map_structure(lambda array: part(array, start), x)  # noqa: B023 (called at once)
        yield piece, None if weights is None else part(np.asarray(weights), start)


def _limited(batches: Iterable[tuple[Any, Any]], samples: int | None) -> Iterator[tuple[Any, Any]]:
    """The first batches that have enough samples; of the last one only as many as are left."""
    left = samples
    for x, weights in batches:
        if left is None:
            yield x, weights
            continue
        first = tf.nest.flatten(x)[0]
        size = int(first.shape[0]) if hasattr(first, "shape") and len(first.shape) else len(first)
        if size > left:
            x = tf.nest.map_structure(lambda array: array[:left], x)  # noqa: B023 (called at once)
            weights = None if weights is None else weights[:left]
        yield x, weights
        left -= min(size, left)
        if not left:
            return


def _check_ends(data: Any, samples: int | None) -> None:
    endless = isinstance(data, tf.data.Dataset) and int(data.cardinality()) == tf.data.INFINITE_CARDINALITY
    if endless and samples is None:
        raise ValueError("calibration_data is a dataset without an end: say how many samples, calibration_samples=256")


def iterate(data: Any) -> Iterator[Any]:
    """The batches of anything that holds or gives batches.

    Raises:
        TypeError: for something that does neither.
    """
    # A list, Keras' Sequence and PyDataset; a tf.data.Dataset has a length, but no items.
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return (data[index] for index in range(len(data)))
    if hasattr(data, "__iter__"):
        return iter(data)
    if callable(data):
        return iterate(data())
    raise TypeError(
        "calibration_data must be an array, a dict of arrays, or an iterable of batches (a list, a generator function, "
        f"a tf.data.Dataset, ...), got {_summary(data)}"
    )


def _checked_weights(weights: Any, count: int) -> np.ndarray | None:
    if weights is None:
        return None
    if isinstance(weights, (list, tuple, Mapping)) and not _is_nested_numbers(weights):
        logger.warning("sample weights of several outputs say nothing about the inputs: calibration ignores them")
        return None
    array = np.asarray(weights, np.float32)
    if array.ndim < 1 or len(array) != count:
        raise ValueError(f"sample_weight has shape {array.shape}, its batch has {count} samples")
    if not np.isfinite(array).all() or (array < 0).any():
        raise ValueError("sample_weight must be finite and not negative")
    return array


def _labels(data: tuple[Any, ...]) -> bool:
    """Whether the second entry of a tuple can be the labels of the first: one for each sample, or none."""
    first, second = tf.nest.flatten(data[0])[0], data[1]
    if second is None:
        return True
    leaves = tf.nest.flatten(second)
    return all(is_array(leaf) and len(leaf.shape) and leaf.shape[0] == first.shape[0] for leaf in leaves)


def is_array(value: Any) -> bool:
    """Whether a value is an array or tensor, of any library."""
    return hasattr(value, "shape") and hasattr(value, "dtype") and not callable(getattr(value, "batch", None))


def _is_nested_numbers(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return bool(value) and _is_nested_numbers(value[0])
    return isinstance(value, (int, float, np.number))


def _summary(value: Any) -> str:
    text = type(value).__name__
    return f"{text} of {_summary(value[0])}" if isinstance(value, (list, tuple)) and value else text
