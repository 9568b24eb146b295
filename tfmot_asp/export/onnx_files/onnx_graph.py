"""ONNX files as graphs of nodes: reading them, and computing the tensors that depend on no input.

A weight may reach its product through casts, transposes, quantization and whatever else an exporter wrote: all of it is
run with ONNX's reference implementation, so that what is checked is the array that the product reads.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfmot_asp.export.onnx_files.local_functions import spend_on_functions
from tfmot_asp.export.onnx_files.one_node import compute
from tfmot_asp.export.onnx_files.stored import array_of, check_stored
from tfmot_asp.graph.budget import OverBudgetError
from tfmot_asp.graph.constants import Constants

if TYPE_CHECKING:
    import onnx

logger = logging.getLogger(__name__)

# Their results differ from run to run, though they have no inputs.
_RANDOM = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}
)

# Contributed ops of onnxruntime that are the standard ones under another domain.
_SAME_AS_STANDARD = frozenset({"QuantizeLinear", "DequantizeLinear"})
_MICROSOFT = "com.microsoft"

# The name of the open batch axis in files of ours.
BATCH = "batch"


def import_onnx() -> Any:
    """The ``onnx`` package.

    Raises:
        ImportError: if it is missing, with the extra that installs it.
    """
    try:
        import onnx
        import onnx.inliner
    except ImportError as error:
        raise ImportError('ONNX files need the package onnx: pip install "tfmot-asp[onnx]"') from error
    return onnx


def load_onnx(path: Path) -> onnx.ModelProto:
    """Reads an ONNX file with its external data, local functions inlined.

    Raises:
        ValueError: if the file is empty, truncated, no ONNX, or its external data are missing.
    """
    onnx = import_onnx()
    from google.protobuf.message import DecodeError  # a dependency of onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except DecodeError as error:
        raise ValueError(f"{str(path)!r} cannot be read as an ONNX model, it is damaged or something else") from error
    if not model.ir_version or not model.opset_import or not model.HasField("graph") or not model.graph.node:
        raise ValueError(f"{str(path)!r} is no complete ONNX model: it has no graph, or does not name its opset")
    try:
        check_stored(model, path.parent)
        spend_on_functions(model)
        return onnx.inliner.inline_local_functions(model) if model.functions else model
    except OverBudgetError:
        raise
    except Exception as error:  # missing and short files, paths that lead elsewhere, recursive functions, ...
        raise ValueError(f"{str(path)!r} cannot be read as an ONNX model: {error}") from error


def node_name(node: onnx.NodeProto) -> str:
    """A node's name; without one, the name that TensorRT's parser gives it."""
    return node.name or (f"node_of_{node.output[0]}" if node.output else node.op_type)


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes as Python values, strings decoded."""
    onnx = import_onnx()
    values = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


def bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs that a node runs: the body of a loop, the branches of a condition."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Puts nodes, in the bodies of loops too, into an order in which each comes after those that it reads."""
    producers = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    nodes = [type(node).FromString(node.SerializeToString()) for node in graph.node]
    order: list[int] = []
    done: set[int] = set()
    for start in range(len(nodes)):
        stack = [start]
        while stack:
            index = stack[-1]
            sources = {producers[name] for name in _reads(nodes[index]) if name in producers}
            missing = sources - done - {index}
            if index in done or not missing:
                stack.pop()
                if index not in done:
                    done.add(index)
                    order.append(index)
            else:
                stack.extend(missing)
    del graph.node[:]
    graph.node.extend(nodes[i] for i in order)
    for node in graph.node:
        for body in bodies(node):
            sort_nodes(body)


def move_into_bodies(graph: onnx.GraphProto) -> None:
    """Moves nodes of a graph that read what only the body of a loop or condition has into that body."""
    homes: dict[str, onnx.GraphProto] = {}
    rest = list(graph.node)
    for node in rest:
        for body in bodies(node):
            rest.extend(body.node)
            values = [output for inner in body.node for output in inner.output]
            homes.update(dict.fromkeys([*values, *(value.name for value in body.input)], body))
    moved = True
    while moved:  # one may read what another, further down, computes
        moved = False
        for node in list(graph.node):
            home = next((homes[name] for name in node.input if name in homes), None)
            if home is not None:
                home.node.append(node)
                homes.update(dict.fromkeys(node.output, home))
                graph.node.remove(node)
                moved = True


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """The tensors that a node reads, and those that its bodies read from around it."""
    yield from node.input
    for body in bodies(node):
        for inner in body.node:
            yield from _reads(inner)
        yield from (output.name for output in body.output)


