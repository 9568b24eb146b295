"""The two moves, annealed: reassign one column of every stripe at once, and swap columns within pairs of stripes.

Both work on a block, a set of stripes that no other thread touches, and both choose by gain plus Gumbel noise of the
round's temperature (``counter_random``): heat-bath annealing. At temperature zero they only ever improve.

Assignment move: take one column out of every stripe of the block, and put them back in the best possible way, a linear
assignment problem. It evaluates K * K placements in one (max, +) product and chooses among K! outcomes, which is why
few rounds suffice for matrices with hundreds of stripes.

Pair move: match the stripes of the block in pairs, and in each pair do one of the n * n swaps, or none. It is cheap and
sees every position, which finds the last few per cent where stripes are few.
"""

from __future__ import annotations

import numpy as np

from tfmot_asp.permutation.search._jit import jit
from tfmot_asp.permutation.search.assignment import COST_BITS, assign
from tfmot_asp.permutation.search.counter_random import below, draw, gumbel
from tfmot_asp.permutation.search.objective import BLOCK, excess_product, refresh_stripe
from tfmot_asp.permutation.search.simd import LANES, excess_4x2

_SLOTS, _NOISE, _PAIRS = np.uint64(1), np.uint64(2), np.uint64(3)
_ROWS = 1 << 14
STOP, DONE = 0, 1
"""Positions in a block's control array: set by the host to stop it, and rounds done."""


@jit
def costs(excess, size, key, table, temperature, out):
    """Turns an excess product into assignment costs: noise added, negated, shifted into [0, 2**COST_BITS).

    Args:
        excess: int64 (>= size, >= size), overwritten. out: int32 (size, size).
    """
    low = np.int64(0)
    high = np.int64(0)
    for i in range(size):
        for j in range(size):
            value = excess[i, j]
            if temperature > 0:
                value += gumbel(draw(key, i * size + j), table, temperature)
            excess[i, j] = value
            if i == 0 and j == 0:
                low = value
                high = value
            low = min(low, value)
            high = max(high, value)
    shift = 0
    while (high - low) >> shift >= 1 << COST_BITS:
        shift += 1
    for i in range(size):
        for j in range(size):
            out[i, j] = np.int32((high - excess[i, j]) >> shift)


@jit
def pair_excess(codes, thresholds, order, b_first, x_first, n, index, out):
    """out[u, v] = excess of the column at position x_first + v over the threshold of the one at b_first + u.

    Positions past the end of ``order`` (the padding of an incomplete stripe) repeat the last column; ignore those sums.

    Args:
        index: int64 (2, n rounded up to 4), scratch. out: int64 (n rounded up to 4, n rounded up to 4).
    """
    padded = index.shape[1]
    last = len(order) - 1
    for k in range(padded):
        index[0, k] = order[min(b_first + min(k, n - 1), last)]
        index[1, k] = order[min(x_first + min(k, n - 1), last)]
    rows = codes.shape[1]
    tile = np.zeros(8, np.int64)
    for u in range(0, padded, 4):
        for v in range(0, padded, 2):
            tile[:] = 0
            for start in range(0, rows, _ROWS):
                vectors = min(_ROWS, rows - start) // LANES
                excess_4x2(thresholds, index[0], u, codes, index[1], v, start, vectors, tile)
            for t in range(4):
                out[u + t, v] = tile[2 * t]
                out[u + t, v + 1] = tile[2 * t + 1]


