"""The matrix as float64 scores, a block of rows at a time: any dtype, any strides, never a whole copy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

BLOCK_ELEMENTS = 1 << 19
"""Elements of a block: 4 MiB in float64."""

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Scores:
    """Non-negative scores |matrix| * row weight * column weight.

    Attributes:
        matrix: (rows, columns), any real dtype.
        row_weights, column_weights: float64 (rows,) and (columns,), finite and non-negative, or None for ones.
        row_step: only every row_step-th row takes part.
    """

    matrix: npt.NDArray[Any]
    row_weights: _Floats | None = None
    column_weights: _Floats | None = None
    row_step: int = 1

    @property
    def rows(self) -> int:
        return -(-self.matrix.shape[0] // self.row_step)

    @property
    def columns(self) -> int:
        return int(self.matrix.shape[1])

    def blocks(self) -> Iterator[tuple[int, _Floats]]:
        """Yields (first row, float64 C-contiguous block), each block a fresh array."""
        height = max(1, BLOCK_ELEMENTS // max(1, self.columns))
        matrix = self.matrix[:: self.row_step]
        weights = None if self.row_weights is None else self.row_weights[:: self.row_step]
        for first in range(0, self.rows, height):
            block = matrix[first : first + height].astype(np.float64, order="C")
            with np.errstate(over="ignore"):  # an infinite score is an error that names its place
                np.abs(block, out=block)
                if weights is not None:
                    block *= weights[first : first + height, None]
                if self.column_weights is not None:
                    block *= self.column_weights
            yield first, block

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
