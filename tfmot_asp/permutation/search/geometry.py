"""Launch geometry of the CUDA kernels, as pure functions: tested without a GPU, and with no effect on the result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tfmot_asp.permutation.search.annealing import bounds, deals_at_once
from tfmot_asp.permutation.search.effort import Workload

LANES = 16
TILE = 64
CHUNK = 64
THREADS = 256
MOST_THREADS = 512
"""Must equal their namesakes in cuda/search.cu and simd.py."""

LONGEST_SPLIT = 1 << 19
"""Rows that one thread may sum in 32 bits: 2**19 * 4095 < 2**32."""
GROUPS_PER_PROCESSOR = 4
WORK_ARRAYS = 4
"""Arrays of one int per stripe that the assignment kernel keeps in shared memory."""
STATIC_BYTES = 1024
"""Of shared memory, set aside for what the assignment kernel declares itself."""


_Ints = npt.NDArray[np.int64]


class ProductLaunch(NamedTuple):
    """Launch of excess_product.

    Attributes:
        work: int32 (pieces, 4): task, tile of i, tile of j, split of the rows.
        rows_per_split: of all tasks.
    """

    work: npt.NDArray[np.int32]
    rows_per_split: int


def product(sizes: Sequence[int] | _Ints, rows: Sequence[int] | _Ints, processors: int) -> ProductLaunch:
    """Cuts the products of all tasks into pieces of about one size, that fill the chip a few times over.

    Args:
        sizes: stripes of each task. rows: padded rows of the codes of each.
        processors: of the chip (132 on an H100 SXM).
    """
    tiles = [-(-int(size) // TILE) for size in sizes]
    chunks = [-(-int(count) // CHUNK) for count in rows]
    wanted = GROUPS_PER_PROCESSOR * processors
    per_split = -(-sum(t * t * c for t, c in zip(tiles, chunks, strict=True)) // wanted)
    per_split = min(per_split, LONGEST_SPLIT // CHUNK)
    pieces = []
    for task, (side, count) in enumerate(zip(tiles, chunks, strict=True)):
        cut = np.indices((1, side, side, -(-count // per_split)), np.int32).reshape(4, -1)
        cut[0] = task
        pieces.append(cut.T)
    return ProductLaunch(np.ascontiguousarray(np.concatenate(pieces)), per_split * CHUNK)


class Assignment(NamedTuple):
    """Launch of assign."""

    near_rows: int
    shared_bytes: int
    threads: int


def assignment(most: int, shared_limit: int) -> Assignment:
    """Keeps as many rows of the cost matrix in shared memory as fit.

    Args:
        most: stripes of the largest task.
        shared_limit: bytes of shared memory that a block may have (227 KiB on an H100).
    """
    fixed = 4 * WORK_ARRAYS * most
    near = max(0, min(most, (shared_limit - STATIC_BYTES - fixed) // (4 * most)))
    # One warp solves it; the others share the costs' making, some sixteen entries each.
    threads = min(max(most * most // 16, 128), MOST_THREADS) // 32 * 32
    return Assignment(near, fixed + 4 * most * near, threads)


def device_bytes(columns: int, rows: int, n: int, work: Workload) -> int:
    """Device memory that a search takes: codes, thresholds of every chain, products and costs of every block."""
    padded = -(-rows // LANES) * LANES
    stripes = -(-columns // n)
    sizes = np.diff(bounds(stripes, work)).astype(np.int64)
    dealt = work.chains * deals_at_once(stripes, work) * (4 * stripes + 8 * work.blocks)
    per_chain = 2 * columns * padded + 12 * columns + 12 * int((sizes * (sizes + 1)).sum()) + 4 * stripes
    return 2 * columns * padded + work.chains * per_chain + dealt
