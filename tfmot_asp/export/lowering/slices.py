"""Writes slices that move in ops that all converters know, and that TensorRT takes: XLA's, which none of them has.

``keras.ops.slice_update`` of Keras 3 is ``XlaDynamicUpdateSlice``: language models write the caches of keys and values
that they decode with by it. XLA moves a slice that reaches beyond the tensor back into it: its start on an axis is at
least 0, and at most the axis' size less the slice's.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import tensorflow as tf

from tfmot_asp.export.lowering.graph_edit import GraphEdit, node_of
from tfmot_asp.export.lowering.invariants import Analysis
from tfmot_asp.graph.flat_graph import Op, Tensor
from tfmot_asp.graph.flatten import trace_function
from tfmot_asp.graph.ops import strided_index

_UPDATE, _XLA_SLICE, _SLICE = "XlaDynamicUpdateSlice", "XlaDynamicSlice", "Slice"
_STRIDED = "StridedSlice"
SLICES = frozenset({_UPDATE, _XLA_SLICE, _SLICE, _STRIDED})
_MOST_AXES = 5  # of what TFLite slices


def needs_lowering(function: Any) -> bool:
    """Whether a concrete function has slices that TFLite lacks."""
    ops = trace_function(function).ops
    return any(op.type in (_UPDATE, _XLA_SLICE) or (op.type == _STRIDED and _is_deep(op)) for op in ops)


def _is_deep(op: Op) -> bool:
    return op.inputs[0].shape is not None and len(op.inputs[0].shape) > _MOST_AXES


def lower_slices(analysis: Analysis, edit: GraphEdit) -> None:
    """Replaces slices whose starts are computed, and those of many axes; those in loops and branches stay."""
    for op in analysis.graph.ops:
        if op.name not in edit.nodes or not op.inputs or analysis.shape(op.inputs[0]) is None:
            continue
        if op.type == _UPDATE:
            _replace(analysis, edit, op, 2, _updated)
        elif op.type == _STRIDED:
            _merge_axes(analysis, edit, op)
        elif op.type in SLICES and (op.type == _XLA_SLICE or analysis.value(op.inputs[1]) is None):
            sizes = _sizes(analysis, op)
            if sizes is not None:
                _replace(analysis, edit, op, 1, partial(_taken, sizes=sizes, clip=op.type == _XLA_SLICE))


def _replace(analysis: Analysis, edit: GraphEdit, op: Op, place: int, function: Callable[..., Any]) -> None:
    """Puts what a function makes of an op's inputs before ``place``, and of the starts at it, in the op's place."""
    names = list(edit.nodes[op.name].input)
    starts = _numbers(analysis, edit, op.inputs[place], names[place])
    given = [start for start in starts if isinstance(start, str)]

    def result(*tensors: Any) -> Any:
        left = iter(tensors[place:])
        return function(*tensors[:place], [next(left) if isinstance(start, str) else start for start in starts])

    specs = [analysis.spec(tensor) for tensor in op.inputs[:place]]
    number = tf.TensorSpec([], op.inputs[place].dtype)
    edit.graft(op.name, result, [*names[:place], *given], [*specs, *[number] * len(given)])


def _sizes(analysis: Analysis, op: Op) -> list[int | None] | None:
    """Of a slice: None for an axis that it has all of; None altogether if one of the others is open."""
    known = analysis.value(op.inputs[2]) if op.type == _XLA_SLICE else None
    part = analysis.shape(op.outputs[0]) if known is None else tuple(known.tolist())
    whole = analysis.shape(op.inputs[0])
    if part is None or whole is None:
        return None
    first = zip(op.inputs[0].shape or (), op.outputs[0].shape or part, strict=True)  # two open sizes may differ
    all_of_it = [a == b and size == other for (a, b), size, other in zip(first, part, whole, strict=True)]
    sizes = [None if is_all else size for is_all, size in zip(all_of_it, part, strict=True)]
    return None if -1 in sizes else sizes


def _merge_axes(analysis: Analysis, edit: GraphEdit, op: Op) -> None:
    """Slices a tensor of many axes with those that lie side by side, and are taken whole, as one."""
    shape, made = analysis.shape(op.inputs[0]), analysis.shape(op.outputs[0])
    bounds = [analysis.value(tensor) for tensor in op.inputs[1:]]
    if not _is_deep(op) or shape is None or made is None or any(bound is None for bound in bounds):
        return
    sizes: list[list[int]] = []
    index: list[Any] = []
    for axis, taken in enumerate(item for item in strided_index(op, len(shape), bounds) if item is not None):
        if taken == slice(None) and index and index[-1] == slice(None):
            sizes[-1].append(shape[axis])
        else:
            sizes.append([shape[axis]])
            index.append(taken)
    merged = [-1 if -1 in run else math.prod(run) for run in sizes]
    if len(merged) > _MOST_AXES or any(run.count(-1) > 1 for run in sizes) or max(merged.count(-1), made.count(-1)) > 1:
        return

    def take(whole: Any) -> Any:
        return tf.reshape(tf.reshape(whole, merged)[tuple(index)], made)

    edit.graft(op.name, take, edit.nodes[op.name].input[:1], [analysis.spec(op.inputs[0])])


def _updated(whole: Any, part: Any, starts: Sequence[Any]) -> Any:
    """``whole`` with ``part`` from ``starts`` on.

    On every axis that the part does not fill, a position takes the part's value where its distance from the start is a
    position in the part. That is exact for every type, and one elementwise op, which compilers fuse; a scatter would
    copy as much.
    """
    inside = None
    for axis in range(whole.shape.rank):
        size, length = whole.shape[axis], part.shape[axis]
        if length is not None and size == length:
            continue
        if length == 0:
            return whole
        index = starts[axis].dtype if tf.is_tensor(starts[axis]) else tf.int32
        size = tf.shape(whole, index)[axis] if size is None else size
        length = tf.shape(part, index)[axis] if length is None else length
        place = tf.range(tf.cast(size, index)) - tf.clip_by_value(tf.cast(starts[axis], index), 0, size - length)
        known = tf.clip_by_value(place, 0, length - 1)
        here = tf.reshape(tf.equal(place, known), [-1] + [1] * (whole.shape.rank - axis - 1))
        inside = here if inside is None else tf.logical_and(inside, here)
        if part.shape[axis] != 1:  # one is broadcast
            part = tf.gather(part, known, axis=axis)
    return part if inside is None else tf.where(inside, part, whole)


def _taken(whole: Any, starts: Sequence[Any], sizes: Sequence[int | None], clip: bool) -> Any:
    """``sizes`` of ``whole`` from ``starts`` on, which TensorRT would want to know in advance of its ``Slice``."""
    for axis, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        if size is not None:
            index = start.dtype if tf.is_tensor(start) else tf.int32
            if clip:
                start = tf.clip_by_value(start, 0, tf.shape(whole, index)[axis] - size)
            whole = tf.gather(whole, tf.range(tf.constant(size, index)) + start, axis=axis)
    return whole


def _numbers(analysis: Analysis, edit: GraphEdit, vector: Tensor, name: str) -> list[str | int]:
    """The elements of a vector: those that are the same for every input, and the names of tensors."""
    value = analysis.value(vector)
    if value is not None:
        return [int(number) for number in value]
    if vector.op is not None and vector.op.type == "Pack":
        known = [analysis.value(tensor) for tensor in vector.op.inputs]
        given = edit.nodes[vector.op.name].input
        return [tensor if number is None else int(number) for tensor, number in zip(given, known, strict=True)]
    spec, count = analysis.spec(vector), (vector.shape or (0,))[0]
    return [edit.graft(f"{node_of(name)}/{at}", operator.itemgetter(at), [name], [spec]) for at in range(count)]