class Scope:
    """A graph, or the body of an If, Loop or Scan, which sees the tensors of the graphs around it.

    Attributes:
        graph: the ``GraphProto``.
        initializers: its stored tensors, by name.
        producers: the node that makes a tensor, by the tensor's name.
        constants: what is computed from stored tensors alone, in all graphs of the model.
        parent: the graph around it; None for the model's own.
    """

    def __init__(self, model: onnx.ModelProto, graph: onnx.GraphProto, parent: Scope | None = None) -> None:
        """Sorts the graph's tensors into constants and those that vary with the model's inputs.

        Raises:
            ValueError: if a node reads a tensor that does not exist.
        """
        self.model, self.graph, self.parent = model, graph, parent
        self.producers: dict[str, onnx.NodeProto] = {}
        self.initializers: dict[str, Any] = {tensor.name: tensor for tensor in graph.initializer}
        self.initializers.update({tensor.values.name: tensor for tensor in graph.sparse_initializer})
        self.constants: _Constants = _Constants(model) if parent is None else parent.constants
        # Initializers may be listed as inputs too: defaults that a caller could override, but weights all the same.
        self._varying = {value.name for value in graph.input} - self.initializers.keys()
        for node in graph.node:
            missing = [name for name in node.input if name and self.home(name) is None]
            if missing:
                raise ValueError(f"node {node_name(node)!r} reads {missing[0]!r}, which does not exist")
            varies = node.op_type in _RANDOM or any(True for _ in bodies(node)) or any(map(self.varies, node.input))
            for name in node.output:
                self.producers[name] = node
                if varies:
                    self._varying.add(name)
        lost = [output.name for output in graph.output if self.home(output.name) is None]
        if lost:
            raise ValueError(f"nothing computes its output {lost[0]!r}")

    def walk(self) -> Iterator[tuple[Scope, onnx.NodeProto]]:
        """Every node with its scope, those of bodies after the node that has them."""
        for node in self.graph.node:
            yield self, node
            for body in bodies(node):
                yield from Scope(self.model, body, self).walk()

    def varies(self, name: str) -> bool:
        """Whether a tensor depends on an input of the model (or of a loop's body)."""
        home = self.home(name) if name else None
        return home is not None and name in home._varying

    def source(self, name: str) -> str:
        """Name of the largest stored constant that a constant tensor is computed from."""
        home = self.home(name)
        return name if home is None else self.constants.source((home, name))[1]

    def value(self, name: str) -> np.ndarray:
        """Computes a constant tensor, each once.

        Raises:
            ValueError: if it varies, or an op on the way to it cannot be run.
        """
        home = self.home(name)
        assert home is not None, name  # checked when the scope was made
        if name in home._varying:
            raise ValueError(f"{name!r} depends on an input")
        return self.constants.value((home, name))

    def home(self, name: str) -> Scope | None:
        """The innermost graph that has a tensor."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope._varying or name in scope.initializers or name in scope.producers:
                return scope
            scope = scope.parent
        return None


_Place = tuple[Scope, str]  # a tensor in the graph that has it


class _Constants(Constants[_Place]):
    """The constants of a model, in all its graphs."""

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        self.opsets = {opset.domain: opset.version for opset in model.opset_import}

    def inputs(self, tensor: _Place) -> list[_Place]:
        home, name = tensor
        node = home.producers.get(name)
        read = [] if node is None else [(home.home(source), source) for source in node.input if source]
        return [(scope, source) for scope, source in read if scope is not None]

    def stored(self, tensor: _Place) -> np.ndarray | None:
        home, name = tensor
        return array_of(home.initializers[name]) if name in home.initializers else None

    def rank(self, tensor: _Place) -> tuple[int, str] | None:
        home, name = tensor
        if name in home.initializers:
            return int(np.prod(home.initializers[name].dims, dtype=np.int64)), name
        node = home.producers.get(name)
        return (int(self.value(tensor).size), name) if node is not None and node.op_type == "Constant" else None

    def run(self, tensor: _Place) -> dict[_Place, np.ndarray]:
        home, name = tensor
        node = home.producers[name]
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "sparse_value":
            return {tensor: array_of(node.attribute[0].sparse_tensor)}
        if node.domain == _MICROSOFT and node.op_type in _SAME_AS_STANDARD:
            standard = type(node)()
            standard.CopyFrom(node)
            standard.domain = ""
            node = standard
        feeds = {source: self.known[place] for place in self.inputs(tensor) for source in [place[1]]}
        try:
            results = compute(node, feeds, self.opsets)
        except OverBudgetError:
            raise
        except Exception as error:  # ops that the evaluator lacks, wrong shapes, too little memory, ...
            described = f"{node.domain}.{node.op_type}".lstrip(".")
            raise ValueError(f"node {node_name(node)!r} ({described}) cannot be computed: {error}") from error
        outputs = ((home, output) for output in node.output if output)
        return dict(zip(outputs, results, strict=True))
