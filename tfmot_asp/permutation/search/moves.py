"""The move: take one column out of every stripe, and put them all back in the best possible way, annealed.

What stripe i would keep with column j in its gap is one entry of a (max, +) product (``objective``), and the best way
to put all columns back is a linear assignment (``assignment``): K * K placements evaluated at matrix-product speed, one
of K! outcomes chosen. A swap of two columns, or any longer cycle through many stripes, is one such outcome.

Heat-bath annealing: every placement gets Gumbel noise of the round's temperature before the assignment is solved. For
one column choosing its place that draws places with probability proportional to exp(gain / temperature); for all of
them together it is known as perturb-and-MAP (Papandreou, Yuille, ICCV 2011). At temperature zero it only ever improves.
"""

from __future__ import annotations

import numpy as np

from tfmot_asp.permutation.search._jit import jit
from tfmot_asp.permutation.search.assignment import COST_BITS, assign
from tfmot_asp.permutation.search.counter_random import below, draw, gumbel
from tfmot_asp.permutation.search.objective import BLOCK, excess_product, refresh_stripe

SLOTS, NOISE = 1, 2
"""Counters under a round's key that give the keys of the two draws."""
STOP, DONE = 0, 1
"""Positions in a block's control array: set by the host to stop it, and rounds done."""


@jit
def pick_columns(order, stripes, n, key, position, index):
    """Picks one position of every stripe at random.

    Args:
        position: int64 (K,), written. index: int64 (K rounded up to 4,), written: the columns there, the last repeated.
    """
    columns = len(order)
    size = len(stripes)
    for i in range(len(index)):
        if i < size:
            first = stripes[i] * n
            position[i] = first + below(draw(key, i), min(n, columns - first))
            index[i] = order[position[i]]
        else:
            index[i] = index[size - 1]


@jit
def assignment_costs(excess, size, key, table, temperature, cost):
    """Turns an excess product into costs for ``assign``: noise added, negated, shifted into [0, 2**COST_BITS).

    Args:
        excess: int64 (>= size, >= size), overwritten. cost: int32 (size, size), written.
    """
    if temperature > 0:
        for i in range(size):
            for j in range(size):
                excess[i, j] += gumbel(draw(key, i * size + j), table, temperature)
    low = excess[0, 0]
    high = excess[0, 0]
    for i in range(size):
        for j in range(size):
            low = min(low, excess[i, j])
            high = max(high, excess[i, j])
    shift = 0
    while (high - low) >> shift >= 1 << COST_BITS:
        shift += 1
    for i in range(size):
        for j in range(size):
            cost[i, j] = np.int32((high - excess[i, j]) >> shift)


@jit
def anneal_block(codes, thresholds, order, stripes, n, keep, temperatures, table, key, control):
    """Runs rounds of the move on one block of stripes, in place.

    Args:
        codes: uint16 (columns, rows), values below 2**12, rows a multiple of LANES.
        thresholds: uint16 (columns, rows), see ``refresh_stripe``; kept up to date.
        order: int64 (columns,), column at each position; positions of this block's stripes are rewritten.
        stripes: int64 (K,), the block, which no other thread touches.
        n, keep: stripe width, and values kept of it.
        temperatures: int64 (rounds,).
        table: ``gumbel_table()``.
        key: uint64.
        control: int64 (2,): returns soon after control[STOP] is set, counts rounds in control[DONE].
    """
    size = len(stripes)
    columns = len(order)
    padded = (size + 3) // 4 * 4
    top = np.empty((keep + 1, BLOCK), np.uint16)
    moving = np.empty(BLOCK, np.uint16)
    position = np.empty(size, np.int64)
    index = np.empty(padded, np.int64)
    excess = np.empty((padded, padded), np.int64)
    cost = np.empty((size, size), np.int32)
    column_of_row = np.empty(size, np.int64)
    row_of_column = np.empty(size, np.int64)
    work = np.empty((5, size), np.int32)
    for t in range(len(temperatures)):
        if control[STOP] != 0:
            return
        round_key = draw(key, t)
        pick_columns(order, stripes, n, draw(round_key, SLOTS), position, index)
        excess_product(codes, thresholds, index, index, excess)
        assignment_costs(excess, size, draw(round_key, NOISE), table, temperatures[t], cost)
        assign(cost, column_of_row, row_of_column, work)
        for i in range(size):
            order[position[i]] = index[column_of_row[i]]
        for i in range(size):
            if column_of_row[i] != i:
                first = stripes[i] * n
                refresh_stripe(codes, thresholds, order, first, min(first + n, columns), keep, top, moving)
        control[DONE] += 1


@jit
def prepare(codes, thresholds, order, first_stripe, last_stripe, n, keep):
    """Computes the thresholds of the stripes first_stripe .. last_stripe - 1."""
    top = np.empty((keep + 1, BLOCK), np.uint16)
    moving = np.empty(BLOCK, np.uint16)
    for stripe in range(first_stripe, last_stripe):
        first = stripe * n
        refresh_stripe(codes, thresholds, order, first, min(first + n, len(order)), keep, top, moving)


@jit
def typical_gain(codes, thresholds, sample):
    """Mean absolute gain of the swaps between sampled columns, the unit of temperature; integer, rounded down.

    Args:
        sample: int64, columns of different stripes, see ``schedule.sample_positions``.
    """
    size = len(sample)
    index = np.empty((size + 3) // 4 * 4, np.int64)
    for i in range(len(index)):
        index[i] = sample[min(i, size - 1)]
    excess = np.empty((len(index), len(index)), np.int64)
    excess_product(codes, thresholds, index, index, excess)
    total = np.int64(0)
    for i in range(size):
        for j in range(i):
            total += abs(excess[i, j] + excess[j, i] - excess[i, i] - excess[j, j])
    return total // max(size * (size - 1) // 2, 1)
