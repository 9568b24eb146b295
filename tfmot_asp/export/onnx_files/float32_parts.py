"""Which nodes of a float16 file stay in float32: those that normalize.

A norm divides by the root of a mean of squares, and the squares of values above 256 are beyond float16. So everything
from the tensor that is normalized up to where it meets its moments for the last time is left in float32, with a cast
before it and one behind: layer norm as one op, and whatever is written op by op, such as the RMS and group norms of
Keras, the division by a Euclidean norm, or a softmax written out. What is scaled and shifted after that is in float16.
Squares, their sum and its root alone, a standard deviation or a Euclidean norm, stay in float32 too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from tfmot_asp.export.onnx_files.onnx_graph import Scope, bodies, import_onnx

if TYPE_CHECKING:
    import onnx

_NORMS = frozenset(
    {
        "GroupNormalization",
        "InstanceNormalization",
        "LayerNormalization",
        "LpNormalization",
        "MeanVarianceNormalization",
        "RMSNormalization",
    }
)
_REDUCTIONS = frozenset(
    {
        *("ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceMax", "ReduceMin"),
        *("ReduceLogSumExp", "GlobalAveragePool"),
    }
)
_ELEMENTWISE = frozenset(
    {
        *("Abs", "Add", "Cast", "Clip", "Div", "Exp", "Expand", "Identity", "Log", "Max", "Min", "Mul", "Neg", "Pow"),
        *("Reciprocal", "Relu", "Reshape", "Sqrt", "Squeeze", "Sub", "Sum", "Transpose", "Unsqueeze", "Where"),
    }
)


def normalizing_nodes(model: onnx.ModelProto) -> set[str]:
    """Names of the nodes that belong to a norm, in the bodies of loops too.

    Args:
        model: in float32; every node has a name.
    """
    scopes = {id(scope): scope for scope, _ in Scope(model, model.graph).walk()}
    return {name for scope in scopes.values() for name in _Norms(scope).names()}


class _Norms:
    """The norms within one graph."""

    def __init__(self, scope: Scope) -> None:
        self.nodes, self.producers = list(scope.graph.node), scope.producers
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        self.fixed: set[str] = set()  # depends on no values of inputs, at most on their sizes
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                self.readers[name].append(node)
            given = [name for name in node.input if name and scope.varies(name) and name not in self.fixed]
            if node.op_type in ("Shape", "Size") or not (given or any(a.HasField("g") for a in node.attribute)):
                self.fixed.update(node.output)
        self.varies = lambda name: bool(name) and name not in self.fixed and scope.varies(name)

    def names(self) -> Iterator[str]:
        for node in self.nodes:
            if node.op_type in _NORMS:
                yield node.name
            elif node.op_type in _REDUCTIONS and self.varies(node.input[0]):
                regions = map(self._region, self._sources(node))
                yield from next(filter(None, regions), ())
                yield from self._rooted(node)

    def _sources(self, reduction: onnx.NodeProto) -> Iterator[str]:
        """What may be normalized by the moment that a reduction computes, the nearest first."""
        name = reduction.input[0]
        while True:
            yield name
            node: Any = self.producers.get(name)
            if node is None or node.op_type not in _ELEMENTWISE:
                return
            read = {given for given in node.input if self.varies(given)}
            if len(read) != 1:
                return
            (name,) = read

    def _rooted(self, reduction: onnx.NodeProto) -> list[str]:
        """The nodes from squares that a reduction adds up to the root of their sum, if it is taken of nothing else."""
        if reduction.op_type in ("ReduceL2", "ReduceLogSumExp"):
            return [reduction.name]
        names, node = [reduction.name], reduction
        while node.op_type != "Sqrt":
            readers = self.readers[node.output[0]]
            if len(readers) != 1 or readers[0].op_type not in _ELEMENTWISE:
                return []
            (node,) = readers
            if len({name for name in node.input if self.varies(name)}) != 1:
                return []
            names.append(node.name)
        for source in self._sources(reduction):
            square: Any = self.producers.get(source)
            if square is not None and square.op_type in ("Mul", "Pow"):
                return [*names, square.name]
            if square is None or square.op_type not in ("Cast", "Identity", "Reshape"):
                break
        return names

    def _region(self, source: str) -> set[str]:
        """The nodes from a tensor to where it meets its own moments for the last time; none if it never does."""
        whole, reduced = {source}, set[str]()  # what is of the size of the source; moments, and what is made of them
        region: dict[str, onnx.NodeProto] = {}
        meetings: list[onnx.NodeProto] = []
        rest = [source]
        while rest:
            for node in self.readers[rest.pop()]:
                read = [name for name in node.input if self.varies(name)]
                if node.op_type not in _ELEMENTWISE | _REDUCTIONS or node.output[0] in whole | reduced:
                    continue
                if not set(read) <= whole | reduced:
                    continue
                is_whole = node.op_type in _ELEMENTWISE and bool(whole & set(read))
                (whole if is_whole else reduced).add(node.output[0])
                region[node.output[0]] = node
                rest.append(node.output[0])
                if is_whole and reduced & set(read):
                    meetings.append(node)
        names: set[str] = set()
        while meetings:
            node = meetings.pop()
            if node.name not in names:
                names.add(node.name)
                meetings += [region[name] for name in node.input if name in region]
        return names


def join_float32(graph: onnx.GraphProto) -> None:
    """Lets neighbours in float32 read each other's values in float32, where the converter cast them there and back.

    Args:
        graph: of a model that the converter made, its nodes in order.
    """
    types = import_onnx().TensorProto
    halves: dict[str, str] = {}  # the result of a cast to float16 -> what was cast
    wide: dict[str, str] = {}  # the result of a cast back -> what was cast at first

    def join(body: onnx.GraphProto) -> None:
        for node in body.node:
            for index, name in enumerate(node.input):
                node.input[index] = wide.get(name, name)
            for inner in bodies(node):
                join(inner)
            to = next((attribute.i for attribute in node.attribute if attribute.name == "to"), None)
            if node.op_type == "Cast" and to == types.FLOAT16 and _is_made(node):
                halves[node.output[0]] = node.input[0]
            elif node.op_type == "Cast" and to == types.FLOAT and node.input[0] in halves:
                wide[node.output[0]] = halves[node.input[0]]

    join(graph)
    _remove_unread_casts(graph)


def _is_made(cast: onnx.NodeProto) -> bool:
    """Whether the converter made a cast, of a float32 tensor: of an input, or behind a node that stays in float32."""
    return cast.name.startswith("graph_input_cast") or cast.name.endswith("_cast_to_fp16_node")


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for body in bodies(node):
            yield from _graphs(body)


def _remove_unread_casts(graph: onnx.GraphProto) -> None:
    graphs = list(_graphs(graph))
    removed: Iterable[Any] = [True]
    while removed:
        read = {name for body in graphs for node in body.node for name in node.input}
        read |= {value.name for body in graphs for value in body.output}
        removed = [
            (body, node)
            for body in graphs
            for node in body.node
            if node.op_type == "Cast" and node.output[0] not in read
        ]
        for body, node in removed:
            body.node.remove(node)
