"""Ops that only rearrange: reading variables, transpose, joining and repeating."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from tfmot_asp.graph.flat_graph import Op
from tfmot_asp.graph.ops import channels_last
from tfmot_asp.permutation.axes import Axes, Axis, Outputs
from tfmot_asp.permutation.rules.registry import register_rule


@register_rule("ReadVariableOp")
def read_variable(op: Op, axes: Axes) -> Outputs:
    """The output's axes are the variable's own. Ties and pins nothing."""
    variable = op.inputs[0].variable
    if variable is None:
        return axes.pin_all(op, "reads a resource that is not a variable")
    return [axes.of_variable(variable)]  # type: ignore[list-item]


@register_rule("Fill")
def fill(op: Op, axes: Axes) -> Outputs:
    """One value everywhere: every axis is uniform. Ties and pins nothing."""
    return [[None] * len(op.outputs[0].shape or ())]


def runs(in_shape: Sequence[int], out_shape: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The smallest runs of input and output axes with equal products; axes of size 1 belong to none."""
    ins = [i for i, n in enumerate(in_shape) if n != 1]
    outs = [i for i, n in enumerate(out_shape) if n != 1]
    runs = []
    while ins:
        left, right = [ins.pop(0)], [outs.pop(0)]
        a, b = in_shape[left[0]], out_shape[right[0]]
        while a != b:
            if a < b:
                left.append(ins.pop(0))
                a *= in_shape[left[-1]]
            else:
                right.append(outs.pop(0))
                b *= out_shape[right[-1]]
        runs.append((left, right))
    return runs


