"""What a stripe keeps, and what it would keep with another column: thresholds.

A stripe of n columns keeps, in every row, its N = n - m largest values. If the column at one position is replaced by x,
the row keeps the N - 1 largest of the other columns, plus the larger of x and the other columns' N-th largest, b. So

    kept(x) = constant + max(b, x) = (constant + b) + max(x - b, 0).

b takes one of two values per row and stripe: with s the stripe's sorted values, largest first, b = s[N] if the column
being replaced is among the N largest, s[N - 1] otherwise. With

    excess(b, x) = sum over rows of max(x - b, 0),

swapping column p of one stripe with column q of another gains

    excess(b_p, x_q) + excess(b_q, x_p) - excess(b_p, x_p) - excess(b_q, x_q),

and so every move of the search is made of one operation, ``excess``, with any m by n pattern behind it.
"""

from __future__ import annotations

import numpy as np

from tfmot_asp.permutation.search._jit import jit
from tfmot_asp.permutation.search.simd import LANES, excess_4x2

BLOCK = 512
"""Rows of a stripe that are sorted at a time: the working set stays in the first-level cache."""
_ROWS = 1024
_COLUMNS = 96


@jit
def refresh_stripe(codes, thresholds, order, first, last, keep, top, moving):
    """Recomputes the thresholds of the columns order[first:last], one stripe.

    Args:
        codes: uint16 (columns, rows).
        thresholds: uint16 (columns, rows), b above for each column in its present stripe.
        order: int64 (columns,), column at each position.
        keep: N, values kept of each full stripe.
        top: uint16 (keep + 1, BLOCK), scratch. moving: uint16 (BLOCK,), scratch.
    """
    rows = codes.shape[1]
    for start in range(0, rows, BLOCK):
        width = min(BLOCK, rows - start)
        for k in range(keep + 1):
            for r in range(width):
                top[k, r] = 0
        for k in range(last - first):
            column = order[first + k]
            for r in range(width):
                moving[r] = codes[column, start + r]
            for q in range(min(k, keep) + 1):  # insertion: the larger stays at q, the smaller moves on
                for r in range(width):
                    a = top[q, r]
                    v = moving[r]
                    top[q, r] = max(a, v)
                    moving[r] = min(a, v)
        for k in range(first, last):
            column = order[k]
            for r in range(width):
                above = top[keep - 1, r]
                below = top[keep, r]
                thresholds[column, start + r] = below if codes[column, start + r] >= above else above


@jit
def excess_product(codes, thresholds, b_index, x_index, out):
    """The (max, +) product: out[i, j] = excess(thresholds[b_index[i]], codes[x_index[j]]).

    Args:
        codes, thresholds: uint16 (columns, rows), values below 2**12, rows a multiple of LANES.
        b_index: int64, length a multiple of 4. x_index: int64, length a multiple of 2.
        out: int64 (len(b_index), len(x_index)), overwritten.
    """
    rows = codes.shape[1]
    tile = np.zeros(8, np.int64)
    out[:] = 0
    for start in range(0, rows, _ROWS):  # blocks of codes that fit the second-level cache
        vectors = min(_ROWS, rows - start) // LANES
        for left in range(0, len(x_index), _COLUMNS):
            for i in range(0, len(b_index), 4):
                for j in range(left, min(len(x_index), left + _COLUMNS), 2):
                    tile[:] = 0
                    excess_4x2(thresholds, b_index, i, codes, x_index, j, start, vectors, tile)
                    for t in range(4):
                        out[i + t, j] += tile[2 * t]
                        out[i + t, j + 1] += tile[2 * t + 1]
