"""Edits a frozen TensorFlow graph, node by node."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import attr_value_pb2, graph_pb2, node_def_pb2


class GraphEdit:
    """A ``GraphDef`` whose nodes can be looked up, changed and added by name.

    Tensors are named as in a ``GraphDef``: ``"node"`` for a node's first output, ``"node:1"`` for its second.
    """

    def __init__(self, graph_def: Any) -> None:
        self.graph_def = graph_def
        self.nodes: dict[str, Any] = {node.name: node for node in graph_def.node}

    def constant(self, name: str, value: np.ndarray, dtype: tf.DType) -> str:
        """Adds a constant, and returns its name, which is ``name`` with a number if that is taken."""
        proto = tf.make_tensor_proto(value, dtype, np.shape(value))
        return self.add("Const", name, [], dtype=dtype, value=proto)

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
        node = self.nodes[name]
        node.Clear()
        node.name, node.op = name, op
        node.input.extend(inputs)
        for key, value in attributes.items():
            node.attr[key].CopyFrom(_attribute(value))

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
        if readers == 1 and self.nodes[old].op == "Const":
            self.replace(old, "Const", [], dtype=dtype, value=tf.make_tensor_proto(value, dtype, np.shape(value)))
        else:
            self.set_input(name, index, self.constant(f"{old}/changed", value, dtype))

    def finish(self, outputs: Iterable[str]) -> Any:
        """The graph that the outputs need, and the functions that it calls."""
        outputs = list(outputs)
        self._drop_idle_controls()
        self._skip_identities()
        needed: set[str] = set()
        stack = [node_of(output) for output in outputs]
        stack += [node.name for node in self.nodes.values() if node.op == "Placeholder"]  # unused inputs too
        while stack:
            name = stack.pop()
            if name not in needed:
                needed.add(name)
                stack.extend(node_of(tensor) for tensor in self.nodes[name].input)
        result = graph_pb2.GraphDef(versions=self.graph_def.versions, library=self.graph_def.library)
        result.node.extend(node for name, node in self.nodes.items() if name in needed)
        return result

    def _drop_idle_controls(self) -> None:
        """Removes control edges from nodes that do nothing: what is left of variable reads once they are constants."""
        idle: dict[str, bool] = {}

        def is_idle(name: str) -> bool:
            if name not in idle:
                node = self.nodes[name]
                idle[name] = node.op == "Const" or (
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


def node_of(tensor: str) -> str:
    """The node that a tensor or a control edge comes from."""
    return tensor.removeprefix("^").split(":")[0]


def tensor_name(op: str, index: int) -> str:
    """How a ``GraphDef`` spells output ``index`` of a node."""
    return op if index == 0 else f"{op}:{index}"


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
