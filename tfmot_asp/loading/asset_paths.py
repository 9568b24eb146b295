"""Ops of a SavedModel that open a path, which must be one of its own assets.

A lookup table can be filled from a text file. TensorFlow gives its initializer the path of an asset, which it makes of
the SavedModel's folder and a name; a graph that has the path from anywhere else could open any file, and URLs too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

# Which of their inputs is the path.
ASSET_READERS = {"InitializeTableFromTextFile": 1, "InitializeTableFromTextFileV2": 1}

MAIN = "the main graph"
_CALLS = frozenset({"PartitionedCall", "StatefulPartitionedCall"})
_ASSETS_OF_TENSORFLOW_1 = "saved_model_assets"


def assets(meta_graph: Any) -> list[Any]:
    """The ``AssetFileDef`` of each asset, where the loaders look for them."""
    if meta_graph.asset_file_def:
        return list(meta_graph.asset_file_def)
    from tensorflow.core.protobuf import meta_graph_pb2

    found = []
    for packed in meta_graph.collection_def[_ASSETS_OF_TENSORFLOW_1].any_list.value:
        found.append(meta_graph_pb2.AssetFileDef())
        packed.Unpack(found[-1])
    return found


def node_name(tensor: str) -> str:
    """The node that makes a tensor, or the argument of a function that it is."""
    return tensor.removeprefix("^").split(":")[0]


def named_functions(node: Any) -> Iterator[str]:
    """Everything that a node says which may be the name of a function, whatever the node does with it."""
    yield node.op
    for value in node.attr.values():
        yield value.func.name
        yield from (function.name for function in value.list.func)
        yield value.s.decode(errors="replace")


class AssetPaths:
    """Follows the path of each op that opens one to where it comes from, through the functions that pass it on."""

    def __init__(self, meta_graph: Any, functions: Mapping[str, Any]) -> None:
        """Takes a meta graph and its function library, by name."""
        self.meta_graph = meta_graph
        self.functions = functions
        self.bodies: dict[str, dict[str, Any]] = {MAIN: {n.name: n for n in meta_graph.graph_def.node}}
        self.bodies.update({name: {n.name: n for n in function.node_def} for name, function in functions.items()})
        self.asset_tensors = {node_name(asset.tensor_info.name) for asset in assets(meta_graph)}
        self.opened_by: set[str] = set()  # nodes of the main graph

    def refusals(self) -> Iterator[str]:
        """Why paths are not those of assets. ``opened_by`` is complete afterwards."""
        for body, nodes in self.bodies.items():
            arguments = self.functions[body].signature.input_arg if body != MAIN else ()
            listed = self.functions[body].node_def if body != MAIN else self.meta_graph.graph_def.node
            if len(nodes.keys() | {argument.name for argument in arguments}) < len(listed) + len(arguments):
                yield f"{_where(body)} has two nodes of the same name"
        pending = [
            (body, node, ASSET_READERS[node.op], f"its op {node.op} (node {node.name!r} in {_where(body)})")
            for body, nodes in self.bodies.items()
            for node in nodes.values()
            if node.op in ASSET_READERS
        ]
        seen = set()
        while pending:
            body, node, position, reader = pending.pop()
            if (body, node.name, position) in seen:
                continue
            seen.add((body, node.name, position))
            source = self._source(body, node.input[position]) if position < len(node.input) else ""
            if body == MAIN:
                self.opened_by.add(node.name)
                if source not in self.asset_tensors:
                    yield f"{reader} opens a path that is no asset of it, from {source!r} of {MAIN}"
                continue
            signature = self.functions[body].signature
            arguments = [argument.name for argument in signature.input_arg]
            lists = any(argument.number_attr or argument.type_list_attr for argument in signature.input_arg)
            if lists or source not in arguments:
                yield f"{reader} opens a path that is no asset of it, from {source!r} of {_where(body)}"
                continue
            argument = arguments.index(source)
            why = self._why_unbound(body, argument, len(arguments))
            if why is not None:
                yield f"{reader} opens a path that is no asset of it: {why}"
            for caller, call in self._named_in(body):
                if call.op != body and (call.op not in _CALLS or call.attr["f"].func.name != body):
                    yield f"{reader} opens a path that {call.op} {call.name!r} of {_where(caller)} hands it"
                pending.append((caller, call, argument, reader))

    def _source(self, body: str, tensor: str) -> str:
        """Where a tensor comes from: the name of a node or of an argument."""
        nodes, seen = self.bodies[body], set()
        while tensor not in seen:
            seen.add(tensor)
            name = node_name(tensor)
            node = nodes.get(name)
            if node is None:
                return name
            if node.op == "Identity" and node.input:
                tensor = node.input[0]
            elif node.op == "ReadVariableOp" and node.input and body == MAIN:
                tensor = self._assigned(node_name(node.input[0])) or name
            else:
                return name
        return node_name(tensor)

    def _assigned(self, handle: str) -> str | None:
        """What a variable of the main graph holds, if it is given one tensor only: so TensorFlow keeps paths."""
        nodes = self.bodies[MAIN].values()
        readers = [n for n in nodes if any(node_name(source) == handle for source in n.input)]
        values = {n.input[1] for n in readers if n.op == "AssignVariableOp" and len(n.input) > 1}
        known = {"AssignVariableOp", "ReadVariableOp", "VarIsInitializedOp"}
        return values.pop() if len(values) == 1 and all(n.op in known for n in readers) else None

    def _why_unbound(self, name: str, argument: int, arguments: int) -> str | None:
        """Why an argument of a function is not always an asset; None if it is, as far as its own entries tell."""
        for gradient in self.meta_graph.graph_def.library.gradient:
            if name in (gradient.gradient_func, gradient.function_name):
                return f"{name!r} has to do with a gradient"
        # The graph optimizer can put functions with the same tag in place of others.
        if any(attribute.startswith("api_") for attribute in self.functions[name].attr):
            return f"{name!r} may replace another function"
        object_graph = self.meta_graph.object_graph_def
        if name not in object_graph.concrete_functions:
            return None
        bound = object_graph.concrete_functions[name].bound_inputs
        index = argument - (arguments - len(bound))
        if index < 0 or len(bound) > arguments:
            return f"{name!r} takes it from its caller"
        return None if self._is_asset(bound[index]) else f"{name!r} captures something else"

    def _is_asset(self, number: int) -> bool:
        """Whether the loader makes an object of nothing but the folder and the name of an asset."""
        nodes = self.meta_graph.object_graph_def.nodes
        if not 0 <= number < len(nodes) or nodes[number].WhichOneof("kind") != "asset":
            return False
        slots = {slot.slot_variable_node_id for node in nodes for slot in node.slot_variables}
        return not nodes[number].children and not nodes[number].registered_name and number not in slots

    def _named_in(self, function: str) -> Iterable[tuple[str, Any]]:
        return [
            (body, node)
            for body, nodes in self.bodies.items()
            for node in nodes.values()
            if function in named_functions(node)
        ]


def _where(body: str) -> str:
    return body if body == MAIN else f"function {body!r}"
