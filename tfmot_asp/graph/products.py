"""Counts the multiply-adds of a traced graph: every matrix product and convolution, with its size as a GEMM.

A GEMM of size (M, N, K) makes M × N outputs from K multiply-adds each:

- M: rows, one per output position: batch × height × width of a convolution's output, batch × tokens of a Dense layer;
- N: output channels;
- K: what is summed over: the input channels, times the kernel's positions for a convolution (implicit GEMM).

Grouped, depthwise and batched products are several GEMMs of one size. Positions that padding adds count like all
others, as is usual. Of loops, one step is counted and multiplied by the number of steps; where that is not known before
the loop runs, the loop is named instead. Elementwise multiplications, which are no work for Tensor Cores, do not count.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from tfmot_asp import einsum
from tfmot_asp.graph.constants import behind
from tfmot_asp.graph.flat_graph import Graph, Op, Tensor
from tfmot_asp.graph.flatten import trace_branches, trace_loop
from tfmot_asp.graph.loop_steps import number_of_steps
from tfmot_asp.graph.ops import (
    CHOICES,
    CONVOLUTION,
    DEPTHWISE,
    EINSUM,
    LOOPS,
    MATMUL,
    PRODUCTS,
    TRANSPOSED,
    is_transposed,
    product_of,
)


@dataclass(frozen=True)
class GemmSize:
    """Size of a matrix product.

    Attributes:
        m: rows of the product: positions.
        n: columns of the product: output channels, of one group.
        k: length of the sums: input channels of one group, times the kernel positions of a convolution.
        groups: number of products of this size that one call computes.
        calls: how often the model computes it: more than once for shared layers and in loops.
    """

    m: int
    n: int
    k: int
    groups: int = 1
    calls: int = 1

    @property
    def multiply_adds(self) -> int:
        """Multiplications, each with its addition, of all groups and calls."""
        return self.m * self.n * self.k * self.groups * self.calls


@dataclass(frozen=True, eq=False)
class Product:
    """One product of a graph.

    Attributes:
        op: name of the op.
        type: TensorFlow op type.
        size: as a GEMM.
        variables: positions in ``Graph.variables`` of what the constant operand is computed from; empty if both
            operands depend on the model's input.
        constant: whether an operand is constant, that is, does not depend on the model's input.
    """

    op: str
    type: str
    size: GemmSize
    variables: tuple[int, ...]
    constant: bool


@dataclass(frozen=True)
class Count:
    """The products of a graph, and what could not be counted, in words."""

    products: tuple[Product, ...]
    uncounted: tuple[str, ...]

    @property
    def multiply_adds(self) -> int:
        """Of all products."""
        return sum(product.size.multiply_adds for product in self.products)


def count_products(graph: Graph) -> Count:
    """Finds every matrix product and convolution that the graph computes from its inputs.

    Products of constants are left out: they are computed once, when the model is exported.

    Args:
        graph: what ``graph.trace.trace`` makes of a model, with static shapes.

    Returns:
        A ``Count``, in execution order.
    """
    return _count(graph, set(graph.inputs))


def depends_on(graph: Graph, varying: Collection[Tensor]) -> set[Tensor]:
    """The tensors that are no constants: ``varying``, what is computed from it, and results that differ by run."""
    depends = set(varying)
    for op in graph.ops:
        reads_variable = op.type in ("ReadVariableOp", "VarHandleOp") or any(
            tensor.variable is not None for tensor in op.inputs
        )
        by_run = op.source.op_def.is_stateful and not reads_variable
        if by_run or any(tensor in depends for tensor in op.inputs):
            depends.update(op.outputs)
    return depends


def _count(graph: Graph, varying: Collection[Tensor]) -> Count:
    depends = depends_on(graph, varying)
    dilated = _dilated(graph)
    products: list[Product] = []
    uncounted: list[str] = []
    for op in graph.ops:
        if not any(tensor in depends for tensor in op.inputs):
            continue
        if op.type in LOOPS:
            inner = _count_loop(graph, op, depends)
        elif op.type in CHOICES:
            inner = _count_branches(graph, op, depends)
        else:
            inner = _count_op(op, depends, dilated.get(op, op.outputs[0] if op.outputs else None))
        products += inner.products
        uncounted += inner.uncounted
    return Count(tuple(products), tuple(uncounted))


def _count_op(op: Op, depends: Collection[Tensor], result: Tensor | None) -> Count:
    if op.type in PRODUCTS and len(op.inputs) < 2:
        return Count((), ())  # an einsum of one operand: a sum, a diagonal or a transposition
    product = product_of(op)
    if product is None:
        return Count((), (f"{op}: what it computes is not known here",) if _hides_products(op) else ())
    constant = [index for index in product.operands if op.inputs[index] not in depends]
    weight = constant[0] if constant else None
    tensors = [result, *(op.inputs[index] for index in product.operands)]
    if result is None or any(tensor is None or tensor.shape is None for tensor in tensors):
        return Count((), (f"{op}: its size depends on the data",))
    variables = _variables_behind(op.inputs[weight]) if weight is not None else ()
    size = _MEASURES[product.kind](op, weight, _shape(result))
    return Count((Product(op.name, op.type, size, variables, weight is not None),), ())


def _dilated(graph: Graph) -> dict[Op, Tensor]:
    """The results of dilated convolutions that TensorFlow computes as plain ones, in between two rearrangements.

    These cut the image into batches, of up to `dilation - 1` rows more than there are. What a dilated convolution
    computes, and what runtimes make of the three ops, is the result of the last.
    """

    def skip(tensor: Tensor) -> Op | None:
        while tensor.op is not None and tensor.op.type in _AROUND_CONVOLUTIONS:
            tensor = tensor.op.inputs[0]
        return tensor.op

    results = {}
    for op in graph.ops:
        if op.type == "BatchToSpaceND" and (inner := skip(op.inputs[0])) is not None and "Conv" in inner.type:
            before = skip(inner.inputs[0]) if inner.inputs else None
            if before is not None and before.type == "SpaceToBatchND":
                results[inner] = op.outputs[0]
    return results


_AROUND_CONVOLUTIONS = frozenset({"Identity", "ExpandDims", "Squeeze", "Reshape", "BiasAdd"})


def _variables_behind(tensor: Tensor) -> tuple[int, ...]:
    sources = behind(tensor, lambda one: one.op.inputs if one.op is not None else ())
    return tuple(sorted({source.variable for source in sources if source.variable is not None}))


# Control flow

_BLACK_BOXES = re.compile(r"MatMul|Conv(?!ert)|Einsum|Dot|RNN|Attention|PyFunc|XlaCallModule|XlaLaunch|TRTEngineOp")


def _hides_products(op: Op) -> bool:
    """Whether an op without a measure may compute products: it calls a function, or its name says so."""
    calls = any(attribute.type in ("func", "list(func)") for attribute in op.source.op_def.attr)
    return calls or bool(_BLACK_BOXES.search(op.type))


def _count_loop(graph: Graph, op: Op, depends: Collection[Tensor]) -> Count:
    condition, body = trace_loop(graph, op)
    step = _count(body, {tensor for tensor in body.inputs if tensor in depends or tensor not in op.inputs})
    if not step.products and not step.uncounted:
        return step
    steps = number_of_steps(op, condition, body)
    if steps is None:
        each = f"{step.multiply_adds:,} multiply-adds each"
        return Count((), (f"{op}: a loop, the number of its steps is not known ({each})", *step.uncounted))
    products = (
        replace(product, size=replace(product.size, calls=product.size.calls * steps)) for product in step.products
    )
    return Count(tuple(products) if steps else (), step.uncounted)


def _count_branches(graph: Graph, op: Op, depends: Collection[Tensor]) -> Count:
    """The branch with the most multiply-adds: which of them runs is known only then."""
    branches = [_count(branch, depends) for branch in trace_branches(graph, op)]
    largest = max(branches, key=lambda branch: branch.multiply_adds)
    uncounted = [reason for branch in branches for reason in branch.uncounted]
    if len({branch.multiply_adds for branch in branches}) > 1:
        uncounted.append(f"{op}: which branch runs depends on the data; the larger one is counted")
    return Count(largest.products, tuple(dict.fromkeys(uncounted)))


# The size of each product. `weight` is the index of the constant operand, None if there is none, `result` the shape of
# what it makes.


def _convolution(op: Op, weight: int | None, result: Sequence[int]) -> GemmSize:
    kernel = _shape(op.inputs[1])
    groups = PRODUCTS[op.type].groups(op, kernel)
    return GemmSize(math.prod(result) // max(1, kernel[-1]), kernel[-1] // groups, math.prod(kernel[:-1]), groups)


def _depthwise_convolution(op: Op, weight: int | None, result: Sequence[int]) -> GemmSize:
    height, width, channels, multiplier = _shape(op.inputs[1])
    positions = math.prod(result) // max(1, channels * multiplier)
    return GemmSize(positions, multiplier, height * width, channels)


def _transposed_convolution(op: Op, weight: int | None, result: Sequence[int]) -> GemmSize:
    """Each input position makes one value per kernel position and output channel."""
    *kernel, outputs, inputs = _shape(op.inputs[1])
    positions = math.prod(_shape(op.inputs[2])) // max(1, inputs)
    return GemmSize(positions, math.prod(kernel) * outputs, inputs)


def _matrix_product(op: Op, weight: int | None, result: Sequence[int]) -> GemmSize:
    left, right = list(_shape(op.inputs[0])), list(_shape(op.inputs[1]))
    for operand, side in enumerate((left, right)):
        if is_transposed(op, operand):
            side[-2:] = side[:-3:-1]
    (*left_batch, rows, summed), (*right_batch, _, columns) = left, right
    batch = math.prod(result[:-2])
    if weight == 0:
        rows, columns, left_batch, right_batch = columns, rows, right_batch, left_batch
    if weight is not None and math.prod(right_batch) == 1:
        return GemmSize(batch * rows, columns, summed)
    return GemmSize(rows, columns, summed, batch)


def _einsum(op: Op, weight: int | None, result: Sequence[int]) -> GemmSize:
    equation = einsum.parse(op.attr("equation"))
    sizes: dict[str, int] = {}
    operands = []
    for operand, tensor in enumerate(op.inputs):
        axes = dict(zip(equation.axes(operand, len(_shape(tensor))), _shape(tensor), strict=True))
        # Of an ellipsis, dimensions of size 1 broadcast: they are not there.
        axes = {name: size for name, size in axes.items() if size != 1 or not name.startswith(einsum.ELLIPSIS)}
        sizes |= axes
        operands.append(set(axes))
    kept = set(equation.output_axes(len(result)))
    data, kernel = (operands[1], operands[0]) if weight == 0 else (operands[0], operands[1])

    def size_of(chosen: set[str]) -> int:
        return math.prod(sizes[name] for name in chosen)

    both = data & kernel
    return GemmSize(size_of(data - kernel), size_of(kernel - data), size_of(both - kept), size_of(both & kept))


def _shape(tensor: Tensor) -> Sequence[int]:
    assert tensor.shape is not None, tensor  # checked before anything is measured
    return tensor.shape


_MEASURES: dict[str, Callable[[Op, int | None, Sequence[int]], GemmSize]] = {
    CONVOLUTION: _convolution,
    DEPTHWISE: _depthwise_convolution,
    TRANSPOSED: _transposed_convolution,
    MATMUL: _matrix_product,
    EINSUM: _einsum,
}
