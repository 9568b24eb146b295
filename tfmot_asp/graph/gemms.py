"""The matrix products of a traced graph, and the constant weight that each of them multiplies with.

Weights are found by following the graph from the product back to variables and constants, through whatever casts,
transposes, reshapes and products with other constants lie between: what is checked is the array that the product reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_asp.graph.evaluate import run_op
from tfmot_asp.graph.flat_graph import Graph, Op, Tensor
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
        describe = PRODUCTS.get(op.type)
        if describe is None:
            continue
        for operand in (1, 0) if op.type in EITHER_OPERAND else (1,):
            tensor = op.inputs[operand]
            if tensor in depends:
                continue
            reduction_axes, output_axes = describe(op, operand)
            source = _source(graph, tensor)
            key = (source, reduction_axes, output_axes, tensor.shape)
            if key not in seen:
                seen.add(key)
                weight, problem = reader.read(tensor)
                groups = _groups(op, weight)
                found.append(Gemm(op.name, op.type, source[0], weight, reduction_axes, output_axes, groups, problem))
            break  # both operands constant: the product itself is one, count it once
    return found


def weight_names(graph: Graph) -> dict[str, str]:
    """For each product with a constant weight, by the op's name: what its weight is called."""
    varying = depends_on(graph, graph.inputs)
    return {
        op.name: _source(graph, op.inputs[operand])[0]
        for op in graph.ops
        if op.type in PRODUCTS
        for operand in ((0, 1) if op.type in EITHER_OPERAND else (1,))
        if op.inputs[operand] not in varying
    }


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


def _conv(op: Op, operand: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    rank = _rank(op, operand)
    return (rank - 2,), (rank - 1,)


def _transposed_conv(op: Op, operand: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    rank = _rank(op, operand)
    return (rank - 1,), (rank - 2,)


def _depthwise(op: Op, operand: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return (), (2, 3)


def _matmul(op: Op, operand: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    names = ("transpose_a", "transpose_b") if op.type.removeprefix("_Fused") == "MatMul" else ("adj_x", "adj_y")
    rank = _rank(op, operand)
    rows, columns = rank - 2, rank - 1
    summed_first = (operand == 1) != bool(op.attr(names[operand]))
    return ((rows,), (columns,)) if summed_first else ((columns,), (rows,))


def _einsum(op: Op, operand: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    equation = op.attr("equation")
    equation = equation.decode() if isinstance(equation, bytes) else equation
    operands, output = equation.replace(" ", "").split("->")
    terms = operands.split(",")
    mine = terms[operand].replace("...", "")
    others = "".join(term for i, term in enumerate(terms) if i != operand)
    offset = _rank(op, operand) - len(mine) if terms[operand].startswith("...") else 0
    reduction = tuple(offset + i for i, letter in enumerate(mine) if letter in others and letter not in output)
    outputs = tuple(offset + i for i, letter in enumerate(mine) if letter not in others and letter in output)
    return reduction, outputs


PRODUCTS: dict[str, Callable[[Op, int], tuple[tuple[int, ...], tuple[int, ...]]]] = {
    "Conv2D": _conv,
    "_FusedConv2D": _conv,
    "Conv3D": _conv,
    "Conv2DBackpropInput": _transposed_conv,
    "Conv3DBackpropInputV2": _transposed_conv,
    "DepthwiseConv2dNative": _depthwise,
    "MatMul": _matmul,
    "_FusedMatMul": _matmul,
    "BatchMatMul": _matmul,
    "BatchMatMulV2": _matmul,
    "BatchMatMulV3": _matmul,
    "Einsum": _einsum,
}
EITHER_OPERAND = frozenset(name for name, describe in PRODUCTS.items() if describe in (_matmul, _einsum))


def _rank(op: Op, operand: int) -> int:
    shape = op.inputs[operand].shape
    return len(shape) if shape is not None else len(op.source.inputs[operand].shape)


def _groups(op: Op, weight: np.ndarray | None) -> int:
    """Number of groups: a convolution whose kernel takes fewer channels than its input has."""
    if op.type not in ("Conv2D", "_FusedConv2D", "Conv3D") or weight is None:
        return 1
    data_format = op.attr("data_format")
    last = (data_format.decode() if isinstance(data_format, bytes) else data_format).endswith("C")
    shape = op.source.inputs[0].shape
    channels = shape[-1 if last else 1] if shape.rank else None
    return int(channels) // weight.shape[-2] if channels and weight.shape[-2] else 1
