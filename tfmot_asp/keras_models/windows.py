"""A large array in windows of a few megabytes: what walks over weights holds no second copy of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

WINDOW = 1 << 20
"""Elements of a window: 4 MiB in float32."""
LARGE_WINDOW = 1 << 24
"""The same where windows are read from files: runs of bytes are longer then."""


def windows(shape: Sequence[int], whole: Sequence[int] = (), elements: int = WINDOW) -> Iterator[tuple[slice, ...]]:
    """Slices that together cover an array, in row-major order.

    Args:
        shape: of the array.
        whole: axes that are not cut.
        elements: of a window at most, where the axes that are not cut allow it.

    Example:
        >>> list(windows((3, 4), elements=8))
        [(slice(0, 2, None), slice(0, 4, None)), (slice(2, 3, None), slice(0, 4, None))]
    """
    inner = math.prod(shape[axis] for axis in whole)
    steps = list(shape)
    full = True  # as long as all that lies further in is taken whole, an axis may be too
    for axis in reversed([axis for axis in range(len(shape)) if axis not in whole]):
        steps[axis] = max(1, min(shape[axis], elements // max(inner, 1))) if full else 1
        full = full and steps[axis] == shape[axis]
        inner *= shape[axis]
    cuts = [range(0, size, max(step, 1)) for size, step in zip(shape, steps, strict=True)]
    for starts in itertools.product(*cuts):
        yield tuple(
            slice(start, min(start + step, size)) for start, step, size in zip(starts, steps, shape, strict=True)
        )
