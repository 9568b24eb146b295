"""Ops that pick positions: slice, split, gather, reverse, top-k, one-hot."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tfmot_asp.graph.flat_graph import Op, Tensor
from tfmot_asp.graph.ops import strided_index
from tfmot_asp.permutation.axes import Axes, Axis, Outputs
from tfmot_asp.permutation.rules.registry import register_rule


@register_rule("Slice")
def slice_(op: Op, axes: Axes) -> Outputs:
    """Ties what is cut out to where it was cut from. Pins nothing, but all where that is known only when it runs."""
    begin = op.inputs[1].value
    if begin is None:
        return axes.pin_all(op, "slices at a place that is known only when it runs")
    shape = op.outputs[0].shape or ()
    return [
        [
            axes.pick(axis, np.arange(int(start), int(start) + size))
            for axis, start, size in zip(axes[op.inputs[0]], begin, shape, strict=True)
        ]
    ]


@register_rule("StridedSlice")
def strided_slice(op: Op, axes: Axes) -> Outputs:
    """`x[1:3, ..., None, 0]`: ties what is picked to where it was; an axis picked at one position is dropped.

    That position is thereby distinguished from its neighbours. Pins all where the place is known only when it runs.
    """
    x, shape = axes[op.inputs[0]], op.inputs[0].shape or ()
    if any(t.value is None for t in op.inputs[1:]):
        return axes.pin_all(op, "slices at a place that is known only when it runs")
    index = strided_index(op, len(shape))
    result: list[Axis] = []
    axis = 0
    for item in index:
        if item is None:
            result.append(None)
            continue
        positions = np.arange(shape[axis])[item]
        if np.ndim(positions):
            result.append(axes.pick(x[axis], positions))
        else:
            axes.pick(x[axis], positions[None])
        axis += 1
    return [result]


@register_rule("Split", "SplitV")
def split(op: Op, axes: Axes) -> Outputs:
    """Ties each piece to the part of the axis that it was; the other axes go through to each. Pins nothing."""
    tensor, where = (op.inputs[1], op.inputs[0]) if op.type == "Split" else (op.inputs[0], op.inputs[2])
    if where.value is None:
        return axes.pin_all(op, "splits along an axis that is known only when it runs")
    x = list(axes[tensor])
    axis = int(where.value) % len(x)
    results: list[Sequence[Axis]] = []
    start = 0
    for output in op.outputs:
        size = (output.shape or ())[axis]
        piece = list(x)
        piece[axis] = axes.pick(x[axis], np.arange(start, start + size))
        results.append(piece)
        start += size
    return results


def _gathered(axes: Axes, source: Tensor) -> list[Axis] | None:
    """The axes of what a gather picks from, a tensor or a variable; None for another resource."""
    if not source.is_resource:
        return list(axes[source])
    if source.variable is None:
        return None
    return [axes.alike(axis) for axis in axes.of_variable(source.variable)]


@register_rule("GatherV2", "Gather", "ResourceGather")
def gather(op: Op, axes: Axes) -> Outputs:
    """Rows picked by constant indices are tied to where they were; rows picked by data (an embedding) are pinned.

    In the second case the axes of the indices take the place of the axis that is picked from; batch axes are tied.
    """
    source, indices = op.inputs[0], op.inputs[1]
    x = _gathered(axes, source)
    if x is None:
        return axes.pin_all(op, "reads a resource that is not a variable")
    where = op.inputs[2].value if len(op.inputs) > 2 else np.asarray(0)
    if where is None or not x:
        return axes.pin_all(op, "gathers along an axis that is known only when it runs")
    axis = int(where) % len(x)
    batch = int(op.attr("batch_dims", 0))
    if batch < 0:
        batch += len(indices.shape or ())
    if indices.value is not None and batch == 0 and np.ndim(indices.value) <= 1:
        picked = axes.pick(x[axis], np.ravel(indices.value).astype(np.int64))
        return [[*x[:axis], *([picked] if np.ndim(indices.value) else []), *x[axis + 1 :]]]
    axes.pin(x[axis], "picked from by index", op)
    own = axes[indices]
    if indices.value is not None:  # which row goes where is written in the constant
        own = tuple(None if n == 1 else axes.pinned(n, "picked from by index", op) for n in indices.shape or ())
    leading = [axes.tie(a, b) for a, b in zip(x[:batch], own[:batch], strict=True)]
    return [[*leading, *x[batch:axis], *own[batch:], *x[axis + 1 :]]]


@register_rule("GatherNd", "ResourceGatherNd")
def gather_nd(op: Op, axes: Axes) -> Outputs:
    """Pins the axes that are picked from, and the last of the indices, each position of which is for one of them."""
    source, indices = op.inputs[0], op.inputs[1]
    depth = (indices.shape or (0,))[-1]
    x = _gathered(axes, source)
    if x is None:
        return axes.pin_all(op, "reads a resource that is not a variable")
    for axis in x[:depth]:
        axes.pin(axis, "picked from by index", op)
    *own, last = axes[indices]
    axes.pin(last, "an index", op)
    return [[*own, *x[depth:]]]


@register_rule("ReverseV2")
def reverse(op: Op, axes: Axes) -> Outputs:
    """Ties position i of the axes it reverses to position n − 1 − i. Pins nothing."""
    where = op.inputs[1].value
    if where is None:
        return axes.pin_all(op, "reversed along an axis that is known only when it runs")
    x = list(axes[op.inputs[0]])
    for i in np.ravel(where):
        axis = x[int(i)]
        x[int(i)] = None if axis is None else axes.pick(axis, np.arange(len(axis))[::-1])
    return [x]


@register_rule("Roll")
def roll(op: Op, axes: Axes) -> Outputs:
    """Ties each position of the axes it rolls to the one that it comes from. Pins nothing."""
    shifts, where = op.inputs[1].value, op.inputs[2].value
    if shifts is None or where is None:
        return axes.pin_all(op, "rolled by a number that is known only when it runs")
    x = list(axes[op.inputs[0]])
    for shift, i in zip(np.ravel(shifts), np.ravel(where), strict=True):
        axis = x[int(i)]
        x[int(i)] = None if axis is None else axes.pick(axis, np.roll(np.arange(len(axis)), int(shift)))
    return [x]


@register_rule("TopKV2")
def top_k(op: Op, axes: Axes) -> Outputs:
    """Values are sorted, and the second output names positions: pins the last axis."""
    x = list(axes[op.inputs[0]])
    axes.pin(x[-1], "sorted along this axis", op)
    last = axes.pinned((op.outputs[0].shape or ())[-1], "sorted along this axis", op)
    return [[*x[:-1], last]] * 2


@register_rule("OneHot")
def one_hot(op: Op, axes: Axes) -> Outputs:
    """Pins the new axis, each position of which is a class; the others go through."""
    x = list(axes[op.inputs[0]])
    rank = len(x) + 1
    axis = int(op.attr("axis")) % rank
    x.insert(axis, axes.pinned((op.outputs[0].shape or ())[axis], "one position per class", op))
    return [x]


@register_rule("ReverseSequence")
def reverse_sequence(op: Op, axes: Axes) -> Outputs:
    """Each batch entry is reversed up to its own length: pins the sequence, ties the lengths to the batch."""
    x = list(axes[op.inputs[0]])
    axes.pin(x[int(op.attr("seq_dim"))], "reversed up to a length that is known only when it runs", op)
    batch = int(op.attr("batch_dim"))
    x[batch] = axes.tie(x[batch], axes[op.inputs[1]][0])
    return [x]


@register_rule("MatrixBandPart")
def matrix_band_part(op: Op, axes: Axes) -> Outputs:
    """Clears what is far from the diagonal: pins the last two axes, whose places matter."""
    return [in_matrix(op, axes, op.inputs[0], 2)]


@register_rule("MatrixDiagV3", "MatrixDiagPartV3")
def matrix_diagonal(op: Op, axes: Axes) -> Outputs:
    """From the last axis to a matrix, or back: pins those axes, the leading ones go through.

    With several diagonals, which the general form allows, pins all.
    """
    if op.inputs[1].value is None or np.ravel(op.inputs[1].value).any() or np.size(op.inputs[1].value) > 1:
        return axes.pin_all(op, "works by the place in a matrix")
    return [in_matrix(op, axes, op.inputs[0], 1 if op.type == "MatrixDiagV3" else 2)]


@register_rule("MatrixSetDiagV3")
def matrix_set_diagonal(op: Op, axes: Axes) -> Outputs:
    """Pins the matrix and its new diagonal, ties the leading axes of both; pins all if there are several diagonals."""
    if op.inputs[2].value is None or np.ravel(op.inputs[2].value).any() or np.size(op.inputs[2].value) > 1:
        return axes.pin_all(op, "works by the place in a matrix")
    matrix = in_matrix(op, axes, op.inputs[0], 2)
    *leading, diagonal = axes[op.inputs[1]]
    axes.pin(diagonal, "works by the place in a matrix", op)
    return [[*(axes.tie(a, b) for a, b in zip(matrix[:-2], leading, strict=True)), *matrix[-2:]]]


def in_matrix(op: Op, axes: Axes, tensor: Tensor, last: int) -> list[Axis]:
    """Pins the `last` axes of `tensor`, and returns its leading axes with pinned ones for the rest of the output."""
    reason = "works by the place in a matrix"
    x, shape = list(axes[tensor]), op.outputs[0].shape or ()
    for axis in x[-last:]:
        axes.pin(axis, reason, op)
    leading = x[:-last]
    return [*leading, *(axes.pinned(n, reason, op) for n in shape[len(leading) :])]
