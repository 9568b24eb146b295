"""Edits a frozen TensorFlow graph, node by node."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import attr_value_pb2, graph_pb2, node_def_pb2

LARGE = 1 << 14  # elements of a constant that is kept beside the graph


class GraphEdit:
    """A ``GraphDef`` whose nodes can be looked up, changed and added by name.

    Tensors are named as in a ``GraphDef``: ``"node"`` for a node's first output, ``"node:1"`` for its second.

    Large constants are placeholders in the graph, whose values are kept beside it: TensorFlow makes many copies of a
    graph while it is looked at.

    Attributes:
        nodes: by name.
        stored: values of the large constants, by the name of their node.
    """

    def __init__(self, graph_def: Any, stored: Mapping[str, np.ndarray] | None = None) -> None:
        self.graph_def = graph_def
        self.nodes: dict[str, Any] = {node.name: node for node in graph_def.node}
        self.stored: dict[str, np.ndarray] = dict(stored or {})

    def constant(self, name: str, value: np.ndarray, dtype: tf.DType) -> str:
        """Adds a constant, and returns its name, which is ``name`` with a number if that is taken."""
        name = self.add("NoOp", name, [])
        self._store(name, value, dtype)
        return name

    def is_constant(self, name: str) -> bool:
        """Whether a node is a constant, large or small."""
        return name in self.stored or self.nodes[name].op == "Const"

    def add(self, op: str, name: str, inputs: Iterable[str], **attributes: Any) -> str:
        """Adds a node, and returns its name, which is ``name`` with a number if that is taken."""
        unique, number = name, 0
        while unique in self.nodes:
            number += 1
            unique = f"{name}_{number}"
        self.nodes[unique] = node_def_pb2.NodeDef(name=unique)
        self.replace(unique, op, inputs, **attributes)
        return unique

    def replace(self, name: str, op: str, inputs: Iterable[str], **attributes: Any) -> None:
        """Makes a node another one of the same name, so that what reads it need not change."""
        self.stored.pop(name, None)
        node = self.nodes[name]
        node.Clear()
        node.name, node.op = name, op
        node.input.extend(inputs)
        for key, value in attributes.items():
            node.attr[key].CopyFrom(_attribute(value))

    def graft(
        self, name: str, function: Callable[..., Any], inputs: Sequence[str], specs: Sequence[tf.TensorSpec]
    ) -> str:
        """Puts what a function makes of tensors in a node's place, or adds it; returns the name, as ``add`` does.

        Args:
            name: of the node. What reads it need not change.
            function: of tensors, in TensorFlow, to one tensor.
            inputs: the tensors it is called with.
            specs: theirs.
        """
        with tf.Graph().as_default() as graph:
            given = [tf.compat.v1.placeholder(spec.dtype, spec.shape) for spec in specs]
            result = tf.identity(function(*given))
        names = {tensor.op.name: source for tensor, source in zip(given, inputs, strict=True)}
        for node in graph.as_graph_def().node:
            if node.name in names:
                continue
            read = [names.get(tensor, tensor) for tensor in node.input]
            if node.name != result.op.name:
                names[node.name] = self.add(node.op, f"{name}/{node.name}", read, **node.attr)
            elif name in self.nodes:
                self.replace(name, node.op, read, **node.attr)
            else:
                name = self.add(node.op, name, read, **node.attr)
        return name

    def set_input(self, name: str, index: int, tensor: str) -> None:
        """Makes input ``index`` of a node another tensor."""
        self.nodes[name].input[index] = tensor

    def redirect(self, old: str, new: str) -> None:
        """Makes whatever reads the node ``old`` read ``new``."""
        for node in self.nodes.values():
            for index, tensor in enumerate(node.input):
                if tensor.removesuffix(":0") == old:
                    node.input[index] = new

    def change_constant(self, name: str, index: int, value: np.ndarray, dtype: tf.DType) -> None:
        """Gives a node another constant as input ``index``: under the old one's name, if nothing else reads that."""
        old = node_of(self.nodes[name].input[index])
        readers = sum(node_of(tensor) == old for node in self.nodes.values() for tensor in node.input)
        if readers == 1 and self.is_constant(old):
            self._store(old, value, dtype)
        else:
            self.set_input(name, index, self.constant(f"{old}/changed", value, dtype))

    def _store(self, name: str, value: np.ndarray, dtype: tf.DType) -> None:
        if np.size(value) > LARGE:
            shape = attr_value_pb2.AttrValue(shape=tf.TensorShape(np.shape(value)).as_proto())
            self.replace(name, "Placeholder", [], dtype=dtype, shape=shape)
            self.stored[name] = value
        else:
            self.stored.pop(name, None)
            self.nodes[name].CopyFrom(constant_node(name, value, dtype))

    def store_large(self) -> None:
        """Takes the large constants out of the graph."""
        for name, node in self.nodes.items():
            if node.op == "Const" and node.attr["dtype"].type != tf.string.as_datatype_enum:
                shape = tf.TensorShape(node.attr["value"].tensor.tensor_shape)
                if (shape.num_elements() or 0) > LARGE:
                    self._store(name, tf.make_ndarray(node.attr["value"].tensor), tf.as_dtype(node.attr["dtype"].type))

    def finish(self, outputs: Iterable[str]) -> Any:
        """The graph that the outputs need, and the functions that it calls; ``stored`` has what belongs to it."""
        outputs = list(outputs)
        self._drop_idle_controls()
        self._skip_identities()
        needed: set[str] = set()
        stack = [node_of(output) for output in outputs]
        while stack:
            name = stack.pop()
            if name not in needed:
                needed.add(name)
                stack.extend(node_of(tensor) for tensor in self.nodes[name].input)
        result = graph_pb2.GraphDef(versions=self.graph_def.versions, library=self.graph_def.library)
        result.node.extend(node for name, node in self.nodes.items() if name in needed)
        self.stored = {name: value for name, value in self.stored.items() if name in needed}
        return result

    def _drop_idle_controls(self) -> None:
        """Removes control edges from nodes that do nothing: what is left of variable reads once they are constants."""
        idle: dict[str, bool] = {}

        def is_idle(name: str) -> bool:
            if name not in idle:
                node = self.nodes[name]
                idle[name] = self.is_constant(name) or (
                    node.op in ("NoOp", "Identity") and all(is_idle(node_of(tensor)) for tensor in node.input)
                )
            return idle[name]

        for node in self.nodes.values():
            kept = [tensor for tensor in node.input if not (tensor.startswith("^") and is_idle(node_of(tensor)))]
            if len(kept) < len(node.input):
                del node.input[:]
                node.input.extend(kept)

    def _skip_identities(self) -> None:
        """Makes what reads an ``Identity`` read its input."""

        def source(tensor: str) -> str:
            while not tensor.startswith("^") and ":" not in tensor:
                node = self.nodes[tensor]
                if node.op != "Identity" or len(node.input) != 1:
                    break
                tensor = node.input[0].removesuffix(":0")
            return tensor

        for node in self.nodes.values():
            for index, tensor in enumerate(node.input):
                node.input[index] = source(tensor)


def constant_node(name: str, value: np.ndarray, dtype: tf.DType) -> Any:
    """A ``Const`` node."""
    node = node_def_pb2.NodeDef(name=name, op="Const")
    node.attr["dtype"].type = dtype.as_datatype_enum
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value, dtype, np.shape(value)))
    return node


def node_of(tensor: str) -> str:
    """The node that a tensor or a control edge comes from."""
    return tensor.removeprefix("^").split(":")[0]


def _attribute(value: Any) -> Any:
    if isinstance(value, attr_value_pb2.AttrValue):
        return value
    if isinstance(value, bool):
        return attr_value_pb2.AttrValue(b=value)
    if isinstance(value, int):
        return attr_value_pb2.AttrValue(i=value)
    if isinstance(value, bytes):
        return attr_value_pb2.AttrValue(s=value)
    if isinstance(value, tf.DType):
        return attr_value_pb2.AttrValue(type=value.as_datatype_enum)
    return attr_value_pb2.AttrValue(tensor=value)
