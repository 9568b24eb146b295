"""Values in the device's memory, a block of them at a time: random operands, and how far two results are apart.

Values matter to times: large products are limited by power, which grows with the bits that change. fp16 is standard
normal; int8 is what symmetric quantization makes of that. Whatever has the name ``cupy`` here may be NumPy.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

BLOCK = 1 << 22  # values; divides by 4
BYTES_PER_VALUE = 24  # what a block's temporaries take at most

_INT8_SCALE, _INT8_LARGEST = 32, 127  # four standard deviations are represented


def fill_normal(cupy: Any, generator: Any, array: Any, *, two_four: bool = False) -> None:
    """Fills an array with random values.

    Args:
        cupy: the module.
        generator: its ``RandomState``.
        array: float16 or int8, contiguous, with a multiple of 4 values in a row.
        two_four: keep of every four in a row the two of largest magnitude, as a pruned weight has them.
    """
    for (part,) in _blocks(array):
        values = generator.standard_normal(part.size, np.float32)
        if two_four:
            _keep_two_of_four(cupy, values.reshape(-1, 4))
        if array.dtype == np.int8:
            values = cupy.clip(cupy.rint(_INT8_SCALE * values), -_INT8_LARGEST, _INT8_LARGEST)
        part[:] = values.astype(array.dtype)


def difference(result: Any, expected: Any) -> tuple[float, float]:
    """The largest difference of two results, and the largest magnitude of the second; NaN if either has one."""
    largest = [(float(abs(a - b).max()), float(abs(b).max())) for a, b in _blocks(result, expected)]
    apart, magnitude = np.max(largest, axis=0)
    return float(apart), float(magnitude)


def _keep_two_of_four(cupy: Any, stripes: Any) -> None:
    magnitudes = abs(stripes)
    one, other = magnitudes[:, :2], magnitudes[:, 2:]
    high, low = cupy.maximum(one, other), cupy.minimum(one, other)
    third = cupy.minimum(low.max(axis=1), high.min(axis=1))  # of two pairs, in order: the third largest of the four
    stripes[magnitudes <= third[:, None]] = 0


def _blocks(*arrays: Any) -> Iterator[tuple[Any, ...]]:
    flat = [array.reshape(-1) for array in arrays]
    for start in range(0, flat[0].size, BLOCK):
        yield tuple(array[start : start + BLOCK] for array in flat)
