"""The matrix as float64 scores, a block of rows at a time: any dtype, any strides, never a whole copy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt

BLOCK_ELEMENTS = 1 << 18
"""Elements of a block: 2 MiB in float64, one block to a thread at a time."""

_Result = TypeVar("_Result")

_Floats = npt.NDArray[np.float64]


class RowSource:
    """A matrix that is read as slices of rows and makes them then; subclasses say how."""

    shape: tuple[int, int]
    dtype: np.dtype[Any]
    ndim = 2

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        """Some of its rows, as an array."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Scores:
    """Non-negative scores |matrix| * row weight * column weight.

    Attributes:
        matrix: (rows, columns), any real dtype; an array, or what gives slices of its rows.
        row_weights, column_weights: float64 (rows,) and (columns,), finite and non-negative, or None for ones.
        row_step: only every row_step-th row takes part.
    """

    matrix: npt.NDArray[Any] | RowSource
    row_weights: _Floats | None = None
    column_weights: _Floats | None = None
    row_step: int = 1

    @property
    def rows(self) -> int:
        return -(-self.matrix.shape[0] // self.row_step)

    @property
    def columns(self) -> int:
        return int(self.matrix.shape[1])

    def block(self, first: int) -> _Floats:
        """Scores of the rows from ``first`` on, a fresh float64 C-contiguous array of ``height`` rows or the rest."""
        rows = slice(first * self.row_step, min(first + self.height, self.rows) * self.row_step, self.row_step)
        block = self.matrix[rows].astype(np.float64, order="C")
        with np.errstate(over="ignore"):  # an infinite score is an error that names its place
            np.abs(block, out=block)
            if self.row_weights is not None:
                block *= self.row_weights[rows, None]
            if self.column_weights is not None:
                block *= self.column_weights
        return block

    @property
    def height(self) -> int:
        """Rows of a block."""
        return max(1, BLOCK_ELEMENTS // self.columns)

    def blocks(self) -> Iterator[tuple[int, _Floats]]:
        """Yields (first row, block) for all rows."""
        for first in range(0, self.rows, self.height):
            yield first, self.block(first)

    def map(self, function: Callable[[int, _Floats], _Result], threads: int) -> list[_Result]:
        """``function(first row, block)`` of every block, on threads, in order."""
        firsts = range(0, self.rows, self.height)
        if threads == 1 or len(firsts) == 1:
            return [function(first, self.block(first)) for first in firsts]
        with ThreadPoolExecutor(threads, thread_name_prefix="tfmot_asp_search") as pool:
            return list(pool.map(lambda first: function(first, self.block(first)), firsts))

    def sampled(self, row_step: int) -> Scores:
        """The same scores on every row_step-th row."""
        return Scores(self.matrix, self.row_weights, self.column_weights, row_step)

    def raise_not_finite(self) -> NoReturn:
        """Raises the error that says how many scores are NaN or infinite, and where the first is."""
        nans = infinities = 0
        where: tuple[int, int] | None = None
        for first, block in self.blocks():
            nan, infinite = np.isnan(block), np.isinf(block)
            nans += int(nan.sum())
            infinities += int(infinite.sum())
            if where is None and (nan | infinite).any():
                row, column = np.argwhere(nan | infinite)[0]
                where = (first + int(row)) * self.row_step, int(column)
        kind = "NaN" if not infinities else "infinite" if not nans else "NaN or infinite"
        assert where is not None
        raise ValueError(
            f"{nans + infinities} of {self.rows * self.columns} scores are {kind}, the first at row {where[0]}, column "
            f"{where[1]}: every score (matrix entry times weights) must be finite. Check the weights that came in, "
            "for example with np.isfinite(matrix).all()."
        )
