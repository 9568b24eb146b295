"""Gives the weights of an ONNX file the names that they have in the model.

tf2onnx names a weight anew wherever it transposes, reshapes, packs or scales it. Weights are found again by their
values, which are the same in another order, and those that a batch norm was folded into by the op that reads them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from tfmot_asp.export.onnx_files.onnx_graph import bodies, import_onnx
from tfmot_asp.graph.flat_graph import Graph
from tfmot_asp.graph.flatten import trace_function
from tfmot_asp.graph.gemms import weight_names
from tfmot_asp.graph.ops import BATCH_NORMS

if TYPE_CHECKING:
    import onnx

# What tf2onnx and TensorFlow fold into the product before it.
_FOLDED = frozenset({*BATCH_NORMS, "BiasAdd", "Add", "AddV2", "Sub", "Mul", "Identity", "Squeeze", "BatchToSpaceND"})


def restore_names(model: onnx.ModelProto, function: Any, variables: Sequence[tf.Variable] = ()) -> None:
    """Renames stored tensors of two axes or more that do not have the name of a weight.

    One that cannot be told, such as one of two weights with the same values, keeps the name that it has.

    Args:
        model: what tf2onnx made of the function.
        function: a ``ConcreteFunction`` without variables.
        variables: those that it had.
    """
    graph = trace_function(function)
    by_op = _ByOp(graph)
    names = {*by_op.weights.values(), *map(_name, variables)}
    tensors = (tensor for tensor in model.graph.initializer if len(tensor.dims) >= 2)
    unnamed = {tensor.name: tensor for tensor in tensors if tensor.name.removesuffix(":0") not in names}
    if not unnamed:
        return
    by_values = _ByValues(graph, names, variables)
    taken = {tensor.name for tensor in model.graph.initializer}
    renamed: dict[str, str] = {}
    for node in _nodes(model.graph):
        for read in node.input:
            tensor = unnamed.pop(read, None)
            name = None if tensor is None else by_values.name(tensor) or by_op.name(node, read)
            if tensor is not None and name is not None and name not in taken:
                taken.add(name)
                renamed[read] = tensor.name = name
    for node in _nodes(model.graph):
        node.input[:] = [renamed.get(name, name) for name in node.input]


def _name(variable: tf.Variable) -> str:
    return str(variable.name).partition(":")[0]


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph and of the bodies of its loops."""
    graphs = [graph]
    for inner in graphs:  # which grows
        for node in inner.node:
            yield node
            graphs.extend(bodies(node))


class _ByValues:
    """Names of weights by their values in any order: transposed, reshaped, or with a loop's gates in another order."""

    def __init__(self, graph: Graph, names: Collection[str], variables: Sequence[tf.Variable]) -> None:
        self._by_size: dict[int, list[tuple[str, Any]]] = {}
        for tensor in (tensor for op in graph.ops for tensor in op.inputs):
            if tensor.value is not None and tensor.op is not None and tensor.op.source.name in names:
                self._by_size.setdefault(tensor.value.size, []).append((tensor.op.source.name, tensor.value))
        for variable in variables:
            self._by_size.setdefault(int(np.prod(variable.shape)), []).append((_name(variable), variable))
        self._names: dict[tuple[int, np.dtype[Any]], dict[bytes, set[str]]] = {}

    def name(self, tensor: onnx.TensorProto) -> str | None:
        """The weight that a tensor was made of; both weights where it is packed from those of two directions."""
        size = int(np.prod(tensor.dims, dtype=np.int64))
        directions = len(tensor.dims) == 3 and tensor.dims[0] == 2
        if size not in self._by_size and not (directions and size // 2 in self._by_size):
            return None
        values = import_onnx().numpy_helper.to_array(tensor)
        name = self._find(values)
        if name is None and directions:
            both = [self._find(half) for half in values]
            name = None if None in both else " + ".join(map(str, both))
        return name

    def _find(self, values: np.ndarray) -> str | None:
        found = self._names.setdefault((values.size, values.dtype), {})
        if not found:
            for name, weight in self._by_size.get(values.size, ()):
                found.setdefault(_in_any_order(np.asarray(weight).astype(values.dtype)), set()).add(name)
        names = found.get(_in_any_order(values), set())
        return next(iter(names)) if len(names) == 1 else None


def _in_any_order(values: np.ndarray) -> bytes:
    return hashlib.sha256(np.sort(values, axis=None).tobytes()).digest()


class _ByOp:
    """Names of weights by the op that reads them, for those that a batch norm was folded into after the function."""

    def __init__(self, graph: Graph) -> None:
        self._ops = {op.name: op for op in graph.ops}
        self.weights = weight_names(graph)

    def name(self, node: onnx.NodeProto, tensor: str) -> str | None:
        """The weight of the product that a node, its weight or its result is named after."""
        for name in (node.name, tensor.rpartition("/")[0], *(output.removesuffix(":0") for output in node.output)):
            op = self._ops.get(name)
            while op is not None and op.name not in self.weights:
                op = op.inputs[0].op if op.type in _FOLDED else None
            if op is not None:
                return self.weights[op.name]
        return None
