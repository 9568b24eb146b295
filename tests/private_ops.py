"""Ops that TensorFlow's optimizer and XLA make, and that its Python names lack: to be made in functions."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


def private_op(name: str, inputs: list[Any], **attributes: Any) -> Any:
    """The float32 output of an op; attributes of tf.raw_ops' kinds, strings as bytes, lists of one kind."""
    attrs = {key: _attribute(value) for key, value in attributes.items()}
    graph = tf.compat.v1.get_default_graph()
    return graph.create_op(
        name, [tf.convert_to_tensor(value) for value in inputs], [tf.float32], attrs=attrs, name="product"
    ).outputs[0]


def _attribute(value: Any) -> Any:
    made = tf.compat.v1.AttrValue()
    target, items = (made.list, value) if isinstance(value, list) else (made, [value])
    for item in items:
        if isinstance(item, tf.DType):
            item = item.as_datatype_enum
            name = "type"
        else:
            name = {bool: "b", bytes: "s", int: "i", float: "f"}[type(item)]
        if target is made:
            setattr(made, name, item)
        else:
            getattr(target, name).append(item)
    return made


def fused_conv2d(x: Any, kernel: Any, *vectors: Any, ops: tuple[bytes, ...] = (b"BiasAdd", b"Relu")) -> Any:
    """A convolution with what the optimizer has put into it."""
    return private_op(
        "_FusedConv2D", [x, kernel, *vectors], T=tf.float32, TArgs=[tf.float32] * len(vectors), strides=[1, 1, 1, 1],
        padding=b"SAME", data_format=b"NHWC", dilations=[1, 1, 1, 1], num_args=len(vectors), fused_ops=list(ops),
        epsilon=0.1, num_host_args=0, use_cudnn_on_gpu=True, filter_format=b"HWIO", leakyrelu_alpha=0.2,
    )  # fmt: skip


def fused_matmul(
    a: Any, b: Any, *vectors: Any, transpose_b: bool = False, ops: tuple[bytes, ...] = (b"BiasAdd",)
) -> Any:
    """The same of a matrix product."""
    return private_op(
        "_FusedMatMul", [a, b, *vectors], T=tf.float32, transpose_a=False, transpose_b=transpose_b,
        num_args=len(vectors), fused_ops=list(ops), epsilon=0.0, leakyrelu_alpha=0.2,
    )  # fmt: skip


def xla_einsum(equation: str, a: Any, b: Any) -> Any:
    """An einsum as XLA has it; the function around must be compiled by it."""
    return private_op("XlaEinsum", [a, b], equation=equation.encode(), T=tf.float32)
