"""Ops through which an axis may pass whose order differs between groups, heads or other positions of another axis.

A split of channels into (groups, channels of a group) gives the second part an order of its own in each group, and
lets groups move as wholes: such an axis is :class:`~tfmot_asp.permutation.axes.Nested` over the axis of groups. That
holds as long as every op treats the groups alike and apart, as a batch: elementwise ops, sums within a group, matrix
products head by head, slices. The ops here do; each other one gets one order for all groups, by `Axes.alike`.

Most of them are told by letters, as an einsum is: which axes of the operands are the same, and which the output keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np

from tfmot_asp import einsum
from tfmot_asp.graph.flat_graph import Op
from tfmot_asp.graph.ops import EINSUM, MATMUL, channel_axis, is_transposed, strided_index, types_of
from tfmot_asp.permutation.axes import AnyAxis, Axes, Nested
from tfmot_asp.permutation.rules.elementwise import BROADCASTING, UNARY

Letters = Sequence[Hashable]
Found = list[list[AnyAxis]]
NestingRule = Callable[[Op, Axes], "Found | None"]
"""As a rule, for inputs of which an axis is nested; None if this op is none that keeps it so."""

_RULES: dict[str, NestingRule] = {}


def nesting_rule(op_type: str) -> NestingRule | None:
    """The rule of an op type for inputs with a nested axis, or None."""
    return _RULES.get(op_type)


def _register(*op_types: str) -> Callable[[NestingRule], NestingRule]:
    def register(rule: NestingRule) -> NestingRule:
        _RULES.update(dict.fromkeys(op_types, rule))
        return rule

    return register


def joined(axes: Axes, operands: Sequence[tuple[Sequence[AnyAxis], Letters]], out: Letters) -> list[AnyAxis]:
    """Ties the axes of all operands that have one letter, and returns those of the output.

    Of an axis that depends on others the widest operand is what the result depends on; where another one depends on
    fewer, its order is the same along the rest. What the output has lost is no longer depended on.
    """
    found: dict[Hashable, tuple[np.ndarray, tuple[Hashable, ...]]] = {}
    for own, letters in operands:
        for axis, letter in zip(own, letters, strict=True):
            if axis is None:
                continue
            over = tuple(letters[i] for i in axis.over) if isinstance(axis, Nested) else ()
            ids = axis.ids if isinstance(axis, Nested) else axis
            found[letter] = (ids, over) if letter not in found else _tied(axes, found[letter], (ids, over))
    result: list[AnyAxis] = []
    for letter in out:
        if letter not in found:
            result.append(None)
            continue
        ids, over = found[letter]
        lost = [i for i, other in enumerate(over) if other not in out]
        if lost:
            ids, over = axes.alike_along(ids, lost), tuple(o for o in over if o in out)
        result.append(nested(ids, [list(out).index(other) for other in over]))
    return result


def _tied(
    axes: Axes, one: tuple[np.ndarray, tuple[Hashable, ...]], other: tuple[np.ndarray, tuple[Hashable, ...]]
) -> tuple[np.ndarray, tuple[Hashable, ...]]:
    """Ties two axes, each over the letters of its own; the result is over those of the wider one."""
    (wide, over), (narrow, under) = (one, other) if len(one[1]) >= len(other[1]) else (other, one)
    foreign = [i for i, letter in enumerate(under) if letter not in over]
    if foreign:
        narrow, under = axes.alike_along(narrow, foreign), tuple(letter for letter in under if letter in over)
    if wide is narrow:
        return wide, over
    shared = [i for i, letter in enumerate(over) if letter in under]
    narrow = narrow.transpose([*(under.index(over[i]) for i in shared), narrow.ndim - 1])
    narrow = narrow.reshape([n if i in shared or i == len(over) else 1 for i, n in enumerate(wide.shape)])
    apart = [n if i not in shared and i < len(over) else 1 for i, n in enumerate(wide.shape)]
    label = np.broadcast_to(np.arange(np.prod(apart)).reshape(apart), wide.shape)
    axes.tie(wide.ravel(), np.broadcast_to(narrow, wide.shape).ravel(), label.ravel())
    return wide, over


def nested(ids: np.ndarray, over: Sequence[int]) -> AnyAxis:
    """An axis with these ids, nested over what it depends on: an axis along which they are the same is left out."""
    for i in reversed(range(len(over))):
        first = ids.take([0], i)
        if np.array_equal(np.broadcast_to(first, ids.shape), ids):
            ids, over = first.squeeze(i), [*over[:i], *over[i + 1 :]]
    if not len(over):
        return ids
    order = np.argsort(over)
    return Nested(ids.transpose([*order, len(over)]), tuple(sorted(over)))


# Ops that are told by letters


@_register(*UNARY, "CollectiveReduce", "CollectiveReduceV2")
def _unary(op: Op, axes: Axes) -> Found | None:
    x = axes.nested(op.inputs[0])
    if op.type in ("Softmax", "LogSoftmax") and any(isinstance(a, Nested) and len(x) - 1 in a.over for a in x):
        return None  # normalized across the groups
    return [list(x)]


@_register("IdentityN")
def _identity_n(op: Op, axes: Axes) -> Found | None:
    return [list(axes.nested(t)) if not t.is_resource else [] for t in op.inputs]


@_register(*BROADCASTING, "AddN")
def _broadcasting(op: Op, axes: Axes) -> Found | None:
    rank = len(op.outputs[0].shape or ())
    operands = [axes.nested(t) for t in op.inputs]
    return [joined(axes, [(own, range(rank - len(own), rank)) for own in operands], range(rank))] * len(op.outputs)


@_register("BiasAdd", "BiasAddV1")
def _bias_add(op: Op, axes: Axes) -> Found | None:
    x = axes.nested(op.inputs[0])
    return [joined(axes, [(x, range(len(x))), (axes.nested(op.inputs[1]), [channel_axis(op, len(x))])], range(len(x)))]


@_register("Transpose")
def _transpose(op: Op, axes: Axes) -> Found | None:
    order, x = op.inputs[1].value, axes.nested(op.inputs[0])
    return None if order is None else [joined(axes, [(x, range(len(x)))], [int(i) for i in order])]


@_register("Sum", "Mean", "Max", "Min", "Prod", "All", "Any", "EuclideanNorm")
def _reduce(op: Op, axes: Axes) -> Found | None:
    where, x = op.inputs[1].value, axes.nested(op.inputs[0])
    if where is None:
        return None
    dropped = {int(i) % len(x) for i in np.ravel(where)}
    if op.attr("keep_dims", False):
        return [joined(axes, [(x, range(len(x)))], [-1 - i if i in dropped else i for i in range(len(x))])]
    return [joined(axes, [(x, range(len(x)))], [i for i in range(len(x)) if i not in dropped])]


@_register(*types_of(MATMUL))
def _matmul(op: Op, axes: Axes) -> Found | None:
    rank = len(op.outputs[0].shape or ())
    operands, last = [], (("i", "k"), ("k", "j"))
    for operand, tensor in enumerate(op.inputs[:2]):
        own = axes.nested(tensor)
        pair = last[operand][::-1] if is_transposed(op, operand) else last[operand]
        operands.append((own, [*range(rank - len(own), rank - 2), *pair]))
    return [joined(axes, operands, [*range(rank - 2), "i", "j"])]


@_register(*types_of(EINSUM))
def _einsum(op: Op, axes: Axes) -> Found | None:
    equation = einsum.parse(op.attr("equation"))
    operands = []
    for i, tensor in enumerate(op.inputs):
        own = axes.nested(tensor)
        names = equation.axes(i, len(own))
        if len(set(names)) < len(names):
            return None
        operands.append((own, names))
    out = equation.output_axes(len(op.outputs[0].shape or ()))
    return None if len(set(out)) < len(out) else [joined(axes, operands, out)]


@_register("ConcatV2")
def _concat(op: Op, axes: Axes) -> Found | None:
    """Joined along an axis that neither is nested nor has others nested over it."""
    where = op.inputs[-1].value
    if where is None:
        return None
    rank = len(op.outputs[0].shape or ())
    axis = int(where) % rank
    operands = [list(axes.nested(t)) for t in op.inputs[:-1]]
    if any(isinstance(a, Nested) and (i == axis or axis in a.over) for own in operands for i, a in enumerate(own)):
        return None
    pieces = [own[axis] for own in operands]
    sizes = [(t.shape or ())[axis] for t in op.inputs[:-1]]
    result = joined(axes, [([*own[:axis], None, *own[axis + 1 :]], range(rank)) for own in operands], range(rank))
    whole, start = axes.fresh(sum(sizes)), 0
    for piece, size in zip(pieces, sizes, strict=True):
        axes.tie(whole[start : start + size], axes.fresh(size) if piece is None else piece)  # type: ignore[arg-type]
        start += size
    result[axis] = whole
    return [result]


@_register("Tile")
def _tile(op: Op, axes: Axes) -> Found | None:
    """Repeated along axes that have one position: copies of all that is nested, which are equal."""
    x, times = axes.nested(op.inputs[0]), op.inputs[1].value
    if times is None or any(n != 1 and axis is not None for axis, n in zip(x, times, strict=True)):
        return None
    return [list(x)]


@_register("BroadcastTo")
def _broadcast_to(op: Op, axes: Axes) -> Found | None:
    x, rank = axes.nested(op.inputs[0]), len(op.outputs[0].shape or ())
    return [joined(axes, [(x, range(rank - len(x), rank))], range(rank))]


# Ops that pick positions


def picked(axes: Axes, x: Sequence[AnyAxis], axis: int, positions: np.ndarray, drop: bool = False) -> list[AnyAxis]:
    """The axes of a tensor with only some positions of one; with `drop`, of a single one, without that axis."""
    result: list[AnyAxis] = []
    for i, own in enumerate(x):
        if isinstance(own, Nested) and i == axis:
            if drop or not np.array_equal(positions, np.arange(len(own))):
                ids = axes.fresh(own.ids[..., 0].size * len(positions)).reshape(*own.ids.shape[:-1], len(positions))
                axes.tie(own.ids[..., positions].ravel(), ids.ravel())
                own = Nested(ids, own.over)
        elif isinstance(own, Nested) and axis in own.over:
            own = nested(own.ids.take(positions, own.over.index(axis)), own.over)
        elif i == axis:
            own = axes.pick(own, positions)  # type: ignore[arg-type]
        result.append(own)
    if not drop:
        return result
    rest: list[AnyAxis] = []
    for i, own in enumerate(result):
        if i != axis and isinstance(own, Nested):
            over = [o - (o > axis) for o in own.over if o != axis]
            own = nested(own.ids.squeeze(own.over.index(axis)) if axis in own.over else own.ids, over)
        if i != axis:
            rest.append(own)
    return rest


@_register("Slice")
def _slice(op: Op, axes: Axes) -> Found | None:
    if op.inputs[1].value is None:
        return None
    x = list(axes.nested(op.inputs[0]))
    for i, (start, size) in enumerate(zip(op.inputs[1].value, op.outputs[0].shape or (), strict=True)):
        x = picked(axes, x, i, np.arange(int(start), int(start) + size))
    return [x]


@_register("GatherV2")
def _gather(op: Op, axes: Axes) -> Found | None:
    """By indices that are known, of one axis or one position."""
    indices, where = op.inputs[1].value, op.inputs[2].value
    if op.inputs[0].is_resource or indices is None or where is None or indices.ndim > 1 or op.attr("batch_dims", 0):
        return None
    x = axes.nested(op.inputs[0])
    return [picked(axes, x, int(where) % len(x), np.atleast_1d(indices), drop=not indices.ndim)]


@_register("StridedSlice")
def _strided_slice(op: Op, axes: Axes) -> Found | None:
    if any(t.value is None for t in op.inputs[1:]):
        return None
    x, shape = list(axes.nested(op.inputs[0])), op.inputs[0].shape or ()
    at = axis = 0
    for item in strided_index(op, len(shape)):
        if item is None:
            x = joined(axes, [(x, range(len(x)))], [*range(at), "new", *range(at, len(x))])
            at += 1
            continue
        positions = np.arange(shape[axis])[item]
        x = picked(axes, x, at, np.atleast_1d(positions), drop=not np.ndim(positions))
        at += bool(np.ndim(positions))
        axis += 1
    return [x]


@_register("Split", "SplitV")
def _split(op: Op, axes: Axes) -> Found | None:
    tensor, where = (op.inputs[1], op.inputs[0]) if op.type == "Split" else (op.inputs[0], op.inputs[2])
    if where.value is None:
        return None
    x, results, start = list(axes.nested(tensor)), [], 0
    axis = int(where.value) % len(x)
    for output in op.outputs:
        size = (output.shape or ())[axis]
        results.append(picked(axes, x, axis, np.arange(start, start + size)))
        start += size
    return results


@_register("Unpack")
def _unpack(op: Op, axes: Axes) -> Found | None:
    """Pins the axis along which it takes the tensors apart; within a block, only against each other."""
    x = list(axes.nested(op.inputs[0]))
    axis = int(op.attr("axis")) % len(x)
    own = x[axis]
    if isinstance(own, Nested):
        axes.mark(own, "unstacked along this axis", op)
    else:
        axes.pin(own, "unstacked along this axis", op)
    return [picked(axes, x, axis, np.asarray([i]), drop=True) for i in range(len(op.outputs))]
