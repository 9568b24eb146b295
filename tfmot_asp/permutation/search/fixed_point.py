"""Scores as 12-bit codes: integers, so that sums do not depend on their order, nor on the device.

The code of a score s is round(min(s, cap) * (4095 / cap)). The cap is the largest score, unless a few outliers are so
large that everything else would vanish below one code: then it is a power of two that leaves the mean score at least
``FINEST`` codes, and clips no more than that takes. A clipped score is still far above its neighbours, so which values
a stripe keeps is hardly affected; and a found order is accepted by exact evaluation only (``evaluate``).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tfmot_asp.permutation.search._jit import jit
from tfmot_asp.permutation.search.scores import Scores
from tfmot_asp.permutation.search.simd import LANES

CODE_BITS = 12
CODE_MAX = (1 << CODE_BITS) - 1
COMFORTABLE = 64
"""Codes per mean score above which nothing is clipped."""
FINEST = 8
"""Codes per mean score below which no cap may push it."""
CLIPPED = 2.0**-10
"""Share of the total score that clipping may take away, unless FINEST demands more."""

_EXPONENTS = 2048


@jit
def _survey(block, counts):
    """Counts the binary exponents of a float64 block of non-negative scores; returns its largest score's bits."""
    largest = np.uint64(0)
    for bits in block:
        counts[bits >> np.uint64(52)] += 1
        largest = max(largest, bits)
    return largest


@jit
def _encode(block, cap, scale, codes, first_row):
    """Writes the codes of a float64 (rows, columns) block, transposed, in tiles that fit the cache."""
    rows, columns = block.shape
    for left in range(0, columns, 32):
        for r0 in range(0, rows, 64):
            for c in range(left, min(columns, left + 32)):
                for r in range(r0, min(rows, r0 + 64)):
                    codes[c, first_row + r] = np.uint16(np.int32(min(block[r, c], cap) * scale + 0.5))


def choose_cap(counts: npt.NDArray[np.int64], largest: float) -> float:
    """Picks the score that becomes the largest code.

    Args:
        counts: int64 (2048,), how many scores have each biased binary exponent (float64's, 0 for zeros and subnormals).
        largest: the largest score.
    """
    total = int(counts.sum())
    if largest == 0.0 or total == 0:
        return 0.0
    # A score with biased exponent e lies in 2**(e - 1023) * [1, 2): 1.5 stands for all of them. In units of the largest
    # exponent's power of two, so that nothing overflows.
    top = int(np.flatnonzero(counts)[-1])
    level = [1.5 * 2.0 ** max(e - top, -1000) for e in range(top + 1)]
    mass = sum(float(counts[e]) * level[e] for e in range(top + 1))
    mean = mass / total
    unit = 2.0 ** (max(top, 1) - 1023)
    if mean * unit * CODE_MAX >= COMFORTABLE * largest:
        return largest

    def clipped(cap: float) -> float:
        return sum(float(counts[e]) * (level[e] - cap) for e in range(top + 1) if level[e] > cap)

    cap = 2.0
    while mean * CODE_MAX < COMFORTABLE * cap:
        cap /= 2.0
    while clipped(cap) > CLIPPED * mass and mean * CODE_MAX >= 2.0 * FINEST * cap:
        cap *= 2.0
    return min(cap * unit, largest)


def survey(scores: Scores) -> float:
    """Reads all scores once, checks them, and returns the cap to encode them with.

    Raises:
        ValueError: if a score is NaN or infinite.
    """
    counts = np.zeros(_EXPONENTS, np.int64)
    bits = np.uint64(0)
    for _, block in scores.blocks():
        bits = max(bits, np.uint64(_survey(block.reshape(-1).view(np.uint64), counts)))
    if counts[_EXPONENTS - 1]:
        scores.raise_not_finite()
    return choose_cap(counts, float(bits.view(np.float64)))


def encode(scores: Scores, cap: float) -> npt.NDArray[np.uint16]:
    """Turns scores into codes, a block of rows at a time.

    Args:
        scores: those to encode, all or a sample.
        cap: the score that becomes CODE_MAX, from ``survey``.

    Returns:
        uint16 (columns, rows padded with zeros to a multiple of LANES), C-contiguous: a row per matrix column.
    """
    codes = np.zeros((scores.columns, -(-scores.rows // LANES) * LANES), np.uint16)
    scale = CODE_MAX / cap if cap > 0.0 else 0.0
    if 0.0 < scale < np.inf:  # a cap below 1e-305 is as good as zero
        for first, block in scores.blocks():
            _encode(block, cap, scale, codes, first)
    return codes
