"""A frozen graph: constants in place of variables, with the names of its inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import graph_pb2
from tensorflow.python.framework import convert_to_constants

from tfmot_asp.export.lowering.graph_edit import GraphEdit, constant_node, node_of

_LARGEST_GRAPH = 2**31 - 2**24  # bytes; protocol buffers end at 2 GiB, and the ops need some


class CannotFreezeError(ValueError):
    """A model's variables cannot become constants of its graph."""


@dataclass(frozen=True)
class Frozen:
    """A frozen graph with the names of its inputs and outputs.

    Attributes:
        graph_def: without variables.
        specs: of the inputs; axes may be open.
        inputs: tensor names, in the order of ``specs``.
        outputs: tensor names.
        stored: values of the large constants, which are placeholders in the graph.
    """

    graph_def: Any
    specs: Sequence[tf.TensorSpec]
    inputs: Sequence[str]
    outputs: Sequence[str]
    stored: Mapping[str, np.ndarray] = field(default_factory=dict)

    def edit(self) -> GraphEdit:
        """A copy of the graph to change; it shares the large constants."""
        return GraphEdit(graph_pb2.GraphDef.FromString(self.graph_def.SerializeToString()), self.stored)

    def edited(self, edit: GraphEdit) -> Frozen:
        """What became of the graph, with the same inputs and outputs."""
        return Frozen(edit.finish(self.outputs), self.specs, self.inputs, self.outputs, edit.stored)

    def function(self, keys: Sequence[str] | None = None, *, embed: bool = True) -> Any:
        """A ``ConcreteFunction`` of the graph, which returns a dict if given its keys.

        Args:
            keys: names of the outputs.
            embed: whether the large constants are part of it, or captured.
        """
        return self._function(self.specs, keys, self.stored, embed)

    def outline(self, specs: Sequence[tf.TensorSpec]) -> Any:
        """A ``ConcreteFunction`` for other specs, to look at: without the large constants it cannot run."""
        return self._function(specs, None, {}, True)

    def _function(
        self, specs: Sequence[tf.TensorSpec], keys: Sequence[str] | None, stored: Mapping[str, np.ndarray], embed: bool
    ) -> Any:
        own = {node_of(name) for name in self.inputs}  # the function has placeholders of its own
        inner = graph_pb2.GraphDef(versions=self.graph_def.versions, library=self.graph_def.library)
        for node in self.graph_def.node:
            if node.name in stored and embed:
                inner.node.append(constant_node(node.name, stored[node.name], tf.as_dtype(node.attr["dtype"].type)))
            elif node.name not in own and node.name not in stored:
                inner.node.append(node)
        read = {f"{node_of(tensor)}:0" for node in inner.node for tensor in node.input}
        captured = {} if embed else {f"{name}:0": tf.constant(value) for name, value in stored.items()}

        @tf.function(input_signature=list(specs), autograph=False)
        def run(*tensors: Any) -> Any:
            feeds = {name: value for name, value in zip(self.inputs, tensors, strict=True) if name in read}
            feeds |= {name: tf.identity(value) for name, value in captured.items()}
            found = tf.import_graph_def(inner, feeds, list(self.outputs), name="")
            return found if keys is None else dict(zip(keys, found, strict=True))

        return run.get_concrete_function()


def freeze(function: Any, name: str) -> Frozen:
    """A concrete function as a graph with constants in place of its variables.

    Args:
        function: a ``ConcreteFunction``.
        name: of its model, for the errors.

    Raises:
        CannotFreezeError: if it reads lookup tables, or has 2 GiB of weights or more.
    """
    size = sum(int(np.prod(variable.shape)) * variable.dtype.size for variable in function.variables)
    if size > _LARGEST_GRAPH:
        raise CannotFreezeError(f"{name!r} has {size / 2**30:.1f} GiB of weights; a frozen graph holds less than 2 GiB")
    frozen = convert_to_constants.convert_variables_to_constants_v2(
        function, lower_control_flow=False, aggressive_inlining=True
    )
    given = {tensor.name for tensor in function.inputs[: len(function.structured_input_signature[0])]}
    left = [tensor for tensor in frozen.inputs if tensor.name not in given]
    if left:
        raise CannotFreezeError(f"{name!r} reads {left[0].name.split(':')[0]!r}, a table that cannot be frozen")
    specs = list(function.structured_input_signature[0])
    return _frozen(frozen, specs)


def _frozen(function: Any, specs: Sequence[tf.TensorSpec]) -> Frozen:
    inputs, outputs = ([tensor.name for tensor in tensors] for tensors in (function.inputs, function.outputs))
    graph_def = function.graph.as_graph_def()
    for node in (*graph_def.node, *(node for body in graph_def.library.function for node in body.node_def)):
        node.attr.pop("_gradient_op_type", None)  # custom gradients (swish has one) are not for inference
    return Frozen(graph_def, specs, inputs, outputs)


def inlined(frozen: Frozen) -> Frozen:
    """The graph with the bodies of functions that ask for XLA in place of their calls."""
    graph_def = frozen.graph_def
    marks = ("_XlaMustCompile", "_noinline")
    marked = [part for part in (*graph_def.node, *graph_def.library.function) if any(m in part.attr for m in marks)]
    if not marked:
        return frozen
    for part in marked:
        for mark in marks:
            part.attr.pop(mark, None)
    inlined = convert_to_constants.convert_variables_to_constants_v2(
        frozen.function(), lower_control_flow=False, aggressive_inlining=True
    )
    return _frozen(inlined, frozen.specs)
