"""Launch geometry of the CUDA kernels, as pure functions: tested without a GPU, and with no effect on the result."""

from __future__ import annotations

from typing import NamedTuple

from tfmot_asp.permutation.search.effort import Workload

LANES = 16
TILE = 64
CHUNK = 64
THREADS = 256
"""Must equal their namesakes in cuda/search.cu and simd.py."""

LONGEST_SPLIT = 1 << 19
"""Rows that one thread may sum in 32 bits: 2**19 * 4095 < 2**32."""
GROUPS_PER_PROCESSOR = 4
WORK_ARRAYS = 7
"""Arrays of one int per stripe that the assignment kernel keeps in shared memory."""


class ProductLaunch(NamedTuple):
    """Launch of excess_product."""

    grid: tuple[int, int, int]
    rows_per_split: int


def product(tasks: int, most: int, rows: int, processors: int) -> ProductLaunch:
    """Splits the rows so that the grid fills the chip a few times over.

    Args:
        tasks: blocks of stripes. most: stripes of the largest. rows: padded rows of the codes.
        processors: of the chip (132 on an H100 SXM).
    """
    tiles = (-(-most // TILE)) ** 2
    wanted = -(-GROUPS_PER_PROCESSOR * processors // (tiles * tasks))
    chunks = -(-rows // CHUNK)
    splits = max(1, min(wanted, chunks), -(-rows // LONGEST_SPLIT))
    per_split = -(-chunks // splits) * CHUNK
    return ProductLaunch((tiles, -(-rows // per_split), tasks), per_split)


class Assignment(NamedTuple):
    """Launch of assign."""

    near_rows: int
    shared_bytes: int


def assignment(most: int, shared_limit: int) -> Assignment:
    """Keeps as many rows of the cost matrix in shared memory as fit.

    Args:
        most: stripes of the largest task.
        shared_limit: bytes of dynamic shared memory that a block may have (228 KiB less 5 KiB on an H100).
    """
    fixed = 4 * WORK_ARRAYS * most
    near = max(0, min(most, (shared_limit - fixed) // (4 * most)))
    return Assignment(near, fixed + 4 * most * near)


def device_bytes(columns: int, rows: int, n: int, work: Workload) -> int:
    """Device memory that a search takes: codes, thresholds of every chain, products and costs of every block."""
    padded = -(-rows // LANES) * LANES
    stripes = -(-columns // n)
    most = -(-stripes // work.blocks)
    tasks = work.chains * work.blocks
    return 2 * columns * padded * (1 + work.chains) + 12 * columns * work.chains + 12 * tasks * most * (most + 1)
