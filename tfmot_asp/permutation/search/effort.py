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
    budget: float  # operations of one chain, for a matrix of 2**20 elements
    fewest: int  # rounds, whatever the budget
    most: int
    chains: int


_LEVELS = {
    "fast": _Level(budget=8e9, fewest=16, most=150, chains=1),
    "balanced": _Level(budget=40e9, fewest=40, most=1500, chains=2),
    "thorough": _Level(budget=400e9, fewest=100, most=4000, chains=8),
}


@dataclass(frozen=True)
class Plan:
    """What to run; the same on every device.

    Attributes:
        chains: independent annealings from different random numbers; the best result counts.
        epochs: times that the stripes are dealt out to blocks.
        blocks: blocks per epoch, annealed independently of each other.
        rounds: rounds per epoch.
        assignments: assignment moves per round, 0 or 1.
        pair_rounds: pair moves per round.
        heat, pair_heat: initial temperature of each move, in units of ``typical_gain``.
    """

    chains: int
    epochs: int
    blocks: int
    rounds: int
    assignments: int
    pair_rounds: int
    heat: float
    pair_heat: float


def row_step(rows: int, columns: int) -> int:
    """Every how many rows to search a matrix of that shape, 1 unless it is larger than LARGEST_CODES elements."""
    return max(1, -(-rows * columns // LARGEST_CODES))


def make_plan(columns: int, rows: int, n: int, effort: str) -> Plan:
    """Chooses blocks and rounds for a matrix of ``columns`` by ``rows`` (those searched) in stripes of n."""
    level = _LEVELS[effort]
    stripes = -(-columns // n)
    blocks = -(-stripes // LARGEST_BLOCK)
    size = -(-stripes // blocks)
    pair_rounds = max(0, min(10, round(160 / stripes)))
    # Operations, in (max, +) steps: an assignment costs some hundred of them per entry of its matrix.
    assignment = blocks * (size * size * (rows + 400.0) + size * n * rows * 4.0)
    pairs = pair_rounds * stripes / 2 * n * n * 2 * (rows + 100.0)
    budget = level.budget * math.sqrt(max(1.0, columns * rows / 2**20))
    total = int(min(level.most, max(level.fewest, budget / (assignment + pairs))))
    epochs = 1
    if blocks > 1:
        epochs = -(-total // 4)
        total = 4 * epochs
    chains = max(1, min(level.chains, int(2 * budget / ((assignment + pairs) * total)))) if blocks == 1 else 1
    return Plan(
        chains=chains,
        epochs=epochs,
        blocks=blocks,
        rounds=total // epochs,
        assignments=1 if stripes > 1 else 0,
        pair_rounds=pair_rounds if stripes > 1 else 0,
        heat=0.14 if stripes <= 128 else 0.07,
        pair_heat=0.2,
    )
