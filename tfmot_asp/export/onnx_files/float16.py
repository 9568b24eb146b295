"""Converts ONNX models to float16: all tensors, since TensorRT 11 takes precision from the file alone."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from tfmot_asp.export.onnx_files.float32_parts import join_float32, normalizing_nodes
from tfmot_asp.export.onnx_files.half_rounding import LARGEST
from tfmot_asp.export.onnx_files.onnx_graph import Scope, bodies, import_onnx, move_into_bodies, sort_nodes
from tfmot_asp.graph.gemm import Gemm

if TYPE_CHECKING:
    import onnx


def to_float16(model: onnx.ModelProto, float16_io: bool) -> onnx.ModelProto:
    """Converts a model with onnxruntime's converter.

    Weights that are too small for float16 become its smallest number or zero, which leaves the pattern as it is; other
    constants that are too large (the -1e9 of attention masks) become the largest. Norms and ops without a float16 form
    stay in float32, between casts.

    Args:
        model: a float32 model with shapes, whose weights and activations fit; it stays as it is.
        float16_io: whether inputs and outputs are float16 too.

    Raises:
        RuntimeError: if the result is no valid ONNX model.
    """
    onnx = import_onnx()
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _leave_out_empty_scales(copy)
    _name_apart(copy.graph, set())
    convert, blocked = _converter()
    converted = convert(
        copy,
        keep_io_types=not float16_io,
        op_block_list=[*blocked, *_float32_only(model)],
        node_block_list=normalizing_nodes(copy),
    )
    # The converter appends its casts at the end of the graph, those for the bodies of loops too.
    move_into_bodies(converted.graph)
    sort_nodes(converted.graph)
    join_float32(converted.graph)
    del converted.graph.value_info[:]
    try:
        converted = onnx.shape_inference.infer_shapes(converted, data_prop=True)
        onnx.checker.check_model(converted, full_check=True)
    except Exception as error:  # ValidationError, InferenceError
        raise RuntimeError(f"the model cannot be converted to float16 ({error}); export it in fp32") from error
    return converted


def check_weights(gemms: Iterable[Gemm]) -> None:
    """Raises ValueError if a product's weight is too large for float16, or in float64, which TensorRT does not have."""
    for gemm in gemms:
        if gemm.weight is None or gemm.weight.dtype.kind != "f":
            continue
        if gemm.weight.dtype == np.float64:
            raise ValueError(f"{gemm.op!r} computes in float64, which TensorRT does not have: make the layer float32")
        largest = float(np.max(np.abs(gemm.weight), initial=0.0))
        if largest > LARGEST:
            raise ValueError(
                f"the weight {gemm.weight_name!r} of {gemm.op!r} holds {largest:.3g}, and float16 ends at "
                f"{LARGEST:g}: export the model in fp32, or scale the layer down"
            )


def _leave_out_empty_scales(model: onnx.ModelProto) -> None:
    """Leaves out what a Resize to given sizes does not read: behind a cast, nobody sees that it is empty."""
    empty = {tensor.name for tensor in model.graph.initializer if 0 in tensor.dims}
    for _, node in Scope(model, model.graph).walk():
        if node.op_type == "Resize":
            kept = ["" if index in (1, 2) and name in empty else name for index, name in enumerate(node.input)]
            node.input[:] = kept


def _name_apart(graph: onnx.GraphProto, taken: set[str]) -> None:
    """Gives constants in the bodies of loops names unlike all others, as onnxruntime's converter needs them."""
    for tensor in graph.initializer:
        if tensor.name in taken:
            unique = f"{tensor.name}/{len(taken)}"
            _rename(graph, tensor.name, unique)
            tensor.name = unique
        taken.add(tensor.name)
    for node in graph.node:
        for body in bodies(node):
            _name_apart(body, taken)


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Makes what reads a tensor of a graph read another one."""
    for value in graph.output:
        value.name = new if value.name == old else value.name
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        for body in bodies(node):
            if all(own.name != old for own in (*body.initializer, *body.input)):
                _rename(body, old, new)


def _float32_only(model: onnx.ModelProto) -> set[str]:
    """Types of op that take float32 but no float16 in the model's opset: IsInf before 20, for one."""
    onnx = import_onnx()
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=1)
    found = set()
    for _, node in Scope(model, model.graph).walk():
        if node.domain in ("", "ai.onnx") and onnx.defs.has(node.op_type, opset):
            for constraint in onnx.defs.get_schema(node.op_type, opset).type_constraints:
                allowed = constraint.allowed_type_strs
                if "tensor(float)" in allowed and "tensor(float16)" not in allowed:
                    found.add(node.op_type)
    return found


def _converter() -> tuple[Any, list[str]]:
    """onnxruntime's converter, and the types of op that it leaves in float32 by default."""
    before = list(sys.path)
    try:
        from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
    finally:
        sys.path[:] = before  # importing it appends its folder, whose modules have such names as "optimizer"
    return convert_float_to_float16, DEFAULT_OP_BLOCK_LIST
