"""GEMM-like ops: matrix products, einsum, convolutions. The summed axes of both sides are tied."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tfmot_asp import einsum
from tfmot_asp.graph.flat_graph import Op
from tfmot_asp.graph.ops import (
    CONVOLUTION,
    DEPTHWISE,
    EINSUM,
    MATMUL,
    PRODUCTS,
    TRANSPOSED,
    channel_axis,
    is_transposed,
    spatial_axes,
    types_of,
)
from tfmot_asp.permutation.axes import Axes, Axis, Outputs
from tfmot_asp.permutation.rules.registry import register_rule


@register_rule(*types_of(MATMUL))
def matmul(op: Op, axes: Axes) -> Outputs:
    """`(..., i, k) × (..., k, j) → (..., i, j)`, either side possibly transposed.

    Ties the two summed axes k, and the batch axes that broadcast with each other; i and j go through. Pins nothing.
    """
    a, b = list(axes[op.inputs[0]]), list(axes[op.inputs[1]])
    for operand, side in enumerate((a, b)):
        if is_transposed(op, operand):
            side[-2:] = side[:-3:-1]
    axes.tie(a[-1], b[-2])
    rank = len(op.outputs[0].shape or ())
    batch: list[Axis] = [None] * (rank - 2)
    for side in (a[:-2], b[:-2]):
        for i, axis in enumerate(side, start=rank - 2 - len(side)):
            batch[i] = axes.tie(batch[i], axis)
    return [[*batch, a[-2], b[-1]]]


@register_rule(*types_of(EINSUM))
def einsum_rule(op: Op, axes: Axes) -> Outputs:
    """Ties axes with the same letter, and those of `...` from the last on; letters that the output lacks are summed.

    Pins nothing, but all if a letter occurs twice in one term (a diagonal).
    """
    equation = einsum.parse(op.attr("equation"))
    by_name: dict[str, Axis] = {}
    for i, tensor in enumerate(op.inputs):
        names = equation.axes(i, len(axes[tensor]))
        if len(set(names)) < len(names):
            return axes.pin_all(op, "takes a diagonal")
        for name, axis in zip(names, axes[tensor], strict=True):
            by_name[name] = axes.tie(by_name.get(name), axis)
    out = equation.output_axes(len(op.outputs[0].shape or ()))
    if len(set(out)) < len(out):
        return axes.pin_all(op, "writes a diagonal")
    return [[by_name[name] for name in out]]


@register_rule(*types_of(CONVOLUTION))
def convolution(op: Op, axes: Axes) -> Outputs:
    """Kernel `(*window, C / groups, K)`; the output has the batch of the input and the channels K of the kernel.

    Ties the input's channels to the kernel's C, of several groups each to the same one. Then channels of the output may
    move within their group, which a tie to an axis of its own for each group says. With one input channel per group,
    ties each input channel to the outputs made from it. Pins spatial axes, of the kernel too, unless the window is a
    single pixel and the stride 1.
    """
    if op.attr("batch_dims", 1) != 1:
        return axes.pin_all(op, "a convolution with several batch axes")
    x, kernel = list(axes[op.inputs[0]]), axes[op.inputs[1]]
    window = (op.inputs[1].shape or ())[:-2]
    channel, spatial = channel_axis(op, len(x)), spatial_axes(op, len(x))
    per_group = (op.inputs[1].shape or ())[-2]
    groups = PRODUCTS[op.type].groups(op, op.inputs[1].shape or ())
    outputs = kernel[-1]
    if groups == 1:
        axes.tie(x[channel], kernel[-2])
    elif per_group == 1:
        outputs = _each_channel(axes, x[channel], outputs, op.inputs[1].shape or (), groups)
    else:
        _tie_groups(axes, x[channel], kernel[-2], groups)
        outputs = _confine(axes, outputs, groups, (op.inputs[1].shape or ())[-1])
    result = slide(op, axes, x, spatial, window, kernel[:-2])
    result[channel] = outputs
    return [result]


def _each_channel(axes: Axes, channels: Axis, outputs: Axis, kernel_shape: Sequence[int], groups: int) -> Axis:
    """A group per channel, which is a depthwise convolution: channel c makes the outputs c·M to c·M + M − 1."""
    if outputs is None:
        outputs = axes.fresh(kernel_shape[-1])
    if channels is None:
        channels = axes.fresh(groups)
    multiplier = len(outputs) // len(channels)
    axes.tie(outputs, np.repeat(channels, multiplier), np.tile(np.arange(multiplier), len(channels)))
    return outputs


def _tie_groups(axes: Axes, channels: Axis, kernel: Axis, groups: int) -> None:
    """Position i of the kernel's input axis is channel i of every group."""
    if channels is not None and kernel is not None:
        axes.tie(channels, np.tile(kernel, groups), np.repeat(np.arange(groups), len(kernel)))
    elif channels is not None:
        # A kernel with equal weights sums each group: channels may move within theirs.
        for part in channels.reshape(groups, -1):
            axes.tie(part, axes.fresh(len(part)))