@jit
def anneal_block(
    codes, thresholds, own, order, stripes, n, keep, assignments, temperatures, pair_rounds, pair_temperatures,
    table, key, control,
):  # fmt: skip
    """Runs rounds of both moves on one block of stripes, in place.

    Args:
        codes: uint16 (columns, rows), values below 2**12, rows a multiple of LANES.
        thresholds, own: uint16 (columns, rows) and int64 (columns,), see ``refresh_stripe``; kept up to date.
        order: int64 (columns,), column at each position; positions of this block's stripes are rewritten.
        stripes: int64, the block.
        n, keep: stripe width, and values kept of it.
        assignments: assignment moves at the start of each round, 0 or 1.
        temperatures, pair_temperatures: int64 (rounds,), one per round.
        pair_rounds: pair moves per round.
        table: ``gumbel_table()``.
        key: uint64.
        control: int64 (2,): returns soon after control[STOP] is set, counts rounds in control[DONE].
    """
    size = len(stripes)
    columns = len(order)
    padded = (size + 3) // 4 * 4
    wide = (n + 3) // 4 * 4
    top = np.empty((keep + 1, BLOCK), np.uint16)
    moving = np.empty(BLOCK, np.uint16)
    position = np.empty(size, np.int64)
    index = np.empty(padded, np.int64)
    product_size = padded if assignments else 0
    excess = np.empty((product_size, product_size), np.int64)
    cost = np.empty((size if assignments else 0, size if assignments else 0), np.int32)
    column_of_row = np.empty(size, np.int64)
    row_of_column = np.empty(size, np.int64)
    work = np.empty((5, size), np.int32)
    ab = np.empty((wide, wide), np.int64)
    ba = np.empty((wide, wide), np.int64)
    pair_index = np.empty((2, wide), np.int64)
    for t in range(len(temperatures)):
        round_key = draw(key, t)
        if assignments > 0 and size > 1:
            slot_key = draw(round_key, _SLOTS)
            noise_key = draw(round_key, _NOISE)
            for i in range(padded):
                if i < size:
                    first = stripes[i] * n
                    position[i] = first + below(draw(slot_key, i), min(n, columns - first))
                    index[i] = order[position[i]]
                else:
                    index[i] = index[size - 1]
            excess_product(codes, thresholds, index, index, excess)
            costs(excess, size, noise_key, table, temperatures[t], cost)
            assign(cost, column_of_row, row_of_column, work)
            for i in range(size):
                if column_of_row[i] != i:
                    order[position[i]] = index[column_of_row[i]]
            for i in range(size):
                if column_of_row[i] != i:
                    first = stripes[i] * n
                    refresh_stripe(codes, thresholds, own, order, first, min(first + n, columns), keep, top, moving)
        pair_key = draw(round_key, _PAIRS)
        for q in range(pair_rounds):
            if control[STOP] != 0:
                return
            draw_key = draw(pair_key, q)
            turn = below(draw(draw_key, 0), size)
            for i in range(size):
                j = (turn + size - i) % size  # i + j = turn (mod size) matches every stripe with one other at most
                if j <= i:
                    continue
                _swap_pair(
                    codes, thresholds, own, order, stripes[i] * n, stripes[j] * n, n, keep, pair_temperatures[t],
                    table, draw(draw_key, 1 + i), ab, ba, pair_index, top, moving,
                )  # fmt: skip
        control[DONE] += 1
        if control[STOP] != 0:
            return


@jit
def _swap_pair(
    codes, thresholds, own, order, a_first, b_first, n, keep, temperature, table, key, ab, ba, index, top, moving
):
    """Does the best of all swaps between two stripes, and of doing nothing, gains taken with noise."""
    columns = len(order)
    a_last = min(a_first + n, columns)
    b_last = min(b_first + n, columns)
    pair_excess(codes, thresholds, order, a_first, b_first, n, index, ab)
    pair_excess(codes, thresholds, order, b_first, a_first, n, index, ba)
    best = gumbel(draw(key, n * n), table, temperature) if temperature > 0 else np.int64(0)
    best_a = -1
    best_b = -1
    for u in range(a_last - a_first):
        for v in range(b_last - b_first):
            gain = ab[u, v] + ba[v, u] - own[order[a_first + u]] - own[order[b_first + v]]
            if temperature > 0:
                gain += gumbel(draw(key, u * n + v), table, temperature)
            if gain > best:
                best = gain
                best_a = a_first + u
                best_b = b_first + v
    if best_a >= 0:
        column = order[best_a]
        order[best_a] = order[best_b]
        order[best_b] = column
        refresh_stripe(codes, thresholds, own, order, a_first, a_last, keep, top, moving)
        refresh_stripe(codes, thresholds, own, order, b_first, b_last, keep, top, moving)


@jit
def prepare(codes, thresholds, own, order, first_stripe, last_stripe, n, keep):
    """Computes thresholds and own excess of the stripes first_stripe .. last_stripe - 1."""
    top = np.empty((keep + 1, BLOCK), np.uint16)
    moving = np.empty(BLOCK, np.uint16)
    for stripe in range(first_stripe, last_stripe):
        first = stripe * n
        refresh_stripe(codes, thresholds, own, order, first, min(first + n, len(order)), keep, top, moving)


@jit
def typical_gain(codes, thresholds, own, order, n):
    """Mean absolute gain of a fixed sample of swaps, the unit of temperature: stripes with those half way round."""
    columns = len(order)
    stripes = (columns + n - 1) // n
    wide = (n + 3) // 4 * 4
    ab = np.empty((wide, wide), np.int64)
    ba = np.empty((wide, wide), np.int64)
    index = np.empty((2, wide), np.int64)
    total = np.int64(0)
    count = np.int64(0)
    step = max(1, stripes // 256)
    for a in range(0, stripes, step):
        b = (a + stripes // 2) % stripes
        if a == b:
            continue
        pair_excess(codes, thresholds, order, a * n, b * n, n, index, ab)
        pair_excess(codes, thresholds, order, b * n, a * n, n, index, ba)
        for u in range(min(n, columns - a * n)):
            for v in range(min(n, columns - b * n)):
                gain = ab[u, v] + ba[v, u] - own[order[a * n + u]] - own[order[b * n + v]]
                total += abs(gain)
                count += 1
    return total // max(count, np.int64(1))
