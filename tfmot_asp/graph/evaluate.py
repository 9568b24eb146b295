"""Runs one op of a traced graph eagerly, or tells what it would make."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import attr_value_pb2, tensor_shape_pb2
from tensorflow.python.eager import context, execute

from tfmot_asp.graph.budget import limited

logger = logging.getLogger(__name__)

# What may take for ever on constants that a file has chosen so: loops, and what does much work for each element.
_COSTLY = re.compile(
    r"(Stateless)?While|For|MapDefun|.*(Conv\d?D|Pool|FFT|Dilation).*|.*(Svd|Qr|Eig|Cholesky|Lu|LogMatrixDeterminant).*"
    r"|(Batch)?Matrix(Determinant|Inverse|Solve|SolveLs|Exponential|Logarithm|SquareRoot|TriangularSolve)|Conv"
    r"|(Non)?MaxSuppression.*|Resize.*|.*RNN.*|EditDistance|.*Regex.*"
)

_SMALL = 1 << 16  # elements; a shape or an index is smaller, and what is larger decides no shape


def infer_shapes(source: tf.Operation, inputs: Sequence[Any]) -> list[tf.TensorShape]:
    """The shapes that an op's outputs would have on other inputs, as TensorFlow infers them without running it.

    Args:
        source: the op, in whatever graph.
        inputs: arrays, or a ``TensorSpec`` where no value is known.
    """
    try:
        with tf.Graph().as_default() as scratch:
            copies = [
                tf.compat.v1.placeholder(given.dtype, given.shape)
                if isinstance(given, tf.TensorSpec)
                else tf.compat.v1.placeholder(tensor.dtype, np.shape(given))
                if np.size(given) > _SMALL
                else tf.constant(given, tensor.dtype)
                for given, tensor in zip(inputs, source.inputs, strict=True)
            ]
            attrs = {k: v for k, v in source.node_def.attr.items() if not k.startswith("_")}
            types = [t.dtype for t in source.outputs]
            new = scratch.create_op(source.type, copies, types, attrs=attrs, op_def=source.op_def)
            return [t.shape for t in new.outputs]
    except (ValueError, TypeError, tf.errors.OpError) as error:
        logger.debug("no shape inferred for %s %s: %s", source.type, source.name, error)
        return [t.shape for t in source.outputs]


def is_costly(source: tf.Operation) -> bool:
    """Whether an op is left alone in a file that is not trusted: no weight is made by one."""
    return limited() and _COSTLY.fullmatch(source.type) is not None


def size_of_outputs(source: tf.Operation, inputs: Sequence[np.ndarray]) -> int:
    """The elements that an op would make of these inputs.

    Where TensorFlow cannot tell (which values are not zero, which are unique) they are no more than the inputs', once
    for each axis.
    """
    sizes = [shape.num_elements() for shape in infer_shapes(source, inputs)]
    most = sum(np.size(value) * max(1, np.ndim(value)) for value in inputs)
    return sum(most if size is None else size for size in sizes)


def run_op(source: tf.Operation, inputs: Sequence[Any], attributes: tuple[Any, ...] | None = None) -> list[tf.Tensor]:
    """The outputs of an op on given inputs, on the device that is current.

    Args:
        source: the op, in whatever graph.
        inputs: eager tensors, or handles of resources.
        attributes: what ``attributes_of`` gives for it, where the op runs more than once.

    Raises:
        tf.errors.OpError, TypeError, ValueError, NotImplementedError: if the op cannot run so.
    """
    attributes = attributes_of(source) if attributes is None else attributes
    return execute.execute(source.type, len(source.outputs), list(inputs), attributes, context.context())


def attributes_of(source: tf.Operation) -> tuple[Any, ...]:
    """The attributes of an op as the eager runtime takes them, the functions among them made known to that."""
    attributes: list[Any] = []
    for attribute in source.op_def.attr:
        value = source.get_attr(attribute.name)
        if attribute.type in ("func", "list(func)"):
            for name in [value.name] if attribute.type == "func" else [one.name for one in value]:
                _register(source.graph, name)
        attributes += [attribute.name, _plain(value)]
    return tuple(attributes)


def _plain(value: Any) -> Any:
    """An attribute with types as their enum, functions by name, shapes as lists."""
    if isinstance(value, tf.DType):
        return value.as_datatype_enum
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, attr_value_pb2.NameAttrList):
        return value.name
    if isinstance(value, tensor_shape_pb2.TensorShapeProto):
        return None if value.unknown_rank else [None if d.size < 0 else d.size for d in value.dim]
    return value


def _register(graph: Any, name: str) -> None:
    """Makes a function of a graph known to the eager runtime, with all that it calls."""
    if context.context().has_function(name):
        return
    for definition in graph.as_graph_def().library.function:
        if not context.context().has_function(definition.signature.name):
            context.context().add_function_def(definition)
