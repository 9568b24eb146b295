"""Linear assignment on 32-bit integers: Jonker and Volgenant's algorithm with fixed tie-breaking.

R. Jonker, A. Volgenant, "A shortest augmenting path algorithm for dense and sparse linear assignment problems",
Computing 38, 1987: augmenting row reduction first, then shortest augmenting paths for the rows left over. It starts
from the mean of every column as its potential, not from the minimum: a column of large weights costs less in every row,
the mean takes just that out, and the row scans that remain are 2 to 8 times fewer.

Why not ``scipy.optimize.linear_sum_assignment``: it holds the GIL, takes 5 to 15 times as long on these matrices, and
the GPU must break ties alike. Here every minimum is taken at the lowest index: equal input, equal output, everywhere.
"""

from __future__ import annotations

import numpy as np

from tfmot_asp.permutation.search._jit import jit

COST_BITS = 26
"""Costs must lie in [0, 2**COST_BITS): the column potentials then stay within twice that range, well inside 32 bits."""

_FAR = np.int32(2**31 - 1)


@jit
def _lowest(values, size):
    smallest = _FAR
    for j in range(size):  # without an index: this loop vectorizes, a loop that tracks the position does not
        smallest = min(smallest, values[j])
    return smallest


@jit
def _position(values, value):
    j = 0
    while values[j] != value:
        j += 1
    return j


@jit
def assign(cost, column_of_row, row_of_column, work):
    """Finds the permutation of least total cost.

    Args:
        cost: int32 (size, size), C-contiguous, values in [0, 2**COST_BITS).
        column_of_row, row_of_column: int64 (size,), written.
        work: int32 (5, size), scratch.
    """
    size = cost.shape[0]
    potential, reduced, distance, previous, free = work[0], work[1], work[2], work[3], work[4]
    row_of_column[:] = 0
    for i in range(size):
        for j in range(size):
            row_of_column[j] += cost[i, j]
    for j in range(size):
        potential[j] = row_of_column[j] // size
        row_of_column[j] = -1
        column_of_row[j] = -1
        free[j] = j
    left = size
    for _ in range(2):
        left = _reduce_rows(cost, column_of_row, row_of_column, potential, reduced, free, left)
    for k in range(left):
        _augment(cost, column_of_row, row_of_column, potential, reduced, distance, previous, free[k])


@jit
def _reduce_rows(cost, column_of_row, row_of_column, potential, reduced, free, waiting):
    """One sweep of augmenting row reduction over free[:waiting]; returns how many rows it left, at free's front."""
    size = cost.shape[0]
    left = 0
    k = 0
    evictions = 8 * size  # a row that was pushed out is served at once, but not for ever
    while k < waiting:
        i = free[k]
        k += 1
        for j in range(size):
            reduced[j] = cost[i, j] - potential[j]
        best = _lowest(reduced, size)
        column = _position(reduced, best)
        reduced[column] = _FAR
        second = _lowest(reduced, size)
        owner = row_of_column[column]
        if best < second:
            if second != _FAR:
                potential[column] -= second - best
        elif owner >= 0:
            column = _position(reduced, second)
            owner = row_of_column[column]
        row_of_column[column] = i
        column_of_row[i] = column
        if owner >= 0:
            column_of_row[owner] = -1
            evictions -= 1
            if best < second and evictions > 0:
                k -= 1
                free[k] = owner
            else:
                free[left] = owner
                left += 1
    return left


@jit
def _augment(cost, column_of_row, row_of_column, potential, open_distance, distance, previous, start):
    """Assigns row ``start`` along a shortest augmenting path (Dijkstra over the columns)."""
    size = cost.shape[0]
    for j in range(size):
        open_distance[j] = cost[start, j] - potential[j]
        distance[j] = _FAR
        previous[j] = start
    while True:
        nearest = _lowest(open_distance, size)
        column = _position(open_distance, nearest)
        row = row_of_column[column]
        if row < 0:
            break
        distance[column] = nearest
        open_distance[column] = _FAR
        offset = cost[row, column] - potential[column] - nearest
        for j in range(size):
            through = np.int32(cost[row, j] - potential[j] - offset)  # Numba would compute in 64 bits
            better = through < open_distance[j] and distance[j] == _FAR
            open_distance[j] = through if better else open_distance[j]
            previous[j] = row if better else previous[j]
    for j in range(size):
        if distance[j] != _FAR:
            potential[j] += distance[j] - nearest
    while True:
        row = previous[column]
        row_of_column[column] = row
        before = column_of_row[row]
        column_of_row[row] = column
        if row == start:
            return
        column = before
