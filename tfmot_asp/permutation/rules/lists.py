"""Lists of tensors, in which loops keep what their steps read and write: the tensors of one list have the same axes.

The handle of a list has no axes. What is known of its tensors belongs to the list, see `Axes.in_list`.
"""

from __future__ import annotations

from collections.abc import Sequence

from tfmot_asp.graph.flat_graph import Op, Tensor
from tfmot_asp.permutation.axes import Axes, Axis, Outputs
from tfmot_asp.permutation.rules.registry import register_rule

_REASON = "each position is a step of a loop"


@register_rule("EmptyTensorList", "TensorListReserve")
def new_list(op: Op, axes: Axes) -> Outputs:
    """A list without tensors. Ties and pins nothing."""
    return [[]]


@register_rule("TensorListLength")
def length(op: Op, axes: Axes) -> Outputs:
    """A number. Ties and pins nothing."""
    return [[]]


@register_rule("TensorListResize")
def resize_list(op: Op, axes: Axes) -> Outputs:
    """A list of the same tensors, or of fewer. Ties the axes of both, pins nothing."""
    axes.same_list(op.inputs[0], op.outputs[0])
    return [[]]


@register_rule("TensorListSetItem", "TensorListPushBack")
def put_in(op: Op, axes: Axes) -> Outputs:
    """Ties the axes of a tensor to those of the list that it is put into. Pins nothing."""
    axes.same_list(op.inputs[0], op.outputs[0])
    _put(op, axes, op.outputs[0], op.inputs[-1], axes[op.inputs[-1]])
    return [[]]


@register_rule("TensorListGetItem")
def take_out(op: Op, axes: Axes) -> Outputs:
    """The axes are those of the list. Ties and pins nothing."""
    return [axes.in_list(op.inputs[0], op.outputs[0].shape or (), op)]


@register_rule("TensorListPopBack")
def pop(op: Op, axes: Axes) -> Outputs:
    """The axes are those of the list. Ties and pins nothing."""
    axes.same_list(op.inputs[0], op.outputs[0])
    return [[], axes.in_list(op.inputs[0], op.outputs[1].shape or (), op)]


@register_rule("TensorListFromTensor", "TensorListScatterV2")
def from_tensor(op: Op, axes: Axes) -> Outputs:
    """A tensor that is taken apart along its first axis: pins that, and ties the others to those of the list."""
    first, *rest = axes[op.inputs[0]]
    axes.pin(first, _REASON, op)
    _put(op, axes, op.outputs[0], op.inputs[0], rest)
    return [[]]


@register_rule("TensorListScatterIntoExistingList")
def scatter_into(op: Op, axes: Axes) -> Outputs:
    """As if the tensor were taken apart, and put into the list: pins its first axis, ties the others to the list's."""
    axes.same_list(op.inputs[0], op.outputs[0])
    first, *rest = axes[op.inputs[1]]
    axes.pin(first, _REASON, op)
    _put(op, axes, op.outputs[0], op.inputs[1], rest)
    return [[]]


@register_rule("TensorListStack", "TensorListGather")
def stack(op: Op, axes: Axes) -> Outputs:
    """The tensors of a list, or some, along a new axis, which is pinned; the others are the list's."""
    size, *rest = op.outputs[0].shape or ()
    return [[axes.pinned(size, _REASON, op), *axes.in_list(op.inputs[0], rest, op)]]


def _put(op: Op, axes: Axes, handle: Tensor, tensor: Tensor, own: Sequence[Axis]) -> None:
    shape = (tensor.shape or ())[-len(own) :] if own else ()
    for axis, of_list in zip(own, axes.in_list(handle, shape, op), strict=True):
        axes.tie(of_list, axis)
