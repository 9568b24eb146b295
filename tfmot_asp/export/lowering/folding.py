"""Folds batch norm, and every other scale and shift per channel, into the kernel of the product before it.

``scale * (x @ kernel + bias) + shift`` is ``x @ (kernel * scale) + (scale * bias + shift)``: the pattern along the
reduction axis survives, since a whole output channel is scaled at once and zeros stay zeros.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import tensorflow as tf

from tfmot_asp.export.lowering.graph_edit import GraphEdit
from tfmot_asp.export.lowering.invariants import Analysis
from tfmot_asp.graph.flat_graph import Op, Tensor
from tfmot_asp.graph.ops import BATCH_NORMS, EINSUM, channel_axis, product_of

_PASS = frozenset({"Identity", "Squeeze", "ExpandDims", "Reshape", "BatchToSpaceND"})


@dataclass
class _Tail:
    """The ops after a product that only scale and shift its channels.

    Attributes:
        scale: of each channel.
        shift: of each channel.
        channels_last: whether they are the last axis of the output of the last of these ops.
        steps: the ops up to that one, with which of their inputs the chain came in by.
        affine: positions in ``steps`` of those that scale or shift.
        scales: whether any of them scales.
    """

    scale: np.ndarray
    shift: np.ndarray
    channels_last: bool = True
    steps: list[tuple[Op, int]] = field(default_factory=list)
    affine: set[int] = field(default_factory=set)
    scales: bool = False


def fold_scales(analysis: Analysis, edit: GraphEdit) -> None:
    """Folds what follows each product, as long as nothing else reads what lies between, and all numbers stay finite."""
    for op in analysis.graph.ops:
        product = product_of(op)
        plain = product is not None and product.kind != EINSUM and not product.fused
        if plain and op.name in edit.nodes and op.outputs[0].dtype.is_floating:
            weight = analysis.weight(op)
            rank = len(analysis.shape(op.outputs[0]) or ())
            if weight is not None and rank:
                _fold(analysis, edit, op, weight, rank)


def _fold(analysis: Analysis, edit: GraphEdit, op: Op, weight: np.ndarray, rank: int) -> None:
    product = product_of(op)
    assert product is not None, op
    _, output_axes = product.weight_axes(op, product.kernel)
    channels = math.prod(weight.shape[axis] for axis in output_axes)
    axis = channel_axis(op, rank)
    if (analysis.shape(op.outputs[0]) or ())[axis] != channels:
        return
    tail = _follow(analysis, edit, op, axis, channels)
    if not tail.scales:
        return
    extent = [size if axis in output_axes else 1 for axis, size in enumerate(weight.shape)]
    with np.errstate(over="ignore", invalid="ignore"):
        folded = (weight.astype(np.float64) * tail.scale.reshape(extent)).astype(weight.dtype)
        shift = tail.shift.astype(weight.dtype)
    if not (np.all(np.isfinite(folded)) and np.all(np.isfinite(shift))):
        return  # beyond the type's range, or not a number: it stays as it is
    dtype = op.outputs[0].dtype
    edit.change_constant(op.name, 1, folded, dtype)
    _rewire(edit, op, tail, shift, dtype)


def _rewire(edit: GraphEdit, product: Op, tail: _Tail, shift: np.ndarray, dtype: tf.DType) -> None:
    """Takes the scales and shifts out of the chain, and puts one ``BiasAdd`` in the place of the last of them."""
    current = product.name
    for position, (op, index) in enumerate(tail.steps):
        if position not in tail.affine:
            edit.set_input(op.name, index, current)
            current = op.name
    last = tail.steps[-1][0]
    bias = edit.constant(f"{last.name}/shift", shift, dtype)
    data_format = b"NHWC" if tail.channels_last else b"NCHW"
    edit.replace(last.name, "BiasAdd", [current, bias], T=dtype, data_format=data_format)


def _follow(analysis: Analysis, edit: GraphEdit, product: Op, axis: int, channels: int) -> _Tail:
    """The longest chain of such ops after a product, each the only reader of the one before."""
    found = _Tail(np.ones(channels), np.zeros(channels))
    passed: list[tuple[Op, int]] = []  # since the last scale or shift
    tensor = product.outputs[0]
    while True:
        uses = analysis.uses.get(id(tensor), [])
        if len(uses) != 1 or id(tensor) in analysis.outputs:
            return found
        op, index = uses[0]
        if op.name not in edit.nodes or any(output.used for output in op.outputs[1:]):
            return found
        if op.type in _PASS:
            if index != 0 or not _keeps_channels(analysis, op, axis):
                return found
            axis = len(analysis.shape(op.outputs[0]) or ()) - 1
            passed.append((op, index))
        else:
            step = _affine(analysis, op, index, axis, channels)
            if step is None:
                return found
            scale, shift = step
            with np.errstate(over="ignore", invalid="ignore"):
                found.scale, found.shift = found.scale * scale, found.shift * scale + shift
            found.scales = found.scales or op.type in BATCH_NORMS or bool(np.any(scale != 1))
            found.affine.add(len(found.steps) + len(passed))
            found.steps += [*passed, (op, index)]
            found.channels_last, passed = axis == len(analysis.shape(tensor) or ()) - 1, []
        tensor = op.outputs[0]


def _affine(analysis: Analysis, op: Op, index: int, axis: int, channels: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Scale and shift per channel of an op that does nothing else; None for other ops."""
    rank = len(analysis.shape(op.outputs[0]) or ())
    if analysis.shape(op.inputs[index]) != analysis.shape(op.outputs[0]):
        return None  # broadcasting widens it
    if op.type in BATCH_NORMS:
        return _batch_norm(analysis, op, index, axis, rank)
    if op.type == "BiasAdd":
        at = channel_axis(op, rank)
        bias = analysis.value(op.inputs[1]) if index == 0 and at == axis else None
        return None if bias is None else (np.ones(channels), bias.astype(np.float64))
    if op.type not in ("Add", "AddV2", "Sub", "Mul", "RealDiv") or len(op.inputs) != 2:
        return None
    other = _per_channel(analysis, op.inputs[1 - index], axis, rank, channels)
    if other is None:
        return None
    one = np.ones(channels)
    if op.type in ("Add", "AddV2"):
        return one, other
    if op.type == "Sub":
        return (one, -other) if index == 0 else (-one, other)
    if op.type == "Mul":
        return other, 0 * one
    with np.errstate(divide="ignore", invalid="ignore"):
        return (1 / other, 0 * one) if index == 0 else None


