"""The slow, obvious oracle that every fast path of the search is compared with: loops over Python numbers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

MASK64 = (1 << 64) - 1


def stripe_value(rows: Sequence[Sequence[float]], keep: int) -> float:
    """What a stripe keeps: in each row the ``keep`` largest magnitudes."""
    return math.fsum(math.fsum(sorted((abs(float(v)) for v in row), reverse=True)[:keep]) for row in rows)


def retained(matrix: np.ndarray, order: Sequence[int], m: int, n: int) -> float:
    """Magnitude retained with the columns in that order, the last stripe padded with zeros."""
    reordered = np.asarray(matrix, np.float64)[:, list(order)]
    return math.fsum(stripe_value(reordered[:, first : first + n], n - m) for first in range(0, reordered.shape[1], n))


def ideal(matrix: np.ndarray, m: int, n: int) -> float:
    """The largest values of each row, as many as the mask keeps, wherever they are."""
    columns = matrix.shape[1]
    return stripe_value(matrix, min(columns, -(-columns // n) * (n - m)))


def partitions(columns: Sequence[int], n: int) -> Iterator[tuple[int, ...]]:
    """Every way to deal columns out to stripes, the incomplete stripe last, each way once."""
    columns = list(columns)
    if not columns:
        yield ()
    elif len(columns) % n:
        for stripe in itertools.combinations(columns, len(columns) % n):
            for rest in partitions([c for c in columns if c not in stripe], n):
                yield (*rest, *stripe)
    else:
        for others in itertools.combinations(columns[1:], n - 1):
            stripe = (columns[0], *others)
            for rest in partitions([c for c in columns if c not in stripe], n):
                yield (*stripe, *rest)


def optimum(matrix: np.ndarray, m: int, n: int) -> float:
    """Retained magnitude of the best of all orders, by trying them all; stripes are valued once each."""
    columns = matrix.shape[1]
    values = {}
    for size in {n, columns % n} - {0}:
        for stripe in itertools.combinations(range(columns), size):
            values[stripe] = stripe_value(matrix[:, list(stripe)], n - m)

    def value(order: tuple[int, ...]) -> float:
        return math.fsum(values[tuple(sorted(order[first : first + n]))] for first in range(0, columns, n))

    return max(value(order) for order in partitions(range(columns), n))


def draw(key: int, counter: int) -> int:
    """splitmix64's output for state ``key`` after ``counter`` + 1 steps."""
    z = key + (counter + 1) * 0x9E3779B97F4A7C15 & MASK64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK64
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK64
    return z ^ z >> 31


def stripe_code(codes: np.ndarray, columns: Sequence[int], keep: int) -> int:
    """Integer value of a stripe of these columns; ``codes`` has a row per column."""
    chosen = codes[list(columns)].astype(np.int64)
    return int(np.sort(chosen, axis=0)[::-1][:keep].sum())


def anneal(
    codes: np.ndarray, order: Sequence[int], stripes: Sequence[int], n: int, keep: int,
    temperatures: Sequence[int], table: Sequence[int], key: int,
) -> list[int]:  # fmt: skip
    """Rounds of the move on a block, each placement valued by rebuilding its stripe from scratch."""
    from scipy.optimize import linear_sum_assignment

    order = list(order)
    for number, temperature in enumerate(temperatures):
        round_key = draw(key, number)
        slots, noise = draw(round_key, 1), draw(round_key, 2)
        places = []
        for i, stripe in enumerate(stripes):
            width = min(n, len(order) - stripe * n)
            places.append(stripe * n + (draw(slots, i) >> 33) % width)
        gain = np.zeros((len(stripes), len(stripes)), np.int64)
        for i, place in enumerate(places):
            first = place // n * n
            rest = [order[k] for k in range(first, min(first + n, len(order))) if k != place]
            for j, other in enumerate(places):
                gain[i, j] = stripe_code(codes, [*rest, order[other]], keep)
                gain[i, j] += table[draw(noise, i * len(stripes) + j) >> 52] * temperature >> 16
        chosen = linear_sum_assignment(gain, maximize=True)[1]
        taken = [order[place] for place in places]
        for place, j in zip(places, chosen, strict=True):
            order[place] = taken[j]
    return order
