"""What is the same for every input of a frozen graph: found by tracing it at two sizes of each open axis."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfmot_asp.export.lowering.frozen import Frozen
from tfmot_asp.graph.flat_graph import Graph, Op, Tensor
from tfmot_asp.graph.flatten import trace_function
from tfmot_asp.graph.graph_constants import GraphConstants
from tfmot_asp.graph.open_axes import Group, at_two_sizes, groups_of
from tfmot_asp.graph.products import depends_on

logger = logging.getLogger(__name__)


class Analysis:
    """A frozen graph at two sizes of its open axes: what agrees in both holds for all."""

    def __init__(self, frozen: Frozen, groups: Sequence[Group]) -> None:
        """Traces the graph.

        Args:
            frozen: the graph.
            groups: of its open axes.

        Raises:
            ValueError: if the graph takes none of the sizes that are tried.
        """
        first, second = _at_two_sizes(frozen, groups)
        self.graph: Graph = first
        self._twins = {id(a): b for a, b in _pairs(first, second)}
        self.varying = depends_on(first, first.inputs)
        self.constants = GraphConstants(first, frozen.stored)
        self.quantized = _behind_fake_quantization(first)
        self.uses: dict[int, list[tuple[Op, int]]] = {}
        for op in first.ops:
            for index, tensor in enumerate(op.inputs):
                self.uses.setdefault(id(tensor), []).append((op, index))
        self.outputs = {id(tensor) for tensor in first.outputs}

    def shape(self, tensor: Tensor) -> tuple[int, ...] | None:
        """Static shape with -1 for what varies; None if not even the rank is known."""
        twin = self._twins.get(id(tensor))
        if tensor.shape is None or twin is None or twin.shape is None or len(twin.shape) != len(tensor.shape):
            return None
        return tuple(a if a == b else -1 for a, b in zip(tensor.shape, twin.shape, strict=True))

    def spec(self, tensor: Tensor) -> tf.TensorSpec:
        """Its shape, with None for what varies, and its dtype."""
        shape = self.shape(tensor)
        return tf.TensorSpec(None if shape is None else [None if n == -1 else n for n in shape], tensor.dtype)

    def value(self, tensor: Tensor) -> np.ndarray | None:
        """The value of a constant; None for what varies, and for what fake quantization has touched."""
        twin = self._twins.get(id(tensor))
        if id(tensor) in self.quantized or tensor.value is None or twin is None or twin.value is None:
            return None
        same = tensor.value.shape == twin.value.shape and tensor.value.tobytes() == twin.value.tobytes()
        return tensor.value if same else None

    def weight(self, op: Op, operand: int = 1) -> np.ndarray | None:
        """The value of a product's constant operand, however large; None as for ``value``."""
        tensor = op.inputs[operand]
        if tensor in self.varying or id(tensor) in self.quantized:
            return None
        value = self.value(tensor)
        return self.constants.read(tensor)[0] if value is None and tensor.value is None else value


def open_groups(frozen: Frozen) -> list[Group]:
    """The open axes of a graph's inputs, in groups that must be of one size."""

    def fits(specs: list[tf.TensorSpec]) -> bool:
        try:
            frozen.outline(specs)
        except (ValueError, tf.errors.OpError):
            return False
        return True

    return groups_of(frozen.specs, fits)


def _at_two_sizes(frozen: Frozen, groups: Sequence[Group]) -> tuple[Graph, Graph]:
    if all(size is not None for spec in frozen.specs for size in spec.shape):
        graph = trace_function(frozen.outline(frozen.specs))
        return graph, graph
    problem: Exception | None = None
    for trial in at_two_sizes(frozen.specs, groups):
        try:
            first, second = (trace_function(frozen.outline(specs)) for specs in trial)
        except (ValueError, tf.errors.OpError) as error:
            problem = error
            continue
        if [str(op) for op in first.ops] != [str(op) for op in second.ops]:  # and others might hide that they do
            raise ValueError("the graph cannot be analysed: its ops depend on the sizes of its inputs")
        return first, second
    raise ValueError(f"the graph cannot be analysed: {problem}")


def _pairs(first: Graph, second: Graph) -> list[tuple[Tensor, Tensor]]:
    """Tensors of two traces of one graph that correspond."""
    pairs = list(zip((*first.inputs, *first.outputs), (*second.inputs, *second.outputs), strict=True))
    for a, b in zip(first.ops, second.ops, strict=True):
        pairs += [*zip(a.inputs, b.inputs, strict=True), *zip(a.outputs, b.outputs, strict=True)]
    return pairs


def _behind_fake_quantization(graph: Graph) -> set[int]:
    """Ids of constants that fake quantization made: the op is what the converters look for, so it stays."""
    found: set[int] = set()
    seen: set[int] = set()

    def visit(tensor: Tensor) -> bool:
        stack = [tensor]
        while stack:
            current = stack[-1]
            missing = [] if current.op is None else [t for t in current.op.inputs if id(t) not in seen]
            if missing:
                stack.extend(missing)
                continue
            stack.pop()
            seen.add(id(current))
            if current.op is not None and (
                current.op.type.startswith(("FakeQuant", "QuantizeAndDequantize"))
                or any(id(t) in found for t in current.op.inputs)
            ):
                found.add(id(current))
        return id(tensor) in found

    for op in graph.ops:
        for tensor in op.inputs:
            visit(tensor)
    return found
