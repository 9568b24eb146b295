"""Makes a function that computes in half precision compute in float32, for runtimes without half-precision kernels."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from tensorflow.python.framework import convert_to_constants

from tfmot_asp.export.lowering.frozen import Frozen
from tfmot_asp.graph.flatten import trace_function

_HALF = (tf.float16.as_datatype_enum, tf.bfloat16.as_datatype_enum)
_FLOAT = tf.float32.as_datatype_enum


def computes_in_half(function: Any) -> bool:
    """Whether a concrete function has a float16 or bfloat16 tensor: it is of a model with a mixed-precision policy."""
    tensors = [tensor for op in trace_function(function).ops for tensor in op.outputs]
    return any(tensor.dtype in (tf.float16, tf.bfloat16) for tensor in tensors)


def widened(function: Any) -> Any:
    """The same function with float32 in place of every float16 and bfloat16.

    Args:
        function: a ``ConcreteFunction`` that returns a dict.

    Returns:
        A ``ConcreteFunction`` without variables. Inputs and outputs of half precision are float32 as well.

    Example:
        >>> function = serving_function(model)  # of a model with the policy mixed_float16
        >>> computes_in_half(widened(function))
        False
    """
    frozen = convert_to_constants.convert_variables_to_constants_v2(
        function, lower_control_flow=False, aggressive_inlining=True
    )
    graph_def = frozen.graph.as_graph_def()
    nodes = [*graph_def.node, *(node for body in graph_def.library.function for node in body.node_def)]
    for node in nodes:
        for attribute in node.attr.values():
            _widen_attribute(attribute)
    for body in graph_def.library.function:
        for argument in (*body.signature.input_arg, *body.signature.output_arg):
            argument.type = _FLOAT if argument.type in _HALF else argument.type
    specs = [
        tf.TensorSpec(spec.shape, tf.float32 if spec.dtype.as_datatype_enum in _HALF else spec.dtype, spec.name)
        for spec in function.structured_input_signature[0]
    ]
    inputs, outputs = ([tensor.name for tensor in tensors] for tensors in (frozen.inputs, frozen.outputs))
    return Frozen(graph_def, specs, inputs, outputs).function(sorted(function.structured_outputs))


def _widen_attribute(attribute: Any) -> None:
    if attribute.type in _HALF:
        attribute.type = _FLOAT
    for index, kind in enumerate(attribute.list.type):
        if kind in _HALF:
            attribute.list.type[index] = _FLOAT
    if attribute.tensor.dtype in _HALF:
        value = tf.make_ndarray(attribute.tensor).astype("float32")
        attribute.tensor.CopyFrom(tf.make_tensor_proto(value, tf.float32, value.shape))
