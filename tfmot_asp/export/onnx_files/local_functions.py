"""Local functions of an ONNX file: inlined, after it is known how much that makes of the file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from tfmot_asp.graph import budget
from tfmot_asp.graph.call_sizes import sizes_once_called

if TYPE_CHECKING:
    import onnx

_Key = tuple[str, str, str]
_DEEPEST = 100  # onnx inlines by recursion


def spend_on_functions(model: onnx.ModelProto) -> None:
    """Asks for the memory of a model whose functions are inlined: those that call each other grow without end.

    Raises:
        OverBudgetError: if it is more than the file's size explains.
        ValueError: if a function calls itself.
    """
    functions = {_key(f.domain, f.name, f): f for f in model.functions}
    sizes = sizes_once_called(
        functions,
        lambda key: [inner for inner in _called(functions[key].node) if inner in functions],
        lambda key: sum(node.ByteSize() + budget.GRAPH_NODE for node in functions[key].node),
        _DEEPEST,
        lambda key: key[1],
    )
    total = sum(sizes.get(key, 0) for key in _called(model.graph.node))
    budget.spend(total, "its functions, once for each call")


def _called(nodes: Iterable[onnx.NodeProto]) -> Iterator[_Key]:
    """What nodes call, those in the bodies of loops and conditions too."""
    stack = list(nodes)
    while stack:
        node = stack.pop()
        yield _key(node.domain, node.op_type, node)
        for attribute in node.attribute:
            for body in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                stack += body.node


def _key(domain: str, name: str, message: Any) -> _Key:
    return "" if domain == "ai.onnx" else domain, name, getattr(message, "overload", "")
