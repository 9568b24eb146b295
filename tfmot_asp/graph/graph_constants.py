"""The constants of a traced graph: variables, and what is computed from them alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_asp.graph.budget import spend
from tfmot_asp.graph.constants import Constants
from tfmot_asp.graph.evaluate import is_costly, run_op, size_of_outputs
from tfmot_asp.graph.flat_graph import Graph, Tensor


class GraphConstants(Constants[Tensor]):
    """The constants of a traced graph.

    Args:
        graph: in which they are.
        held: values of ops that stand for constants, by name.
    """

    def __init__(self, graph: Graph, held: Mapping[str, np.ndarray] | None = None) -> None:
        super().__init__()
        self.graph = graph
        self.held = held or {}

    def read(self, tensor: Tensor) -> tuple[np.ndarray | None, str | None]:
        """The value of a tensor, or why it has none."""
        try:
            return self.value(tensor), None
        except (ValueError, TypeError, NotImplementedError, AttributeError, tf.errors.OpError) as error:
            return None, str(error)

    def name(self, tensor: Tensor) -> tuple[str, int]:
        """Name and identity of the constant that a tensor is computed from; one that a function holds has no name."""
        rank = self.rank(self.source(tensor))
        return (rank[1], rank[2]) if rank is not None else ("?", id(tensor))

    def inputs(self, tensor: Tensor) -> Iterable[Tensor]:
        return tensor.op.inputs if tensor.op is not None else ()

    def stored(self, tensor: Tensor) -> np.ndarray | None:
        op = tensor.op
        if tensor.value is not None:
            return tensor.value
        if op is None:
            raise ValueError("its value is captured from outside the graph")
        if op.name in self.held:
            return self.held[op.name]
        if op.type in ("ReadVariableOp", "Identity") and op.inputs[0].variable is not None:
            return self.graph.variables[op.inputs[0].variable].numpy()
        return None

    def run(self, tensor: Tensor) -> Mapping[Tensor, np.ndarray]:
        op = tensor.op
        if op is None or op.source.op_def.is_stateful:
            raise ValueError(f"op {op} between the weight and the product is not understood")
        if is_costly(op.source):
            raise ValueError(f"op {op} between the weight and the product may take for ever")
        if any(t.dtype == tf.string for t in (*op.inputs, *op.outputs)):
            raise ValueError(f"op {op} between the weight and the product handles text")
        values = [self.known[source] for source in op.inputs]
        width = max((output.dtype.size for output in op.outputs), default=1)
        spend(size_of_outputs(op.source, values) * width, f"what {op.name!r} computes from constants")
        with tf.init_scope(), tf.device("cpu"):
            results = run_op(op.source, [tf.constant(v, t.dtype) for v, t in zip(values, op.inputs, strict=True)])
        return {output: result.numpy() for output, result in zip(op.outputs, results, strict=True)}

    def rank(self, tensor: Tensor) -> tuple[Any, ...] | None:
        if tensor.variable is not None:
            variable = self.graph.variables[tensor.variable]
            return int(np.prod(variable.shape)), variable.name.partition(":")[0], id(variable)
        if tensor.value is not None and (tensor.op is None or tensor.op.type == "Const"):
            # Without the scope of the call that it was found in.
            return tensor.value.size, tensor.op.source.name if tensor.op else "", id(tensor)
        return None
