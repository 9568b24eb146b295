"""Makes a function that computes in half precision compute in float32: what mixed precision leaves in a trained model.

The policies ``mixed_float16`` and ``mixed_bfloat16`` say how a model was trained, not how it is to run. TFLite has no
kernels in half precision, and onnxruntime none for bfloat16; an ONNX file starts in float32 throughout, from which
float16 and int8 are made.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from tensorflow.python.framework import convert_to_constants

from tfmot_asp.export.lowering.frozen import Frozen
from tfmot_asp.export.lowering.graph_edit import GraphEdit, node_of
from tfmot_asp.graph.flatten import trace_function

_HALF_DTYPES = (tf.float16, tf.bfloat16)
_HALF = tuple(dtype.as_datatype_enum for dtype in _HALF_DTYPES)
_FLOAT = tf.float32.as_datatype_enum


def computes_in_half(function: Any) -> bool:
    """Whether a concrete function has a float16 or bfloat16 tensor: it is of a model with a mixed-precision policy."""
    tensors = [tensor for op in trace_function(function).ops for tensor in op.outputs]
    return any(tensor.dtype in _HALF_DTYPES for tensor in tensors)


def widened(function: Any, *, keep_io: bool = False) -> Any:
    """The same function with float32 in place of every float16 and bfloat16.

    Args:
        function: a ``ConcreteFunction`` that returns a dict.
        keep_io: whether inputs and outputs of half precision keep their types, with casts behind and before them; by
            default they are float32 as well.

    Returns:
        A ``ConcreteFunction`` without variables, to be converted: TensorFlow itself cannot run it if it has loops or
        branches, of whose bodies only the graph knows.

    Example:
        >>> function = serving_function(model)  # of a model with the policy mixed_float16
        >>> computes_in_half(widened(function))
        False
    """
    frozen = convert_to_constants.convert_variables_to_constants_v2(
        function, lower_control_flow=False, aggressive_inlining=True
    )
    graph_def = frozen.graph.as_graph_def()
    # Bodies of loops and branches get new names: TensorFlow keeps one of each, and has it in half precision already.
    names = {body.signature.name: f"{body.signature.name}_float32" for body in graph_def.library.function}
    nodes = [*graph_def.node, *(node for body in graph_def.library.function for node in body.node_def)]
    for node in nodes:
        node.op = names.get(node.op, node.op)
        for attribute in node.attr.values():
            _widen_attribute(attribute)
            for called in [attribute.func] if attribute.HasField("func") else attribute.list.func:
                called.name = names.get(called.name, called.name)
    for body in graph_def.library.function:
        body.signature.name = names[body.signature.name]
        for argument in (*body.signature.input_arg, *body.signature.output_arg):
            argument.type = _FLOAT if argument.type in _HALF else argument.type
    specs = list(function.structured_input_signature[0])
    inputs, outputs = ([tensor.name for tensor in tensors] for tensors in (frozen.inputs, frozen.outputs))
    if keep_io:
        edit = GraphEdit(graph_def)
        outputs = _casts(edit, frozen)
        graph_def = edit.finish(outputs)
    else:
        specs = [
            tf.TensorSpec(spec.shape, tf.float32 if spec.dtype in _HALF_DTYPES else spec.dtype, spec.name)
            for spec in specs
        ]
    return Frozen(graph_def, specs, inputs, outputs).function(sorted(function.structured_outputs))


def _casts(edit: GraphEdit, half: Any) -> list[str]:
    """Gives a widened graph the inputs and outputs of the function that it was; returns the outputs' names."""
    read = {}
    for tensor in half.inputs:
        if tensor.dtype in _HALF_DTYPES:
            name = node_of(tensor.name)
            read[tensor.name] = edit.add("Cast", f"{name}/float32", [], SrcT=tensor.dtype, DstT=tf.float32)
            edit.redirect(name, read[tensor.name])
            edit.nodes[name].attr["dtype"].type = tensor.dtype.as_datatype_enum
            edit.nodes[read[tensor.name]].input.append(name)
    outputs = []
    for tensor in half.outputs:
        name = read.get(tensor.name, tensor.name)
        if tensor.dtype in _HALF_DTYPES:
            label = f"{node_of(tensor.name)}/{tensor.dtype.name}"
            name = edit.add("Cast", label, [name], SrcT=tf.float32, DstT=tensor.dtype)
        outputs.append(name if ":" in name else f"{name}:0")
    return outputs


def _widen_attribute(attribute: Any) -> None:
    if attribute.type in _HALF:
        attribute.type = _FLOAT
    for index, kind in enumerate(attribute.list.type):
        if kind in _HALF:
            attribute.list.type[index] = _FLOAT
    if attribute.tensor.dtype in _HALF:
        value = tf.make_ndarray(attribute.tensor).astype("float32")
        attribute.tensor.CopyFrom(tf.make_tensor_proto(value, tf.float32, value.shape))
