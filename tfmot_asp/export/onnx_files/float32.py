"""Turns the half-precision parts of an ONNX model into float32: what mixed precision leaves in a trained model.

A model trained under ``mixed_float16`` or ``mixed_bfloat16`` computes in these types, which says how it was trained,
not how it is to run. Its file starts in float32 throughout, from which float16 and int8 are made; onnxruntime has no
kernels for bfloat16 on a CPU either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tfmot_asp.export.onnx_files.onnx_graph import import_onnx

if TYPE_CHECKING:
    import onnx


def to_float32(model: onnx.ModelProto) -> bool:
    """Changes a model in place; its inputs and outputs keep their types, with casts behind and before them.

    Returns:
        Whether there was anything to change.
    """
    onnx = import_onnx()
    half = {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    graph = model.graph
    inputs = [value for value in graph.input if value.type.tensor_type.elem_type in half]
    outputs = [value for value in graph.output if value.type.tensor_type.elem_type in half]
    kept = {value.name: value.type.tensor_type.elem_type for value in (*inputs, *outputs)}
    changed = _change(graph, half)
    for value in (*inputs, *outputs):
        value.type.tensor_type.elem_type = kept[value.name]
    before = [_cast(value.name, f"{value.name}/float32", onnx.TensorProto.FLOAT) for value in inputs]
    after = [_cast(f"{value.name}/float32", value.name, kept[value.name]) for value in outputs]
    read = {value.name: f"{value.name}/float32" for value in inputs}
    made = {value.name: f"{value.name}/float32" for value in outputs}
    _rename(graph, read | made, made)
    nodes = [*before, *graph.node, *after]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    return changed or bool(kept)


def _change(graph: onnx.GraphProto, half: set[int]) -> bool:
    onnx = import_onnx()
    changed = False
    for tensor in graph.initializer:
        changed |= _change_tensor(tensor, half)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type in half:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
            changed = True
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i in half:
                attribute.i = onnx.TensorProto.FLOAT
                changed = True
            if attribute.HasField("t"):
                changed |= _change_tensor(attribute.t, half)
            for body in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                changed |= _change(body, half)
    return changed


def _change_tensor(tensor: Any, half: set[int]) -> bool:
    if tensor.data_type not in half:
        return False
    numpy_helper = import_onnx().numpy_helper
    values = np.asarray(numpy_helper.to_array(tensor)).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return True


def _cast(source: str, target: str, to: int) -> Any:
    return import_onnx().helper.make_node("Cast", [source], [target], name=f"{target}/Cast", to=to)


def _rename(graph: onnx.GraphProto, reads: dict[str, str], writes: dict[str, str]) -> None:
    for node in graph.node:
        for names, new in ((node.input, reads), (node.output, writes)):
            for i, name in enumerate(names):
                names[i] = new.get(name, name)
        for attribute in node.attribute:
            for body in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                _rename(body, reads, {})
                for output in body.output:
                    output.name = reads.get(output.name, output.name)
