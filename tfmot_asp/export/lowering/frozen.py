"""A frozen graph: constants in place of variables, with the names of its inputs and outputs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import graph_pb2

from tfmot_asp.export.lowering.graph_edit import GraphEdit, constant_node, node_of

logger = logging.getLogger(__name__)


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
