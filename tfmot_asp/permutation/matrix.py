"""A group's search matrix, of which the rows are made when they are read: it takes no memory of its own."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tfmot_asp.permutation.groups import Group, PlannedKernel
from tfmot_asp.permutation.search.scores import RowSource

ReadWeight = Callable[[PlannedKernel], Any]
"""Gives the scores of a kernel, whose absolute values count: an array, or what gives one for slices along all axes."""


class GroupMatrix(RowSource):
    """A column per channel of `group.columns`, a row per weight row: float32 scores. Read as slices of rows.

    It is pickled as the array that it stands for, so that a task elsewhere needs no model; one of weights in files as
    where they are.
    """

    dtype = np.dtype(np.float32)

    def __init__(
        self, group: Group, kernels: Sequence[PlannedKernel], weight: ReadWeight, elements: int = 1 << 21
    ) -> None:
        self._parts = [(kernels[part.kernel], part.positions) for part in group.parts]
        self._starts = [0, *itertools.accumulate(kernel.rows for kernel, _ in self._parts)]
        self._weight = weight
        self.shape = (self._starts[-1], len(group.columns))
        # Rows are columns of most kernels, so many are made at a time. The search reads them in order, on threads.
        self._height = max(1, elements // self.shape[1])
        self._made: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def forget(self) -> None:
        """Frees the rows that were made last."""
        with self._lock:
            self._made.clear()

    def __getitem__(self, rows: slice) -> np.ndarray:
        wanted = range(*rows.indices(self.shape[0]))
        found = np.empty((len(wanted), self.shape[1]), np.float32)
        at = 0
        while at < len(wanted):
            slab, first = divmod(wanted[at], self._height)
            count = min(len(wanted) - at, -(-(self._height - first) // wanted.step))
            found[at : at + count] = self._slab(slab)[first :: wanted.step][:count]
            at += count
        return found

    def _slab(self, number: int) -> np.ndarray:
        with self._lock:
            if number not in self._made:
                while len(self._made) > 1:
                    del self._made[next(iter(self._made))]
                self._made[number] = self._rows(number * self._height, min((number + 1) * self._height, self.shape[0]))
            return self._made[number]

    def _rows(self, first: int, last: int) -> np.ndarray:
        found = np.empty((last - first, self.shape[1]), np.float32)
        for (kernel, positions), start, end in zip(self._parts, self._starts, self._starts[1:], strict=False):
            top, bottom = max(first, start), min(last, end)
            if top < bottom:
                part = found[top - first : bottom - first]
                _fill(part, self._weight(kernel), kernel, positions, top - start, bottom - start)
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        kernels = {kernel: self._weight(kernel) for kernel, _ in self._parts}
        if any(isinstance(weight, np.ndarray) for weight in kernels.values()):
            return _same, (self[:],)
        state = {**self.__dict__, "_weight": kernels.__getitem__, "_made": {}, "_lock": None}
        return _in_files, (state,)


def _same(array: np.ndarray) -> np.ndarray:
    return array


def _in_files(state: dict[str, Any]) -> GroupMatrix:
    matrix = GroupMatrix.__new__(GroupMatrix)
    matrix.__dict__.update(state, _lock=threading.Lock())
    return matrix


def _fill(out: np.ndarray, weight: Any, kernel: PlannedKernel, positions: np.ndarray, first: int, last: int) -> None:
    """Writes to `out`, of shape (rows, positions), the scores of a kernel at some of its rows and positions."""
    summed, rank = kernel.reduction_axes, len(kernel.shape)
    others = [axis for axis in range(rank) if axis not in summed]
    index = np.unravel_index(positions, [kernel.shape[axis] for axis in summed])
    cut = [slice(None)] * rank
    for axis, place in zip(summed, index, strict=True):
        cut[axis] = slice(int(place.min()), int(place.max()) + 1)
    within = tuple(place - cut[axis].start for axis, place in zip(summed, index, strict=True))
    for at, run in _runs([kernel.shape[axis] for axis in others], first, last):
        for axis, part in zip(others, run, strict=True):
            cut[axis] = part
        values = np.asarray(weight[tuple(cut)]).transpose([*summed, *others])[within].reshape(len(positions), -1)
        out[at : at + values.shape[1]] = values.T
    np.abs(out, out=out)


def _runs(shape: list[int], first: int, last: int) -> Iterator[tuple[int, tuple[slice, ...]]]:
    """Cuts rows into runs along the last axis of `shape`: where each begins, and its place on each axis."""
    if not shape:
        yield 0, ()
        return
    row = first
    while row < last:
        *outer, start = (int(i) for i in np.unravel_index(row, shape))
        end = min(shape[-1], start + last - row)
        yield row - first, (*(slice(i, i + 1) for i in outer), slice(start, end))
        row += end - start
