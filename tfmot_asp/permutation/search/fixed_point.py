"""Scores as 12-bit codes: integers, so that sums do not depend on their order, nor on the device.

The code of a score s is round(min(s, cap) * (4095 / cap)). Usually the cap is the largest score. Where a few outliers
are so large that everything else would vanish below one code, it is a smaller power of two that leaves a typical score
COMFORTABLE codes, if that clips next to nothing, and FINEST in any case. If even that clips a noticeable share of the
total, no one scale suits: the matrix is searched twice, with the clipping cap and with the largest score, and exact
evaluation decides between the orders found (``evaluate``).
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
"""Codes of a typical score from which on nothing is clipped."""
FINEST = 8
"""Codes of a typical score below which no cap may push it."""
CLIPPED = 2.0**-10
"""Share of the total score that one cap alone may clip."""

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


def choose_caps(counts: npt.NDArray[np.int64], largest: float) -> tuple[float, ...]:
    """Picks the score that becomes the largest code; two of them where no one scale suits; none if all scores are zero.

    Args:
        counts: int64 (2048,), how many scores have each biased binary exponent (float64's, 0 for zeros and subnormals).
        largest: the largest score.
    """
    top = int(np.flatnonzero(counts)[-1])
    if top == 0:
        return ()
    # A score with biased exponent e lies in 2**(e - 1023) * [1, 2): 1.5 stands for all of them. In units of the largest
    # exponent's power of two, so that nothing overflows. Zeros are not typical of anything.
    levels = [(float(counts[e]), 1.5 * 2.0 ** max(e - top, -1000)) for e in range(1, top + 1) if counts[e]]
    number = sum(count for count, _ in levels)
    mass = sum(count * level for count, level in levels)
    unit = 2.0 ** (top - 1023)

    def kept(cap: float) -> float:
        return sum(count * min(level, cap) for count, level in levels)

    def typical_codes(cap: float) -> float:
        return kept(cap) / number * CODE_MAX / cap

    cap = 2.0
    while typical_codes(cap) < COMFORTABLE:
        cap /= 2.0
    if cap * unit >= largest:
        return (largest,)
    while mass - kept(cap) > CLIPPED * mass and typical_codes(2.0 * cap) >= FINEST:
        cap *= 2.0
    cap = min(cap, 2.0)
    if cap * unit >= largest:
        return (largest,)
    return (cap * unit,) if mass - kept(cap) <= CLIPPED * mass else (cap * unit, largest)


def survey(scores: Scores, threads: int) -> tuple[float, ...]:
    """Reads all scores once, checks them, and returns the caps to encode them with, see ``choose_caps``.

    Raises:
        ValueError: if a score is NaN or infinite.
    """

    def of_block(first: int, block: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.int64], np.uint64]:
        counts = np.zeros(_EXPONENTS, np.int64)
        return counts, np.uint64(_survey(block.reshape(-1).view(np.uint64), counts))

    parts = scores.map(of_block, threads)
    counts = np.sum([counts for counts, _ in parts], axis=0)
    if counts[_EXPONENTS - 1]:
        scores.raise_not_finite()
    return choose_caps(counts, float(max(bits for _, bits in parts).view(np.float64)))


def encode(scores: Scores, cap: float, threads: int) -> npt.NDArray[np.uint16]:
    """Turns scores into codes, a block of rows at a time.

    Args:
        scores: those to encode, all or a sample.
        cap: the score that becomes CODE_MAX, from ``survey``.
        threads: to do it with.

    Returns:
        uint16 (columns, rows padded with zeros to a multiple of LANES), C-contiguous: a row per matrix column.
    """
    codes = np.zeros((scores.columns, -(-scores.rows // LANES) * LANES), np.uint16)
    scale = CODE_MAX / cap
    if scale < np.inf:  # a cap below 1e-305 is as good as zero
        scores.map(lambda first, block: _encode(block, cap, scale, codes, first), threads)
    return codes
