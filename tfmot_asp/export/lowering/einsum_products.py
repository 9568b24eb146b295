"""Rewrites einsums with a constant kernel as 2-D matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from tfmot_asp import einsum
from tfmot_asp.export.lowering.graph_edit import GraphEdit
from tfmot_asp.export.lowering.invariants import Analysis
from tfmot_asp.graph.flat_graph import Op
from tfmot_asp.graph.ops import EINSUM, product_of

Names = tuple[str, ...]


@dataclass(frozen=True)
class _Roles:
    """The axes of ``data,kernel->output``, by their letters; those of an ellipsis are numbered.

    Attributes:
        data: of the data.
        kernel: of the kernel.
        output: of the output.
        free: those that go from the data to the output.
        reduced: those that are summed over, in the kernel's order, so that its rows keep theirs.
        made: those that go from the kernel to the output, in the output's order.
    """

    data: Names
    kernel: Names
    output: Names
    free: Names
    reduced: Names
    made: Names


def lower_einsums(analysis: Analysis, edit: GraphEdit) -> None:
    """Replaces each ``Einsum`` of data and a constant kernel by reshapes and one ``MatMul`` with a 2-D constant.

    The kernel becomes ``(reduced, made)``, both flattened in the order in which the pattern is defined on them, so what
    is 2:4 stays 2:4. Einsums that are no plain matrix product (letters that both operands share with the output) stay.
    """
    for op in analysis.graph.ops:
        product = product_of(op)
        if product is None or product.kind != EINSUM or op.name not in edit.nodes:
            continue
        for operand in product.weights:
            kernel = analysis.weight(op, operand)
            shape = analysis.shape(op.inputs[1 - operand])
            roles = _roles(op, operand, len(shape), kernel.ndim) if kernel is not None and shape is not None else None
            if kernel is not None and shape is not None and roles is not None:
                _replace(edit, op, operand, roles, shape, kernel)
                break


def _roles(op: Op, operand: int, data_rank: int, kernel_rank: int) -> _Roles | None:
    """What each letter does; None if the einsum is no matrix product."""
    equation = einsum.parse(op.attr("equation"))
    if einsum.ELLIPSIS in equation.operands[operand]:
        return None
    data, kernel = equation.axes(1 - operand, data_rank), equation.axes(operand, kernel_rank)
    width = sum(name.startswith(einsum.ELLIPSIS) for name in data)  # both sides have it, since the kernel has none
    output = equation.output_axes(len(equation.output.replace(einsum.ELLIPSIS, "")) + width)
    free = tuple(name for name in data if name in output and name not in kernel)
    reduced = tuple(name for name in kernel if name in data and name not in output)
    made = tuple(name for name in output if name in kernel and name not in data)
    plain = (
        all(len(set(term)) == len(term) for term in (data, kernel, output))
        and len(free) + len(reduced) == len(data)
        and len(reduced) + len(made) == len(kernel)
        and len(free) + len(made) == len(output)
        and reduced
        and made
        and free
    )
    return _Roles(data, kernel, output, free, reduced, made) if plain else None


def _replace(
    edit: GraphEdit, op: Op, operand: int, roles: _Roles, data_shape: Sequence[int], kernel: np.ndarray
) -> None:
    dtype = op.outputs[0].dtype
    node = edit.nodes[op.name]
    data, weight = node.input[1 - operand], node.input[operand]
    sizes = dict(zip(roles.data, data_shape, strict=True))
    kernel_sizes = dict(zip(roles.kernel, kernel.shape, strict=True))
    rows = int(np.prod([kernel_sizes[letter] for letter in roles.reduced]))
    columns = int(np.prod([kernel_sizes[letter] for letter in roles.made]))

    def transpose(tensor: str, before: Names, after: Names, label: str) -> str:
        if before == after:
            return tensor
        perm = edit.constant(f"{op.name}/{label}/perm", np.array([before.index(c) for c in after], np.int32), tf.int32)
        return edit.add("Transpose", f"{op.name}/{label}", [tensor, perm], T=dtype, Tperm=tf.int32)

    data = transpose(data, roles.data, roles.free + roles.reduced, "transpose")
    if len(roles.free) > 1 or len(roles.reduced) > 1:
        flat = edit.constant(f"{op.name}/rows/shape", np.array([-1, rows], np.int32), tf.int32)
        rows_of = edit.add("Reshape", f"{op.name}/rows", [data, flat], T=dtype, Tshape=tf.int32)
    else:
        rows_of = data
    order = [roles.kernel.index(letter) for letter in roles.reduced + roles.made]
    matrix = np.ascontiguousarray(np.transpose(kernel, order).reshape(rows, columns))
    product = edit.add("MatMul", f"{op.name}/MatMul", [rows_of, weight], T=dtype, transpose_a=False, transpose_b=False)
    del node.input[:]  # the einsum reads its kernel no longer
    edit.change_constant(product, 1, matrix, dtype)
    result = product
    if len(roles.free) > 1 or len(roles.made) > 1:
        made = [kernel_sizes[letter] for letter in roles.made]
        shape = _shape(edit, op, data, [sizes[letter] for letter in roles.free], made)
        result = edit.add("Reshape", f"{op.name}/reshape", [product, shape], T=dtype, Tshape=tf.int32)
    result = transpose(result, roles.free + roles.made, roles.output, "order")
    # The last of them takes the einsum's place and name.
    last = edit.nodes[result]
    edit.replace(op.name, last.op, list(last.input), **dict(last.attr.items()))
    del edit.nodes[result]


def _shape(edit: GraphEdit, op: Op, data: str, free: list[int], made: list[int]) -> str:
    """The shape ``free + made`` as a constant, or computed from the data's if more than one free size is open."""
    if free.count(-1) <= 1:
        return edit.constant(f"{op.name}/shape", np.array(free + made, np.int32), tf.int32)
    shape = edit.add("Shape", f"{op.name}/data_shape", [data], T=op.outputs[0].dtype, out_type=tf.int32)
    begin = edit.constant(f"{op.name}/begin", np.array([0], np.int32), tf.int32)
    end = edit.constant(f"{op.name}/end", np.array([len(free)], np.int32), tf.int32)
    # Transposed, the data starts with the free axes.
    head = edit.add("Slice", f"{op.name}/free", [shape, begin, end], T=tf.int32, Index=tf.int32)
    tail = edit.constant(f"{op.name}/made", np.array(made, np.int32), tf.int32)
    axis = edit.constant(f"{op.name}/axis", np.array(0, np.int32), tf.int32)
    return edit.add("ConcatV2", f"{op.name}/shape", [head, tail, axis], N=2, T=tf.int32, Tidx=tf.int32)
