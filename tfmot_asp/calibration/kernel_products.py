"""The products that a kernel takes part in: which op, which tensor it reads, and which of the kernel's weights meet.

A kernel is followed from its variable through casts, reshapes and transposes to the ops that multiply with it. Where it
goes another way (into a loop, together with other kernels, into a function of weights) no single product tells what its
inputs are, and the reason is kept.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfmot_asp import einsum
from tfmot_asp.calibration.rows import ContractedRows, ConvolutionRows, Rows
from tfmot_asp.graph.execute import Interpreter
from tfmot_asp.graph.flat_graph import Graph, Op, Tensor
from tfmot_asp.graph.ops import (
    CONVOLUTION,
    EINSUM,
    MATMUL,
    TRANSPOSED,
    channel_axis,
    channels_last,
    is_transposed,
    product_of,
)
from tfmot_asp.keras_models.kernels import Kernel


class KernelMatrix:
    """A kernel as the matrix (K, O) of its product: kernel positions and reduction axis as rows, output channels.

    Stripes of the m by n pattern lie within each run of ``reduction_size`` rows.
    """

    def __init__(self, kernel: Kernel) -> None:
        reduction, output = kernel.layout.reduction_axes, kernel.layout.output_axes
        positions = tuple(axis for axis in range(len(kernel.shape)) if axis not in (*reduction, *output))
        self.shape = kernel.shape
        self.inner, self.output = (*positions, *reduction), output
        self.reduction_size = kernel.reduction_size
        self.size = math.prod(self.shape[axis] for axis in self.inner)

    def of(self, value: np.ndarray) -> np.ndarray:
        """The matrix of an array of the kernel's shape."""
        return value.transpose((*self.inner, *self.output)).reshape(self.size, -1)

    def back(self, matrix: np.ndarray) -> np.ndarray:
        """The inverse of ``of``."""
        order = (*self.inner, *self.output)
        return matrix.reshape([self.shape[axis] for axis in order]).transpose(np.argsort(order))

    def per_row(self, values: np.ndarray) -> np.ndarray:
        """One value for each row, (K,), as an array that broadcasts against the kernel."""
        sizes = [self.shape[axis] for axis in self.inner] + [1] * len(self.output)
        return values.reshape(sizes).transpose(np.argsort((*self.inner, *self.output)))

    def places(self, flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Row and column of weights given by their place in the flattened kernel."""
        index = np.unravel_index(flat, self.shape)
        row = np.ravel_multi_index([index[a] for a in self.inner], [self.shape[a] for a in self.inner])
        column = np.ravel_multi_index([index[a] for a in self.output], [self.shape[a] for a in self.output])
        return row, column


@dataclass(frozen=True, eq=False)
class KernelBlock:
    """A part of a kernel's matrix that is a product of its own.

    Attributes:
        rows: rows of the kernel's matrix, ascending, whole runs of the reduction axis.
        columns: columns of the kernel's matrix.
        source: which block of the rows that the product reads it multiplies with.
        order: for each of ``rows`` the column of what the product reads; None if they are in the same order.
    """

    rows: np.ndarray
    columns: np.ndarray
    source: int
    order: np.ndarray | None

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for blocks that see the same inputs."""
        return self.source, len(self.rows), None if self.order is None else self.order.tobytes()


@dataclass(frozen=True, eq=False)
class Site:
    """One product of a kernel.

    Attributes:
        op: that multiplies.
        data: what it multiplies the kernel with.
        rows: how the rows are taken out of ``data``.
        blocks: the parts of the kernel, together the whole of it.
    """

    op: Op
    data: Tensor
    rows: Rows
    blocks: tuple[KernelBlock, ...]

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for products that see the same inputs, whatever kernel they multiply with."""
        return self.data, self.rows, tuple(dict.fromkeys(block.key for block in self.blocks))


Places = tuple[np.ndarray, ...]
"""Where the weights are in a tensor: for each of its axes what each position adds to the place in the stored kernel."""


def stored_places(shape: Sequence[int]) -> Places:
    """The places of a kernel as it is stored."""
    return tuple(np.arange(size) * math.prod(shape[axis + 1 :]) for axis, size in enumerate(shape))


def reshaped_places(places: Places, shape: Sequence[int]) -> Places | None:
    """The places behind a reshape; None where they do not add up axis by axis any more.

    Args:
        places: before it.
        shape: after it; one size may be -1.
    """
    size = math.prod(map(len, places))
    shape = [size // -math.prod(shape) if n == -1 else n for n in shape]
    result: list[np.ndarray] = []
    before, after = list(places), list(shape)
    while before or after:  # the next axes that hold the same weights on both sides
        joined = before.pop(0) if before else np.zeros(1, np.int64)
        sizes = [after.pop(0)] if after else []
        while len(joined) != math.prod(sizes):
            if len(joined) < math.prod(sizes):
                joined = (joined[:, None] + before.pop(0)).reshape(-1)
            else:
                sizes.append(after.pop(0))
        grid = joined.reshape(sizes)
        own = [np.moveaxis(grid, axis, 0).reshape(n, -1)[:, 0] for axis, n in enumerate(sizes)]
        total = np.zeros((), np.int64)
        for steps in own:
            total = total[..., None] + steps
        if (total != grid).any():
            return None
        result += own
    return tuple(result)


class NotFollowedError(Exception):
    """Why the inputs of a kernel cannot be told; the text completes "it keeps its magnitude mask: "."""


class ProductFinder:
    """Finds the products of kernels in a graph.

    Args:
        graph: of the model, with open or static shapes.
        interpreter: of the graph: computes the shapes that reshapes of a kernel take.
    """

    def __init__(self, graph: Graph, interpreter: Interpreter) -> None:
        self.graph = graph
        self.interpreter = interpreter
        self._readers: dict[Tensor, list[tuple[Op, int]]] = defaultdict(list)
        self._resources: dict[int, list[Op]] = defaultdict(list)
        for op in graph.ops:
            for index, tensor in enumerate(op.inputs):
                self._readers[tensor].append((op, index))
                if tensor.variable is not None:
                    self._resources[tensor.variable].append(op)

    def sites(self, kernel: Kernel) -> list[Site]:
        """The products of a kernel, in order of execution.

        Raises:
            NotFollowedError: if there is none that its weights reach in a plain way.
        """
        variable = self.graph.variable_index(kernel.variable)
        if variable is None:
            raise NotFollowedError("the model does not use it in inference")
        matrix = KernelMatrix(kernel)
        stored = stored_places(kernel.shape)
        found: list[Site] = []
        reasons: list[str] = []
        for reader in self._resources[variable]:
            if reader.type != "ReadVariableOp":
                if reader.type not in ("Identity", "AssignVariableOp"):
                    reasons.append(f"it is used inside of {reader}, which is run as a whole")
                continue
            stack = [(reader.outputs[0], stored)]
            while stack:
                tensor, places = stack.pop()
                for op, operand in self._readers[tensor]:
                    try:
                        moved = self._moved(op, operand, places)
                        if moved is not None:
                            stack.append((op.outputs[0], moved))
                        else:
                            found.append(self._site(op, operand, places, kernel, matrix))
                    except NotFollowedError as reason:
                        reasons.append(str(reason))
        if not found:
            raise NotFollowedError(reasons[0] if reasons else "no product reads it")
        return sorted(found, key=lambda site: site.op.index)

    def _moved(self, op: Op, operand: int, places: Places) -> Places | None:
        """Where the weights are behind an op that only moves them; None for any other op."""
        if operand != 0 or op.type not in _MOVING or (len(op.inputs) > 1 and op.inputs[1] in self.interpreter.varying):
            return None
        if op.type in ("Cast", "Identity", "StopGradient"):
            return places
        if op.type == "Squeeze":
            named = [axis % len(places) for axis in op.attr("squeeze_dims")]
            return tuple(p for axis, p in enumerate(places) if not (axis in named if named else len(p) == 1))
        argument = self.interpreter.constant(op.inputs[1]).numpy()
        if op.type == "Transpose":
            return tuple(places[axis] for axis in argument)
        if op.type == "ExpandDims":
            axis = int(argument.reshape(())) % (len(places) + 1)
            return (*places[:axis], np.zeros(1, np.int64), *places[axis:])
        moved = reshaped_places(places, [int(size) for size in argument])
        if moved is None:
            raise NotFollowedError(f"{op} rearranges its weights")
        return moved

    def _site(self, op: Op, operand: int, places: Places, kernel: Kernel, matrix: KernelMatrix) -> Site:
        product = product_of(op)
        describe = None if product is None or product.fused else _DESCRIBED.get(product.kind)
        if product is None or describe is None:
            raise NotFollowedError(f"its weights go into {op}, not straight into a product")
        others = [other for other in product.operands if other != operand]
        if operand not in product.weights or op.inputs[others[0]] not in self.interpreter.varying:
            raise NotFollowedError(f"{op} multiplies it with what is no input")
        rows, roles = describe(op, operand, tuple(map(len, places)), kernel.layout.groups)
        blocks = tuple(_blocks(places, roles, matrix))
        data = op.inputs[others[0]]
        while data.op is not None and data.op.type == "Identity":
            data = data.op.inputs[0]
        return Site(op, data, rows, blocks)


_MOVING = frozenset({"Cast", "Identity", "StopGradient", "Squeeze", "Reshape", "ExpandDims", "Transpose"})


@dataclass(frozen=True)
class _AxisRoles:
    """The axes of a kernel as its op reads it: what numbers the blocks, what is summed, what is made.

    Attributes:
        groups: of a grouped convolution, whose output channels are cut into as many runs.
        own_rows: whether each block has rows of its own; else all multiply with the same.
    """

    blocks: tuple[int, ...]
    summed: tuple[int, ...]
    made: tuple[int, ...]
    groups: int = 1
    own_rows: bool = True


def _blocks(places: Places, roles: _AxisRoles, matrix: KernelMatrix) -> Iterable[KernelBlock]:
    def offsets(axes: tuple[int, ...]) -> np.ndarray:
        result = np.zeros(1, np.int64)
        for axis in axes:
            result = (result[:, None] + places[axis]).reshape(-1)
        return result

    summed, made = offsets(roles.summed), offsets(roles.made)
    cuts = [(start, made) for start in offsets(roles.blocks)]
    if roles.groups > 1:
        cuts = [(0, run) for run in made.reshape(roles.groups, -1)]
    for number, (start, run) in enumerate(cuts):
        rows, same_column = matrix.places(start + summed + run[0])
        same_row, columns = matrix.places(start + summed[0] + run)
        if (same_column != same_column[0]).any() or (same_row != same_row[0]).any():
            raise NotFollowedError("its product does not sum over its reduction axis alone")
        order = np.argsort(rows, kind="stable")
        rows, size = rows[order], matrix.reduction_size
        whole = len(rows) % size == 0 and not (rows[::size] % size).any()
        if not whole or (rows.reshape(-1, size) != rows[::size, None] + np.arange(size)).any():
            raise NotFollowedError("its product sums over parts of its reduction axis")
        identity = np.array_equal(order, np.arange(len(order)))
        yield KernelBlock(rows, columns, number if roles.own_rows else 0, None if identity else order)


# How each op takes part


def _convolution(op: Op, operand: int, shape: Sequence[int], groups: int) -> tuple[Rows, _AxisRoles]:
    spatial = len(shape) - 2
    last = channels_last(op.attr("data_format", "NHWC"))
    inner = slice(1, -1) if last else slice(2, None)
    strides, dilations = tuple(op.attr("strides")), tuple(op.attr("dilations", [])) or (1,) * (spatial + 2)
    padding: Any = op.attr("padding").decode()
    if padding == "EXPLICIT":
        pairs = op.attr("explicit_paddings")
        padding = tuple(zip(pairs[::2], pairs[1::2], strict=True))[inner]
    if len(strides) == spatial:
        inner = slice(None)
    rows = ConvolutionRows(tuple(shape[:spatial]), strides[inner], dilations[inner], padding, last, groups)
    return rows, _AxisRoles((), tuple(range(spatial + 1)), (spatial + 1,), groups)


def _transposed_convolution(op: Op, operand: int, shape: Sequence[int], groups: int) -> tuple[Rows, _AxisRoles]:
    """Each input position gives one value per kernel position and output channel; where they overlap, they add up."""
    if groups > 1:
        raise NotFollowedError(f"{op} has groups")
    spatial = len(shape) - 2
    channels = channel_axis(op, spatial + 2)
    kept = tuple(axis for axis in range(spatial + 2) if axis != channels)
    return ContractedRows((), kept, (channels,)), _AxisRoles(
        tuple(range(spatial)), (spatial + 1,), (spatial,), own_rows=False
    )


def _matrix_product(op: Op, operand: int, shape: Sequence[int], groups: int) -> tuple[Rows, _AxisRoles]:
    rank = _rank(op, 1 - operand)

    def inner(side: int, axes: tuple[int, int]) -> tuple[int, int]:
        """(kept, summed) of an operand's last two axes."""
        swapped = is_transposed(op, side) != (side == 1)
        return (axes[1], axes[0]) if swapped else axes

    kept, summed = inner(1 - operand, (rank - 2, rank - 1))
    made, kernel_summed = inner(operand, (len(shape) - 2, len(shape) - 1))
    # Axes in front number products that are computed alike; those of size 1 are there to broadcast.
    wide = [axis for axis in range(len(shape) - 2) if shape[axis] > 1]
    blocks = tuple(axis + rank - len(shape) for axis in wide)
    if any(axis < 0 for axis in blocks):
        raise NotFollowedError(f"{op} repeats what it multiplies with for several kernels")
    free = (*(axis for axis in range(rank - 2) if axis not in blocks), kept)
    return ContractedRows(blocks, free, (summed,)), _AxisRoles(tuple(wide), (kernel_summed,), (made,))


def _einsum(op: Op, operand: int, shape: Sequence[int], groups: int) -> tuple[Rows, _AxisRoles]:
    equation = einsum.parse(op.attr("equation"))
    data, kernel = equation.axes(1 - operand, _rank(op, 1 - operand)), equation.axes(operand, len(shape))
    output = equation.output_axes(len(op.source.outputs[0].shape))
    if len(set(data)) < len(data) or len(set(kernel)) < len(kernel):
        raise NotFollowedError(f"{op} takes a diagonal of it")
    blocks = [letter for letter in kernel if letter in data and letter in output]
    summed = [letter for letter in kernel if letter in data and letter not in output]
    made = [letter for letter in kernel if letter not in data]
    free = [letter for letter in data if letter in output and letter not in kernel]
    if not summed or len(free) + len(blocks) + len(summed) < len(data) or any(x not in output for x in made):
        raise NotFollowedError(f"{op} sums over more than its reduction axis")
    rows = ContractedRows(_axes(blocks, data), _axes(free, data), _axes(summed, data))
    return rows, _AxisRoles(_axes(blocks, kernel), _axes(summed, kernel), _axes(made, kernel))


def _axes(letters: Sequence[str], term: Sequence[str]) -> tuple[int, ...]:
    return tuple(term.index(letter) for letter in letters)


def _rank(op: Op, operand: int) -> int:
    shape = op.inputs[operand].shape
    rank = len(shape) if shape is not None else op.source.inputs[operand].shape.rank
    if rank is None:
        raise NotFollowedError(f"{op} reads a tensor whose number of axes is open")
    return rank


_DESCRIBED = {
    CONVOLUTION: _convolution,
    TRANSPOSED: _transposed_convolution,
    MATMUL: _matrix_product,
    EINSUM: _einsum,
}
