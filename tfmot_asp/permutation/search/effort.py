"""How much work a search does: a pure function of the matrix's shape and the effort, in operations, not in seconds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

EFFORTS = ("fast", "balanced", "thorough")
LARGEST_BLOCK = 256
"""Stripes that one assignment spans: beyond that its cubic cost outweighs what larger ones find."""
LARGEST_CODES = 1 << 28
"""Elements kept as codes; of a matrix with more, evenly spaced rows are searched."""


class _Level(NamedTuple):
    budget: float  # operations of one chain, times the square root of the number of elements
    fewest: int  # rounds, whatever the budget
    most: int
    chains: int  # of an ordinary matrix
    chains_of_small: int  # up to FEW stripes and SMALL elements, where chains are cheap and differ most


_LEVELS = {
    "fast": _Level(budget=4.5e6, fewest=64, most=2_000, chains=2, chains_of_small=2),
    "balanced": _Level(budget=20e6, fewest=200, most=10_000, chains=2, chains_of_small=4),
    "thorough": _Level(budget=250e6, fewest=256, most=40_000, chains=4, chains_of_small=24),
}
FEW = 32
SMALL = 1 << 20
ONE_CHAIN = 1 << 24
"""Elements from which on a single chain, split in blocks, is searched."""


@dataclass(frozen=True)
class Workload:
    """What to run; the same on every device.

    Attributes:
        chains: independent annealings from different random numbers; the best result counts.
        epochs: times that the stripes are dealt out to blocks.
        blocks: blocks per epoch, annealed independently of each other.
        rounds: rounds per epoch.
    """

    chains: int
    epochs: int
    blocks: int
    rounds: int


def row_step(rows: int, columns: int) -> int:
    """Every how many rows to search a matrix of that shape, 1 unless it is larger than LARGEST_CODES elements."""
    return max(1, -(-rows * columns // LARGEST_CODES))


def searched_rows(rows: int, columns: int) -> int:
    """How many rows of a matrix of that shape are searched."""
    return -(-rows // row_step(rows, columns))


def make_workload(columns: int, rows: int, n: int, effort: str) -> Workload:
    """Chooses blocks and rounds for a matrix of ``columns`` by ``rows`` (those searched) in stripes of n."""
    level = _LEVELS[effort]
    stripes = -(-columns // n)
    blocks = -(-stripes // LARGEST_BLOCK)
    if columns * rows >= ONE_CHAIN and stripes >= 2 * FEW:
        blocks = max(2, blocks)
    size = -(-stripes // blocks)
    # (max, +) steps of a round, with what else it costs (noise, assignment, bookkeeping) in the same currency.
    cost = blocks * (size * size * (rows + 400.0) + 50_000.0)
    total = int(min(level.most, max(level.fewest, level.budget * math.sqrt(columns * rows) / cost)))
    if blocks == 1:
        small = stripes <= FEW and columns * rows <= SMALL
        chains = level.chains_of_small if small else level.chains
        return Workload(chains=chains, epochs=1, blocks=1, rounds=total)
    return Workload(chains=1, epochs=-(-total // 2), blocks=blocks, rounds=2)
