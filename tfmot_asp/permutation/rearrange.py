"""Chains of reshapes and transposes that only reorder the channels of an axis, seen as the one reordering they are.

A channel shuffle splits an axis, transposes the parts and merges them again. Op by op the parts are axes of their own,
of which one at most could move; as a whole it is a fixed reordering, through which every channel can move by itself.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from typing import NamedTuple

import numpy as np

from tfmot_asp.graph.flat_graph import Graph, Op, Tensor

_RESHAPES = frozenset({"Reshape", "Squeeze", "ExpandDims"})
# Ops that work on each element alone, so it does not matter whether they come before or after a rearrangement.
_POINTWISE = frozenset(
    ("Abs", "Cast", "Elu", "Erf", "Exp", "Identity", "LeakyRelu", "Neg", "Relu", "Relu6", "Rsqrt", "Selu", "Sigmoid")
    + ("Softplus", "Sqrt", "Square", "StopGradient", "Tanh")
)
_LONGEST = 16


@dataclasses.dataclass(frozen=True)
class Rearrangement:
    """What a chain of ops does to the axes of its source.

    Attributes:
        source: the tensor that the chain starts from.
        axes: for each axis of the result the source axis and, for each position, the position there; None for size 1.
        inner: the ops of the chain before its last, which nothing else reads.
    """

    source: Tensor
    axes: tuple[tuple[int, np.ndarray] | None, ...]
    inner: tuple[Op, ...]


def find_rearrangements(graph: Graph) -> dict[int, Rearrangement]:
    """The rearrangements of a graph, by the index of their last op. Chains do not overlap."""
    readers = Counter(id(t) for op in graph.ops for t in op.inputs)
    readers.update(id(t) for t in graph.outputs)
    found: dict[int, Rearrangement] = {}
    taken: set[int] = set()
    own = set(graph.ops)  # what a loop's body reads may be made outside of it
    for op in graph.ops:
        if op.type not in _RESHAPES:
            continue
        rearrangement = _ending_in(op, readers, taken, own)
        if rearrangement is not None:
            found[op.index] = rearrangement
            taken.update([op.index, *(inner.index for inner in rearrangement.inner)])
    return found


def _ending_in(last: Op, readers: Counter[int], taken: set[int], own: set[Op]) -> Rearrangement | None:
    """The shortest chain up to `last` that splits axes and yet maps whole axes to whole axes."""
    chain = [last]
    split = False
    while len(chain) < _LONGEST:
        source = chain[0].inputs[0]
        if any(t.value is None for t in chain[0].inputs[1:]) or source.shape is None or 0 in source.shape:
            return None
        split = split or chain[0].type in _RESHAPES
        if split and len(chain) > 1 and chain[0].type in _RESHAPES:
            axes = _composed(source.shape, chain)
            if axes is not None:
                return Rearrangement(source, axes, tuple(chain[:-1]))
        before = source.op
        if (
            before is None
            or before not in own
            or before.index in taken
            or readers[id(source)] != 1
            or len(before.outputs) != 1
        ):
            return None
        if before.type not in _RESHAPES and before.type not in _POINTWISE and before.type != "Transpose":
            return None
        chain.insert(0, before)
    return None


class _Digit(NamedTuple):
    """A factor of a source axis, as 12 = 3 × 4 has two: its value v stands for `v * stride` positions of the axis."""

    axis: int
    size: int
    stride: int


def _composed(shape: tuple[int, ...], chain: list[Op]) -> tuple[tuple[int, np.ndarray] | None, ...] | None:
    """The axes of the chain's result in terms of `shape`, if each is a whole axis of it; else None."""
    axes = [[_Digit(i, n, 1)] for i, n in enumerate(shape)]
    for op in chain:
        if op.type == "Transpose":
            order = op.inputs[1].value
            assert order is not None
            axes = [axes[int(i)] for i in order]
        elif op.type in _RESHAPES:
            regrouped = _regrouped([digit for axis in axes for digit in axis], op.outputs[0].shape)
            if regrouped is None:
                return None
            axes = regrouped
    result: list[tuple[int, np.ndarray] | None] = []
    for digits in axes:
        sources = {digit.axis for digit in digits if digit.size > 1}
        if not sources:
            result.append(None)
            continue
        if len(sources) > 1 or math.prod(digit.size for digit in digits) != shape[min(sources)]:
            return None
        positions = np.zeros(1, np.int64)
        for digit in digits:
            positions = np.add.outer(positions, digit.stride * np.arange(digit.size)).ravel()
        result.append((min(sources), positions))
    return tuple(result)


def _regrouped(digits: list[_Digit], shape: tuple[int, ...] | None) -> list[list[_Digit]] | None:
    """Distributes digits, in order, over axes of `shape`, splitting where need be; None where they do not divide."""
    if shape is None:
        return None
    queue = list(reversed(digits))
    axes = []
    for size in shape:
        axis: list[_Digit] = []
        while size > 1:
            digit = queue.pop()
            if digit.size > size:
                rest, remainder = divmod(digit.size, size)
                if remainder:
                    return None
                queue.append(digit._replace(size=rest))
                digit = digit._replace(size=size, stride=digit.stride * rest)
            elif size % digit.size:
                return None
            axis.append(digit)
            size //= digit.size
        axes.append(axis)
    return axes