def _confine(axes: Axes, outputs: Axis, groups: int, size: int) -> np.ndarray:
    """Output channels of a grouped convolution: free to move within a group, not across."""
    if outputs is None:
        outputs = axes.fresh(size)
    for part in outputs.reshape(groups, -1):
        axes.tie(part, axes.fresh(len(part)))
    return outputs


@register_rule(*types_of(DEPTHWISE))
def depthwise_convolution(op: Op, axes: Axes) -> Outputs:
    """Kernel `(h, w, C, M)`: channel c makes the outputs c·M to c·M + M − 1.

    Ties the input's channels to the kernel's, and each to its M outputs. Pins M, the order of the outputs of a channel,
    and spatial axes.
    """
    x, kernel = list(axes[op.inputs[0]]), axes[op.inputs[1]]
    channel, spatial = channel_axis(op, len(x)), spatial_axes(op, len(x))
    *window, size, multiplier = op.inputs[1].shape or ()
    outputs: Axis = axes.tie(kernel[-2], x[channel])
    if multiplier > 1:
        reason = "the channel multiplier of a depthwise convolution"
        axes.pin(kernel[-1], reason, op)
        run = axes.fresh(size * multiplier)
        if outputs is not None:
            axes.tie(run, np.repeat(outputs, multiplier), np.tile(np.arange(multiplier), size))
        else:
            axes.pin(run, reason, op)
        outputs = run
    result = slide(op, axes, x, spatial, window, kernel[:-2])
    result[channel] = outputs
    return [result]


@register_rule(*types_of(TRANSPOSED))
def transposed_convolution(op: Op, axes: Axes) -> Outputs:
    """Inputs (sizes, kernel, x); kernel `(*window, K, C)`: the output channels stand before the input channels.

    Ties the channels of x to the kernel's C; the output has its K. Pins spatial axes, and all if it is grouped.
    """
    kernel, x = axes[op.inputs[1]], list(axes[op.inputs[2]])
    channel, spatial = channel_axis(op, len(x)), spatial_axes(op, len(x))
    kernel_shape, x_shape = op.inputs[1].shape or (), op.inputs[2].shape or ()
    if kernel_shape[-1] != x_shape[channel] or (op.outputs[0].shape or ())[channel] != kernel_shape[-2]:
        return axes.pin_all(op, "a grouped transposed convolution")
    axes.tie(x[channel], kernel[-1])
    for i in spatial:
        axes.pin(x[i], "a spatial axis", op)
    for axis in kernel[:-2]:
        axes.pin(axis, "a spatial axis", op)
    shape = op.outputs[0].shape or ()
    result = [axes.pinned(n, "a spatial axis", op) if i in spatial else x[i] for i, n in enumerate(shape)]
    result[channel] = kernel[-2]
    return [result]


_RULES_BY_KIND = {
    CONVOLUTION: convolution,
    DEPTHWISE: depthwise_convolution,
    TRANSPOSED: transposed_convolution,
    MATMUL: matmul,
    EINSUM: einsum_rule,
}
_FUSED_OPS = frozenset(
    (
        "BiasAdd",
        "FusedBatchNorm",
        "Elu",
        "GeluApproximate",
        "GeluExact",
        "LeakyRelu",
        "Relu",
        "Relu6",
        "Sigmoid",
        "Tanh",
    )
)


@register_rule(*types_of(*_RULES_BY_KIND, fused=True))
def fused_product(op: Op, axes: Axes) -> Outputs:
    """A product with the bias or batch norm (vectors) and activation that TensorFlow's optimizer put into its op.

    Ties what the product's own rule does, and the vectors to the channels. Pins all if something else is fused.
    """
    vectors = op.inputs[2:]
    if not _FUSED_OPS.issuperset(name.decode() for name in op.attr("fused_ops")) or any(
        len(tensor.shape or ()) != 1 for tensor in vectors
    ):
        return axes.pin_all(op, "fused with what is neither a bias, batch norm nor activation")
    (result,) = _RULES_BY_KIND[PRODUCTS[op.type].kind](op, axes)
    result = list(result)
    channel = channel_axis(op, len(result))
    for tensor in vectors:
        result[channel] = axes.tie(result[channel], axes[tensor][0])
    return [result]


def slide(
    op: Op, axes: Axes, x: list[Axis], spatial: Sequence[int], window: Sequence[int], kernel: Sequence[Axis] = ()
) -> list[Axis]:
    """The axes of a tensor over which a window has moved: spatial ones are pinned, unless the window is one pixel."""
    result = list(x)
    strides = op.attr("strides", None)
    shape = op.outputs[0].shape or ()
    for axis in kernel:
        axes.pin(axis, "a spatial axis", op)
    for i, size in zip(spatial, window, strict=True):
        if size == 1 and (strides is None or strides[i] == 1) and shape[i] == len_of(op, i):
            continue
        axes.pin(x[i], "a spatial axis", op)
        result[i] = axes.pinned(shape[i], "a spatial axis", op)
    return result


def len_of(op: Op, axis: int) -> int:
    return (op.inputs[0].shape or ())[axis]
