"""An array that lies in a file: read, reordered and written in windows, never as a whole."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tfmot_asp.permutation.reorder import AxisMoves

_AT_ONCE = 1 << 26  # bytes that are read for a window beside it


@dataclass(frozen=True)
class FileArray:
    """A little-endian, row-major array within a file. Small to pickle: a task elsewhere reads the file itself.

    Attributes:
        path: of the file.
        offset: of its first byte.
        shape: of the array.
        type: name of its NumPy type, those of ml_dtypes (bfloat16) included.
    """

    path: str
    offset: int
    shape: tuple[int, ...]
    type: str

    @property
    def dtype(self) -> np.dtype[Any]:
        return dtype_of(self.type)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def reshape(self, shape: tuple[int, ...]) -> FileArray:
        """The same bytes in another shape of as many elements."""
        return replace(self, shape=shape)

    def __getitem__(self, window: tuple[slice, ...]) -> npt.NDArray[Any]:
        """A window of it, in steps of one."""
        shape, runs = self._runs(window)
        found = np.empty(shape, self.dtype)
        raw = found.reshape(-1).view(np.uint8).data
        done = 0
        with _opened(self.path, os.O_RDONLY) as file:
            for start, length in runs:
                _read_fully(file, raw[done : done + length], start, self.path)
                done += length
        return found

    def __setitem__(self, window: tuple[slice, ...], values: npt.NDArray[Any]) -> None:
        shape, runs = self._runs(window)
        if values.shape != shape or values.dtype != self.dtype:
            raise ValueError(f"expected {shape} of {self.dtype}, got {values.shape} of {values.dtype}")
        raw = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
        done = 0
        with _opened(self.path, os.O_RDWR) as file:
            for start, length in runs:
                _write_fully(file, raw[done : done + length], start)
                done += length

    def reordered(self, moves: AxisMoves, window: tuple[slice, ...]) -> npt.NDArray[Any]:
        """A window of the array with its axes reordered, as `permutation.reorder.reordered_window` gives it."""
        if not moves:
            return self[window]
        index = {axis: order[window[axis]] for axis, order in moves}
        first = index.pop(0, np.arange(*window[0].indices(self.shape[0])))
        rest = tuple(slice(None) if axis in index else window[axis] for axis in range(1, self.ndim))
        sizes = [len(range(*cut.indices(size))) for cut, size in zip(rest, self.shape[1:], strict=True)]
        rows = max(1, _AT_ONCE // max(math.prod(sizes) * self.dtype.itemsize, 1))
        found = np.empty([len(range(*c.indices(n))) for c, n in zip(window, self.shape, strict=True)], self.dtype)
        order = np.argsort(first, kind="stable")
        at = 0
        while at < len(order):
            start = int(first[order[at]])
            count = int(np.searchsorted(first[order[at:]], start + rows))
            here = order[at : at + count]
            part = self[(slice(start, int(first[here[-1]]) + 1), *rest)]
            for axis, positions in index.items():
                part = part.take(positions, axis)
            found[here] = part[first[here] - start]
            at += count
        return found

    def _runs(self, window: tuple[slice, ...]) -> tuple[tuple[int, ...], Iterator[tuple[int, int]]]:
        """The shape of a window, and its contiguous runs of bytes: where each is in the file, and how long."""
        ranges = [range(*cut.indices(size)) for cut, size in zip(window, self.shape, strict=True)]
        if any(one.step != 1 for one in ranges):
            raise ValueError("windows have steps of one")
        shape = tuple(map(len, ranges))
        return shape, self._bytes(ranges) if math.prod(shape) else iter(())

    def _bytes(self, ranges: Sequence[range]) -> Iterator[tuple[int, int]]:
        inner = next((a for a in reversed(range(self.ndim)) if len(ranges[a]) < self.shape[a]), 0)
        strides = [math.prod(self.shape[a + 1 :]) * self.dtype.itemsize for a in range(self.ndim)]
        if not self.shape:
            yield self.offset, self.dtype.itemsize
            return
        length = len(ranges[inner]) * strides[inner]
        start = self.offset + ranges[inner].start * strides[inner]
        for place in itertools.product(*ranges[:inner]):
            yield start + sum(i * stride for i, stride in zip(place, strides, strict=False)), length


def dtype_of(name: str) -> np.dtype[Any]:
    """A NumPy type by name, those of ml_dtypes included."""
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, name))


@contextlib.contextmanager
def _opened(path: str, flags: int) -> Iterator[int]:
    file = os.open(path, flags)
    try:
        yield file
    finally:
        os.close(file)


def _read_fully(file: int, into: memoryview, offset: int, path: str) -> None:
    while into.nbytes:
        count = os.preadv(file, [into], offset)
        if not count:
            raise ValueError(f"{path} ends before its weights do")
        into, offset = into[count:], offset + count


def _write_fully(file: int, data: memoryview, offset: int) -> None:
    while data.nbytes:
        count = os.pwrite(file, data, offset)
        data, offset = data[count:], offset + count
