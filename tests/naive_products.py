"""Multiply-adds counted one by one: the oracle for ``tfmot_asp.graph.products``."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence


def output_positions(sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int],
                     padding: str) -> int:  # fmt: skip
    """How often a window fits: tried out at each offset."""
    count = 1
    for size, taps, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        reach = (taps - 1) * dilation
        last = size if padding == "same" else size - reach  # "same" puts a window at every stride-th position
        count *= sum(1 for _ in range(0, max(0, last), stride))
    return count


def convolution(positions: int, taps: int, inputs: int, outputs: int, groups: int = 1) -> int:
    """Each output channel of each position sums over all taps and the input channels of its own group."""
    count = 0
    for _position in range(positions):
        for output in range(outputs):
            group = output // (outputs // groups)
            for _tap in range(taps):
                for channel in range(inputs):
                    count += channel // (inputs // groups) == group
    return count


def einsum(equation: str, shapes: Sequence[Sequence[int]]) -> int:
    """One multiplication for every value that all the letters of the operands can take together."""
    sizes: dict[str, int] = {}
    for term, shape in zip(equation.split("->")[0].split(","), shapes, strict=True):
        sizes |= dict(zip(term, shape, strict=True))
    return sum(1 for _ in itertools.product(*map(range, sizes.values())))


def roles(equation: str, sizes: Mapping[str, int]) -> tuple[int, int, int, int]:
    """(M, N, K, groups) of a product of activations and a weight, letter by letter."""
    (data, kernel), output = equation.split("->")[0].split(","), equation.split("->")[1]
    m = n = k = groups = 1
    for letter, size in sizes.items():
        if letter in data and letter in kernel:
            groups, k = (groups * size, k) if letter in output else (groups, k * size)
        elif letter in data:
            m *= size
        else:
            n *= size
    return m, n, k, groups