def _batch_norm(analysis: Analysis, op: Op, index: int, axis: int, rank: int) -> tuple[np.ndarray, np.ndarray] | None:
    at = channel_axis(op, rank)
    if index != 0 or at != axis or op.attr("is_training"):
        return None
    values = [analysis.value(tensor) for tensor in op.inputs[1:]]
    if any(value is None or value.size == 0 for value in values):
        return None
    gamma, beta, mean, variance = (np.asarray(value, np.float64) for value in values)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = gamma / np.sqrt(variance + op.attr("epsilon"))
        return scale, beta - mean * scale


def _per_channel(analysis: Analysis, tensor: Tensor, axis: int, rank: int, channels: int) -> np.ndarray | None:
    """A constant that has one value, or one per channel; None for any other."""
    value = analysis.value(tensor)
    if value is None or value.ndim > rank or value.dtype.kind == "c":
        return None
    if value.size == 1:
        return np.full(channels, value.reshape(()), np.float64)
    shape = (1,) * (rank - value.ndim) + value.shape
    if shape[axis] != channels or value.size != channels:
        return None
    return value.reshape(channels).astype(np.float64)


def _keeps_channels(analysis: Analysis, op: Op, axis: int) -> bool:
    """Whether the channels stay the last axis, each where it was."""
    before, after = analysis.shape(op.inputs[0]), analysis.shape(op.outputs[0])
    if not before or not after or axis != len(before) - 1:
        return False
    return before[-1] == after[-1] != -1
