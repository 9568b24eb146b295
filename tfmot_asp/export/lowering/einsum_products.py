"""Rewrites einsums with a constant kernel as 2-D matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from tfmot_asp.export.lowering.analysis import Analysis
from tfmot_asp.export.lowering.graph_edit import GraphEdit
from tfmot_asp.graph.flat_graph import Op


@dataclass(frozen=True)
class _Roles:
    """The letters of ``data,kernel->output``, with an ellipsis written out.

    Attributes:
        data: letters of the data.
        kernel: letters of the kernel.
        output: letters of the output.
        free: letters that go from the data to the output.
        reduced: letters that are summed over, in the kernel's order, so that its rows keep theirs.
        made: letters that go from the kernel to the output, in the output's order.
    """

    data: str
    kernel: str
    output: str
    free: str
    reduced: str
    made: str


def lower_einsums(analysis: Analysis, edit: GraphEdit) -> None:
    """Replaces each ``Einsum`` of data and a constant kernel by reshapes and one ``MatMul`` with a 2-D constant.

    The kernel becomes ``(reduced, made)``, both flattened in the order in which the pattern is defined on them, so what
    is 2:4 stays 2:4. Einsums that are no plain matrix product (letters that both operands share with the output) stay.
    """
    for op in analysis.graph.ops:
        if op.type != "Einsum" or op.name not in edit.nodes or len(op.inputs) != 2:
            continue
        for operand in (1, 0):
            kernel = analysis.weight(op, operand)
            shape = analysis.shape(op.inputs[1 - operand])
            roles = _roles(op, operand, len(shape), kernel.ndim) if kernel is not None and shape is not None else None
            if kernel is not None and shape is not None and roles is not None:
                _replace(edit, op, operand, roles, shape, kernel)
                break


def _roles(op: Op, operand: int, data_rank: int, kernel_rank: int) -> _Roles | None:
    """What each letter does; None if the einsum is no matrix product."""
    equation = op.attr("equation")
    equation = (equation.decode() if isinstance(equation, bytes) else equation).replace(" ", "")
    terms, output = equation.split("->")
    operands = terms.split(",")
    data, kernel = operands[1 - operand], operands[operand]
    if "..." in kernel:
        return None
    if "..." in data:
        # Letters for the axes that the ellipsis stands for; both sides have the same ones, since the kernel has none.
        count = data_rank - len(data.replace("...", ""))
        spare = [letter for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if letter not in equation][:count]
        if len(spare) < count:
            return None
        data, output = data.replace("...", "".join(spare)), output.replace("...", "".join(spare))
    elif "..." in output:
        output = output.replace("...", "")
    free = "".join(letter for letter in data if letter in output and letter not in kernel)
    reduced = "".join(letter for letter in kernel if letter in data and letter not in output)
    made = "".join(letter for letter in output if letter in kernel and letter not in data)
    plain = (
        len(data) == data_rank
        and len(kernel) == kernel_rank
        and all(len(set(term)) == len(term) for term in (data, kernel, output))
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

    def transpose(tensor: str, before: str, after: str, label: str) -> str:
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