def refined(
    ins: Sequence[int], outs: Sequence[int]
) -> tuple[tuple[int, ...], list[tuple[int, ...]], list[tuple[int, ...]]] | None:
    """The common refinement of two factorizations of one number, row-major, or None if there is none.

    Returns:
        The sizes of the parts, and for every input and output axis the positions of the parts it is made of.
    """
    strides = sorted({int(np.prod(side[i:])) for side in (ins, outs) for i in range(len(side) + 1)}, reverse=True)
    if any(a % b for a, b in itertools.pairwise(strides)):
        return None
    sizes = tuple(a // b for a, b in itertools.pairwise(strides))

    def parts(side: Sequence[int]) -> list[tuple[int, ...]]:
        ends = [strides.index(int(np.prod(side[i:]))) for i in range(len(side) + 1)]
        return [tuple(range(a, b)) for a, b in itertools.pairwise(ends)]

    return sizes, parts(ins), parts(outs)


@register_rule("Transpose", "ConjugateTranspose")
def transpose(op: Op, axes: Axes) -> Outputs:
    """The same axes in another order. Ties and pins nothing."""
    order = op.inputs[1].value
    if order is None:
        return axes.pin_all(op, "transposes by an order that is known only when it runs")
    x = axes[op.inputs[0]]
    return [[x[int(i)] for i in order]]


@register_rule("BroadcastTo")
def broadcast_to(op: Op, axes: Axes) -> Outputs:
    """An axis of size 1 is uniform already, and stays so at any size. Ties and pins nothing."""
    x = axes[op.inputs[0]]
    return [[None] * (len(op.outputs[0].shape or ()) - len(x)) + list(x)]


@register_rule("ConcatV2", "Concat")
def concat(op: Op, axes: Axes) -> Outputs:
    """The joined axis is a new one: ties each piece of it to its input, and the other axes across the inputs.

    A piece whose input is uniform may be reordered within itself. Pins nothing.
    """
    where, *tensors = op.inputs if op.type == "Concat" else (op.inputs[-1], *op.inputs[:-1])
    if where.value is None:
        return axes.pin_all(op, "joins along an axis that is known only when it runs")
    shape = op.outputs[0].shape or ()
    axis = int(where.value) % len(shape)
    pieces = [t for t in tensors if (t.shape or ())[axis]]
    result: list[Axis] = [None] * len(shape)
    for tensor in pieces:
        for i, own in enumerate(axes[tensor]):
            if i != axis:
                result[i] = axes.tie(result[i], own)
    joined = axes.fresh(shape[axis])
    start = 0
    for tensor in pieces:
        size = (tensor.shape or ())[axis]
        # Equal slices may stand in any order within their piece, so a uniform piece needs no tie.
        axes.tie(axes[tensor][axis], joined[start : start + size])
        if axes[tensor][axis] is None:
            axes.tie(joined[start : start + size], axes.fresh(size))
        start += size
    result[axis] = joined
    return [result]


@register_rule("Pack")
def pack(op: Op, axes: Axes) -> Outputs:
    """Stacks tensors along a new axis: pins that, since the tensors differ, and ties the others across the inputs."""
    rank = len(op.outputs[0].shape or ())
    axis = int(op.attr("axis")) % rank
    result: list[Axis] = [None] * (rank - 1)
    for tensor in op.inputs:
        result = [axes.tie(a, b) for a, b in zip(result, axes[tensor], strict=True)]
    result.insert(axis, axes.pinned(len(op.inputs), "stacked along this axis", op))
    return [result]


@register_rule("Unpack")
def unpack(op: Op, axes: Axes) -> Outputs:
    """Pins the axis along which it takes the tensors apart; the others go through to each of them."""
    x = list(axes[op.inputs[0]])
    axes.pin(x.pop(int(op.attr("axis")) % len(x)), "unstacked along this axis", op)
    return [x] * len(op.outputs)


@register_rule("Tile")
def tile(op: Op, axes: Axes) -> Outputs:
    """Copies are equal: ties each to the original, labelled by the copy. Pins nothing."""
    if op.inputs[1].value is None:
        return axes.pin_all(op, "repeated a number of times that is known only when it runs")
    result: list[Axis] = []
    for axis, times in zip(axes[op.inputs[0]], op.inputs[1].value, strict=True):
        if axis is None or times == 1:
            result.append(axis)
            continue
        copies = axes.fresh(len(axis) * int(times))
        axes.tie(copies, np.tile(axis, int(times)), np.repeat(np.arange(times), len(axis)))
        result.append(copies)
    return [result]


@register_rule("Pad", "PadV2")
def pad(op: Op, axes: Axes) -> Outputs:
    """Ties the part of a padded axis that was there to what it was. Pins nothing.

    The padding is a constant: its positions are new elements, which nothing distinguishes.
    """
    widths = op.inputs[1].value
    if widths is None:
        return axes.pin_all(op, "padded by a width that is known only when it runs")
    result: list[Axis] = []
    for i, (before, after) in enumerate(widths):
        axis, size = axes[op.inputs[0]][i], (op.inputs[0].shape or ())[i]
        if before or after:
            padded = axes.fresh(size + int(before + after))
            inner = padded[before : before + size]
            axes.tie(inner, axis if axis is not None else axes.fresh(size))
            axis = padded
        result.append(axis)
    return [result]


@register_rule("MirrorPad")
def mirror_pad(op: Op, axes: Axes) -> Outputs:
    """Pins the axes that are padded, whose ends are copied in reverse; the others go through."""
    widths = op.inputs[1].value
    if widths is None:
        return axes.pin_all(op, "padded by a width that is known only when it runs")
    result: list[Axis] = []
    for axis, size, (before, after) in zip(axes[op.inputs[0]], op.outputs[0].shape or (), widths, strict=True):
        if before or after:
            axes.pin(axis, "padded with a mirror image", op)
            axis = axes.pinned(size, "padded with a mirror image", op)
        result.append(axis)
    return [result]


@register_rule("SpaceToDepth", "DepthToSpace")
def space_to_depth(op: Op, axes: Axes) -> Outputs:
    """Channels of each of the block's pixels in turn: `(i·b + j)·C + c`, in either direction (NHWC).

    Ties each channel to its copies in the deep tensor, labelled by the pixel. Pins spatial axes, and all in NCHW.
    """
    if not channels_last(op.attr("data_format", "NHWC")):
        return axes.pin_all(op, "rearranges space into channels in a layout other than NHWC")
    x, shape = axes[op.inputs[0]], op.outputs[0].shape or ()
    copies = int(op.attr("block_size")) ** 2
    to_depth = op.type == "SpaceToDepth"
    few = shape[3] // copies if to_depth else shape[3]
    narrow, wide = (x[3], None) if to_depth else (None, x[3])
    narrow = axes.fresh(few) if narrow is None else narrow
    wide = axes.fresh(few * copies) if wide is None else wide
    axes.tie(wide, np.tile(narrow, copies), np.repeat(np.arange(copies), few))
    for i in (1, 2):
        axes.pin(x[i], "a spatial axis", op)
    spatial = [axes.pinned(shape[i], "a spatial axis", op) for i in (1, 2)]
    return [[x[0], *spatial, wide if to_depth else narrow]]


@register_rule("SpaceToBatchND", "BatchToSpaceND", "SpaceToBatch", "BatchToSpace")
def space_to_batch(op: Op, axes: Axes) -> Outputs:
    """Dilated convolution in older graphs: pins the batch and spatial axes, which trade places; channels go through."""
    x, shape = axes[op.inputs[0]], op.outputs[0].shape or ()
    moved = 1 + (2 if not op.type.endswith("ND") else (op.inputs[1].shape or (2,))[0])
    for axis in x[:moved]:
        axes.pin(axis, "moved between space and batch", op)
    return [[*(axes.pinned(n, "moved between space and batch", op) for n in shape[:moved]), *x[moved:]]]
