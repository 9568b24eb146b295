"""Which of a model's matrices are searched at a time: on a GPU as many as have room, on the CPU one after the other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from tfmot_asp.hardware import cuda_device
from tfmot_asp.pattern import TWO_FOUR, PatternLike
from tfmot_asp.permutation.search import loader
from tfmot_asp.permutation.search.api import bytes_on_a_device

MOST_TOGETHER = 1 << 26
"""Elements of matrices that a GPU searches together."""


def batches(
    shapes: Mapping[int, tuple[int, int]], *, device: str, effort: str, m_by_n: PatternLike = TWO_FOUR
) -> Iterator[list[int]]:
    """Splits matrices into those that one call of ``search_many`` takes.

    Args:
        shapes: (rows, columns) of each matrix, by a number.
        device: as ``search`` takes it, and so are the others.
        effort: see ``search``.
        m_by_n: see ``search``.

    Yields:
        Numbers, in the order given.
    """
    if device == "cpu" or loader.why_not() is not None:
        yield from ([number] for number in shapes)
        return
    room = cuda_device.free_bytes()
    batch: list[int] = []
    elements = needed = 0
    for number, shape in shapes.items():
        size, takes = math.prod(shape), bytes_on_a_device(*shape, m_by_n, effort)
        if batch and (elements + size > MOST_TOGETHER or needed + takes > room):
            yield batch
            batch, elements, needed = [], 0, 0
        batch.append(number)
        elements, needed = elements + size, needed + takes
    if batch:
        yield batch
