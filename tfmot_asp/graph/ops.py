"""Which TensorFlow ops are matrix products, and how they take their operands: one table for all who ask.

Rules tie by it, multiply-adds are counted and weights found by it, batch norm is folded and pictures drawn by it.
Importing it loads no TensorFlow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tfmot_asp import einsum

if TYPE_CHECKING:
    from tfmot_asp.graph.flat_graph import Op

Axes = tuple[int, ...]

CONVOLUTION = "convolution"  # kernel (*window, inputs of one group, outputs)
DEPTHWISE = "depthwise convolution"  # kernel (h, w, inputs, outputs of each input)
TRANSPOSED = "transposed convolution"  # kernel (*window, outputs, inputs)
MATMUL = "matrix product"  # (..., rows, summed) and (..., summed, columns), either side possibly transposed
EINSUM = "einsum"  # as the equation says


@dataclass(frozen=True)
class ProductOp:
    """How an op computes a matrix product. The second operand is the kernel, if one of them is constant.

    Attributes:
        kind: one of the constants above, by which its axes are laid out.
        data: which input is the other operand.
        either: whether the constant operand may be this one instead.
        fused: whether bias, batch norm and activation may follow within the op, with inputs of their own.
    """

    kind: str
    data: int = 0
    either: bool = False
    fused: bool = False

    kernel = 1

    @property
    def operands(self) -> tuple[int, int]:
        """Which inputs are multiplied."""
        return self.data, self.kernel

    @property
    def weights(self) -> tuple[int, ...]:
        """Which inputs may be the constant weight, the likelier first."""
        return (self.kernel, self.data) if self.either else (self.kernel,)

    def weight_axes(self, op: Op, operand: int) -> tuple[Axes, Axes]:
        """Reduction axes and output axes of an operand that is the weight."""
        rank = _rank(op, operand)
        last, before = (rank - 1,), (rank - 2,)
        if self.kind == CONVOLUTION:
            return before, last
        if self.kind == TRANSPOSED:
            return last, before
        if self.kind == DEPTHWISE:
            return (), (rank - 2, rank - 1)
        if self.kind == MATMUL:
            return (before, last) if (operand == 1) != is_transposed(op, operand) else (last, before)
        return einsum.parse(op.attr("equation")).roles(operand, rank)

    def groups(self, op: Op, kernel_shape: Sequence[int]) -> int:
        """How many groups a convolution has: its kernel takes the channels of one."""
        if self.kind != CONVOLUTION or not kernel_shape[-2]:
            return 1
        shape = op.inputs[self.data].shape or op.source.inputs[self.data].shape  # the latter may be open
        channels = shape[channel_axis(op, len(shape))] if shape else None
        return max(1, int(channels) // kernel_shape[-2]) if channels else 1


_MATMULS = ("MatMul", "SparseMatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3")

PRODUCTS: dict[str, ProductOp] = {
    **dict.fromkeys(("Conv2D", "Conv3D", "Conv"), ProductOp(CONVOLUTION)),
    "_FusedConv2D": ProductOp(CONVOLUTION, fused=True),
    "DepthwiseConv2dNative": ProductOp(DEPTHWISE),
    # Inputs: (sizes of the result, kernel, data).
    **dict.fromkeys(("Conv2DBackpropInput", "Conv3DBackpropInputV2"), ProductOp(TRANSPOSED, data=2)),
    **dict.fromkeys(_MATMULS, ProductOp(MATMUL, either=True)),
    "_FusedMatMul": ProductOp(MATMUL, either=True, fused=True),
    **dict.fromkeys(("Einsum", "XlaEinsum"), ProductOp(EINSUM, either=True)),
}


def product_of(op: Op) -> ProductOp | None:
    """How an op multiplies; None if it does not, such as an einsum of one operand, which sums or transposes."""
    product = PRODUCTS.get(op.type)
    if product is None or (product.kind == EINSUM and len(op.inputs) != 2):
        return None
    return product


def types_of(*kinds: str, fused: bool = False) -> list[str]:
    """The op types of some kinds."""
    return [name for name, product in PRODUCTS.items() if product.kind in kinds and product.fused == fused]


def is_transposed(op: Op, operand: int) -> bool:
    """Whether a matrix product takes an operand transposed."""
    return any(op.attr(name, False) for name in (("transpose_a", "adj_x"), ("transpose_b", "adj_y"))[operand])


BATCH_NORMS = ("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3")


# Ops that call functions when they like

LOOPS = ("While", "StatelessWhile")
READS = ("ReadVariableOp", "ResourceGather", "ResourceGatherNd", "VariableShape")  # a variable, without writing it
CHOICES = ("If", "StatelessIf", "Case", "StatelessCase")


# The channel axis


def channels_last(data_format: str | bytes) -> bool:
    """Whether a ``data_format`` says so: "NHWC", "NDHWC", "CHANNELS_LAST"; not "NCHW", "NCHW_VECT_C" and the like."""
    name = data_format.decode() if isinstance(data_format, bytes) else data_format
    return not name.startswith("NC") and name != "CHANNELS_FIRST"


def channel_axis(op: Op, rank: int) -> int:
    """The channel axis of an image tensor with ``rank`` axes, by the op's ``data_format``; the last without one."""
    return rank - 1 if channels_last(op.attr("data_format", "NHWC")) else int(op.attr("batch_dims", 1))


def spatial_axes(op: Op, rank: int) -> list[int]:
    """The axes between batch and channels of the same tensor."""
    batch = int(op.attr("batch_dims", 1))
    return [axis for axis in range(batch, rank) if axis != channel_axis(op, rank)]


def _rank(op: Op, operand: int) -> int:
    shape = op.inputs[operand].shape
    return len(shape) if shape is not None else len(op.source.inputs[operand].shape)


def strided_index(op: Op, rank: int, bounds: Sequence[Any] | None = None) -> list[Any]:
    """The Python index of a StridedSlice, one entry per input axis, None for a new axis.

    `bounds` are the values of its begin, end and strides, where they are not constants of the op's own graph.
    """
    given = [tensor.value for tensor in op.inputs[1:4]] if bounds is None else bounds
    begin, end, strides = (np.ravel(np.asarray(value)) for value in given)
    masks = {k: int(op.attr(f"{k}_mask")) for k in ("begin", "end", "ellipsis", "new_axis", "shrink_axis")}

    def has(mask: str, i: int) -> bool:
        return bool(masks[mask] >> i & 1)

    index: list[Any] = []
    for i in range(len(begin)):
        if has("ellipsis", i):
            named = sum(not has("new_axis", j) and not has("ellipsis", j) for j in range(len(begin)))
            index += [slice(None)] * (rank - named)
        elif has("new_axis", i):
            index.append(None)
        elif has("shrink_axis", i):
            index.append(int(begin[i]))
        else:
            start = None if has("begin", i) else int(begin[i])
            stop = None if has("end", i) else int(end[i])
            index.append(slice(start, stop, None if strides[i] == 1 else int(strides[i])))
    used = sum(item is not None for item in index)
    return index + [slice(None)] * (rank - used)
