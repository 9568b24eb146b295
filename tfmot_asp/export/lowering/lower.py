"""Makes a frozen graph plain for what reads it: constants as constants, one matrix product per layer.

Six steps, each exact in real arithmetic:

0. for ONNX, Fourier transforms and what else is complex become products and other ops of real numbers (``spectra``);
1. slices that move, such as ``keras.ops.slice_update`` writes, become ops that converters know (``slices``);
2. whatever is the same for every input becomes a constant: reads, casts, transposes and masks between a weight and its
   product, batch norm's scale and shift, shape arithmetic;
3. a ``Reshape`` to a computed shape becomes one to a constant shape with at most one open axis;
4. an ``Einsum`` with a constant kernel becomes ``Reshape``, 2-D ``MatMul``, ``Reshape``
   (``einsum_products``): TensorRT has sparse kernels for the matrix product and none for the einsum;
5. batch norm, and any other scale and shift per channel, is folded into the kernel before it
   (``folding``).

What is "the same for every input" is found by tracing the graph with two different sizes for each open axis: what
agrees does not depend on them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import numpy as np
import tensorflow as tf

from tfmot_asp.export.lowering.einsum_products import lower_einsums
from tfmot_asp.export.lowering.folding import fold_scales
from tfmot_asp.export.lowering.frozen import Frozen
from tfmot_asp.export.lowering.graph_edit import GraphEdit, node_of
from tfmot_asp.export.lowering.invariants import Analysis, open_groups
from tfmot_asp.export.lowering.slices import SLICES, lower_slices
from tfmot_asp.export.lowering.spectra import SPECTRA, lower_spectra
from tfmot_asp.graph.flat_graph import Op, Tensor
from tfmot_asp.graph.ops import EINSUM, product_of, types_of

logger = logging.getLogger(__name__)

_LARGEST = 1 << 16  # elements of a constant that step 2 makes of what is no weight: no tables that ops can make anew


def lower(
    frozen: Frozen,
    *,
    fold_batch_norm: bool,
    names: dict[str, str],
    weights_dtype: tf.DType | None = None,
    real_numbers: bool = False,
) -> Frozen:
    """Applies the steps.

    Args:
        frozen: what to lower; it stays as it is.
        fold_batch_norm: whether to do the last.
        names: op name of a product → what to call its constant weight.
        weights_dtype: a narrower type to store float32 and float64 weights in, each followed by a ``Cast`` back.
        real_numbers: whether to do the first.

    Returns:
        A graph of the same inputs and outputs that computes the same.

    Raises:
        ValueError: if the graph's open axes cannot be given any of the sizes that are tried.
        OverflowError: if a weight is too large for ``weights_dtype``.
    """
    types = {node.op for node in frozen.graph_def.node}
    steps: list[Callable[[Analysis, GraphEdit], None]] = [partial(_constants, names=names)]
    if types & SLICES:
        steps.insert(0, lower_slices)
    if real_numbers and types & SPECTRA:
        steps.insert(0, lower_spectra)
    if types.intersection(types_of(EINSUM)):
        steps.append(lower_einsums)
    if fold_batch_norm:
        steps.append(fold_scales)
    if weights_dtype is not None:
        steps.append(partial(_narrow, dtype=weights_dtype))
    groups = open_groups(frozen)
    for step in steps:
        edit = frozen.edit()
        step(Analysis(frozen, groups), edit)
        frozen = frozen.edited(edit)
    return frozen


def _constants(analysis: Analysis, edit: GraphEdit, names: dict[str, str]) -> None:
    """Steps 2 and 3: every op reads constants where it can."""
    constants = _InlinedConstants(analysis, edit, names)
    for op in analysis.graph.ops:
        inside = op.name not in edit.nodes  # of a function that is called
        weights = _weight_operands(op)
        for index, tensor in enumerate(op.inputs):
            constant = constants.weight(op, index) if index in weights else None if inside else constants.other(tensor)
            if constant is None or tensor.op is None:
                continue
            if not inside:
                edit.set_input(op.name, index, constant)
            elif tensor.op.name in edit.nodes:
                edit.redirect(tensor.op.name, constant)
        if op.type == "Reshape" and not inside:
            _state_shape(analysis, edit, op)


class _InlinedConstants:
    """The constants that take the place of what is the same for every input, each made once."""

    def __init__(self, analysis: Analysis, edit: GraphEdit, names: dict[str, str]) -> None:
        self._analysis, self._edit, self._names = analysis, edit, names
        self._made: dict[int, str] = {}
        self._weights: dict[tuple[str, tuple[int, ...]], list[tuple[np.ndarray, str]]] = {}

    def weight(self, op: Op, index: int) -> str | None:
        """A product's weight under the name of its variable: one for all layers that read the same values of it."""
        tensor = op.inputs[index]
        value = None if tensor.op is None else self._analysis.weight(op, index)
        if value is None or id(tensor) in self._made:
            return None if value is None else self._made[id(tensor)]
        name = self._names.get(op.name, op.name)
        same = self._weights.setdefault((name, value.shape), [])
        found = next((constant for other, constant in same if np.array_equal(other, value)), None)
        if found is None:
            found = self._edit.constant(name, value, tensor.dtype)
            same.append((value, found))
        self._made[id(tensor)] = found
        return found

    def other(self, tensor: Tensor) -> str | None:
        """Anything else that is computed from constants, if it is small."""
        if tensor.op is None or tensor.op.type == "Const":
            return None
        value = self._analysis.value(tensor)
        if value is None or value.size > _LARGEST:
            return None
        if id(tensor) not in self._made:
            self._made[id(tensor)] = self._edit.constant(f"{tensor.op.name}/value", value, tensor.dtype)
        return self._made[id(tensor)]


def _state_shape(analysis: Analysis, edit: GraphEdit, reshape: Op) -> None:
    """Gives a ``Reshape`` to a computed shape a constant one, if that leaves at most one axis open."""
    shape = analysis.shape(reshape.outputs[0])
    if analysis.value(reshape.inputs[1]) is None and shape is not None and shape.count(-1) <= 1 and 0 not in shape:
        stated = edit.constant(f"{reshape.name}/shape", np.array(shape, np.int32), tf.int32)
        edit.set_input(reshape.name, 1, stated)
        edit.nodes[reshape.name].attr["Tshape"].type = tf.int32.as_datatype_enum


def _narrow(analysis: Analysis, edit: GraphEdit, dtype: tf.DType) -> None:
    """Stores the weights of products and the tables of embeddings in a narrower type than float32 or float64."""
    for op in analysis.graph.ops:
        operands = (0,) if op.type in ("GatherV2", "Gather") else _weight_operands(op)
        for index in operands:
            name = node_of(edit.nodes[op.name].input[index]) if op.name in edit.nodes else ""
            wide = op.inputs[index].dtype
            if wide not in (tf.float32, tf.float64) or not name or not edit.is_constant(name):
                continue
            value = analysis.weight(op, index)
            if value is None or value.ndim < 2:
                continue
            with np.errstate(over="ignore"):
                narrow = value.astype(dtype.as_numpy_dtype)
            if not np.array_equal(np.isfinite(narrow), np.isfinite(value)):
                largest = float(np.nanmax(np.abs(value)))
                raise OverflowError(f"{name} has weights up to {largest:.3g}, too large for {dtype.name}")
            stored = edit.constant(f"{name}/{dtype.name}", narrow, dtype)
            edit.replace(name, "Cast", [stored], SrcT=dtype, DstT=wide, Truncate=False)


def _weight_operands(op: Op) -> tuple[int, ...]:
    product = product_of(op)
    return product.weights if product is not None else ()
