"""Sets a deep picture in columns, as text is: a strip of eighty rows is read by nobody."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tfmot_asp.permutation.picture.fold import Block


def set_columns(blocks: Sequence[Block], heights: Sequence[float], widths: Sequence[float], aspect: float = 1.5) -> int:
    """Sets blocks in columns, so that the picture is about `aspect` times as wide as it is high.

    A column ends where few edges cross: at the trunk of the model rather than inside a residual branch.

    Args:
        blocks: as from :func:`fold`; their `column` is set.
        heights: of each block, with the gap below, in any unit.
        widths: of each block, in the same unit.
        aspect: width by height that is aimed at.

    Returns:
        The number of columns.
    """
    depth = 1 + max((b.level for b in blocks), default=0)
    height, width = [0.0] * depth, [0.0] * depth
    for block, h, w in zip(blocks, heights, widths, strict=True):
        height[block.level] = max(height[block.level], h)
        width[block.level] += w
    crossing = _crossings(blocks, depth)
    ordinary = sorted(width)[(len(width) * 4) // 5] if width else 1.0
    count = max(1, round(math.sqrt(aspect * sum(height) / max(ordinary, 1e-9))))
    ends = _cuts(height, crossing, count)
    for block in blocks:
        block.column = sum(end <= block.level for end in ends)
    return len(ends) + 1


def _crossings(blocks: Sequence[Block], depth: int) -> list[int]:
    """For each level the number of blocks whose result is needed below it."""
    last = [b.level for b in blocks]
    for block in blocks:
        for source in block.inputs:
            last[source] = max(last[source], block.level)
    crossing = [0] * depth
    for block, end in zip(blocks, last, strict=True):
        for level in range(block.level, end):
            crossing[level] += 1
    return crossing


def _cuts(height: Sequence[float], crossing: Sequence[int], count: int) -> list[int]:
    """The first level of each column but the first."""
    total, ends, start = sum(height), [], 0
    for column in range(1, count):
        goal, slack = total * column / count, total / count / 4
        best: tuple[float, int] | None = None
        reached = sum(height[:start])
        for level in range(start, len(height) - 1):
            reached += height[level]
            if abs(reached - goal) <= slack:
                cost = (crossing[level] + abs(reached - goal) / slack, level + 1)
                best = cost if best is None or cost < best else best
        if best is not None:
            ends.append(best[1])
            start = best[1]
    return ends
