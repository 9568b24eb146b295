"""The matrix products of a traced graph, and the constant weight that each of them multiplies with.

Weights are found by following the graph from the product back to variables and constants, through whatever casts,
transposes, reshapes and products with other constants lie between: what is checked is the array that the product reads.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_asp.graph.evaluate import run_op
from tfmot_asp.graph.flat_graph import Graph, Op, Tensor
from tfmot_asp.graph.ops import product_of
from tfmot_asp.graph.products import depends_on


@dataclass(frozen=True, eq=False)
class Gemm:
    """One matrix product with a constant operand.

    Attributes:
        op: name of the op in the graph.
        type: TensorFlow op type.
        weight_name: name of the variable or constant that the weight comes from.
        weight: the array that the product reads; None if it could not be computed.
        reduction_axes: the weight's axes that are summed over, flattened row-major; empty for depthwise convolution.
        output_axes: the weight's axes that become output channels.
        groups: number of groups of a grouped convolution.
        problem: why ``weight`` is None.
    """

    op: str
    type: str
    weight_name: str
    weight: np.ndarray | None
    reduction_axes: tuple[int, ...]
    output_axes: tuple[int, ...]
    groups: int = 1
    problem: str | None = None


def find_gemms(graph: Graph) -> list[Gemm]:
    """Finds every matrix product with a constant operand, in execution order.

    Args:
        graph: what ``trace_function`` makes of a concrete function.

    Returns:
        One ``Gemm`` per product. A weight that several products read the same way (a layer that is called twice) is
        listed once, at the first of them. Products of two activations are left out.
    """
    depends = depends_on(graph, graph.inputs)
    reader = ConstantReader(graph)
    found: list[Gemm] = []
    seen: set[tuple[Any, ...]] = set()
    for op in graph.ops:
        product, operand = product_of(op), weight_operand(op, depends)
        if product is None or operand is None:
            continue
        tensor = op.inputs[operand]
        reduction_axes, output_axes = product.weight_axes(op, operand)
        source = _source(graph, tensor)
        key = (source, reduction_axes, output_axes, tensor.shape)
        if key not in seen:
            seen.add(key)
            weight, problem = reader.read(tensor)
            groups = 1 if weight is None else product.groups(op, weight.shape)
            found.append(Gemm(op.name, op.type, source[0], weight, reduction_axes, output_axes, groups, problem))
    return found


def weight_operand(op: Op, varying: Collection[Tensor]) -> int | None:
    """Which input of a product is its constant weight (one of them, if both are); None if it has none."""
    product = product_of(op)
    return next((i for i in product.weights if op.inputs[i] not in varying), None) if product is not None else None


def weight_names(graph: Graph) -> dict[str, str]:
    """For each product with a constant weight, by the op's name: what its weight is called."""
    varying = depends_on(graph, graph.inputs)
    operands = ((op, weight_operand(op, varying)) for op in graph.ops)
    return {op.name: _source(graph, op.inputs[operand])[0] for op, operand in operands if operand is not None}


class ConstantReader:
    """Computes tensors that no input takes part in, each once.

    Args:
        graph: in which they are.
        stored: values of ops that stand for constants, by name.
    """

    def __init__(self, graph: Graph, stored: Mapping[str, np.ndarray] | None = None) -> None:
        self.graph = graph
        self.stored = stored or {}
        self.known: dict[int, np.ndarray] = {}

    def read(self, tensor: Tensor) -> tuple[np.ndarray | None, str | None]:
        try:
            return self._value(tensor), None
        except (ValueError, TypeError, NotImplementedError, AttributeError, tf.errors.OpError) as error:
            return None, str(error)

    def _value(self, target: Tensor) -> np.ndarray:
        stack = [target]
        while stack:  # no recursion: chains of ops can be long
            tensor = stack[-1]
            if id(tensor) in self.known:
                stack.pop()
                continue
            if tensor.value is not None:
                self.known[id(tensor)] = tensor.value
            elif tensor.op is None:
                raise ValueError("its value is captured from outside the graph")
            elif tensor.op.name in self.stored:
                self.known[id(tensor)] = self.stored[tensor.op.name]
            elif tensor.op.type in ("ReadVariableOp", "Identity") and tensor.op.inputs[0].variable is not None:
                self.known[id(tensor)] = self.graph.variables[tensor.op.inputs[0].variable].numpy()
            else:
                missing = [source for source in tensor.op.inputs if id(source) not in self.known]
                if missing:
                    stack.extend(missing)
                    continue
                self._run(tensor.op)
            stack.pop()
        return self.known[id(target)]

    def _run(self, op: Op) -> None:
        if op.source.op_def.is_stateful:
            raise ValueError(f"op {op} between the weight and the product is not understood")
        with tf.init_scope(), tf.device("cpu"):
            results = run_op(op.source, [tf.constant(self.known[id(tensor)], tensor.dtype) for tensor in op.inputs])
        for output, result in zip(op.outputs, results, strict=True):
            self.known[id(output)] = result.numpy()


def _source(graph: Graph, tensor: Tensor) -> tuple[str, int]:
    """Name and identity of the largest variable or constant behind a tensor: the kernel, among scales and shapes."""
    best: tuple[int, str, int] = (-1, "?", id(tensor))
    stack, seen = [tensor], set()
    while stack:
        current = stack.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        if current.variable is not None:
            variable = graph.variables[current.variable]
            best = max(best, (int(np.prod(variable.shape)), variable.name.split(":")[0], id(variable)))
        elif current.value is not None and (current.op is None or current.op.type == "Const"):
            # Without the scope of the call that it was found in.
            name = current.op.source.name if current.op else "constant"
            best = max(best, (current.value.size, name, id(current)))
        if current.op is not None:
            stack.extend(current.op.inputs)
    return best[1], best[2]
