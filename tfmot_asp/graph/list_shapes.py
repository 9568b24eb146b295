"""The shapes of the tensors in a list, as loops keep them, where the graph leaves them open.

A function that was traced for any batch size knows no sizes of what it takes out of lists. They are those of what was
put in.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np

from tfmot_asp.graph.flat_graph import UNKNOWN, ListShape, Tensor
from tfmot_asp.graph.ops import CHOICES, LOOPS

Returned = Callable[[Tensor], Sequence[Tensor]]
"""Gives for an output of a loop or choice what its body or each branch returns there."""


def list_shape(handle: Tensor, returned: Returned) -> ListShape:
    """The shape of a list."""
    op = handle.op
    if op is None:
        return ListShape(*handle.stacked) if handle.stacked is not None else ListShape()
    if op.type in ("EmptyTensorList", "TensorListReserve"):
        element = _shape(op.inputs[0])
        return ListShape(_number(op.inputs[1]) if op.type.endswith("Reserve") else None, element, element is not None)
    if op.type == "TensorListFromTensor":
        shape = op.inputs[0].shape
        return ListShape(shape[0], shape[1:], True) if shape else ListShape()
    if op.type == "Identity":
        return list_shape(op.inputs[0], returned)
    if op.type in (*LOOPS, *CHOICES):
        sources = [*([op.inputs[handle.index]] if op.type in LOOPS else []), *returned(handle)]
        return functools.reduce(ListShape.joined, (list_shape(source, returned) for source in sources))
    if op.type == "TensorListSetItem":
        return list_shape(op.inputs[0], returned).holding(_put(op.inputs[2]))
    if op.type == "TensorListPushBack":
        return list_shape(op.inputs[0], returned).holding(_put(op.inputs[1]))._replace(length=None)
    return ListShape()


def taken_out(op_type: str, inputs: Sequence[Tensor], returned: Returned) -> tuple[int, ...] | None:
    """The shape of what an op takes out of the list that is its first input; None if it is not known."""
    length, element, _ = list_shape(inputs[0], returned)
    if element is None or element == UNKNOWN:
        element = _shape(inputs[1] if op_type in ("TensorListPopBack", "TensorListStack") else inputs[2])
    if element is None or op_type in ("TensorListGetItem", "TensorListPopBack"):
        return element
    if op_type == "TensorListGather":
        return (*inputs[1].shape, *element) if inputs[1].shape is not None else None
    return (length, *element) if length is not None else None


def _put(tensor: Tensor) -> tuple[int, ...]:
    return UNKNOWN if tensor.shape is None else tensor.shape


def _shape(tensor: Tensor) -> tuple[int, ...] | None:
    value = tensor.value
    return None if value is None or np.ndim(value) != 1 or (value < 0).any() else tuple(int(n) for n in value)


def _number(tensor: Tensor) -> int | None:
    return None if tensor.value is None else int(tensor.value)
