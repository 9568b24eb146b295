"""Local functions of an ONNX file: inlined, after it is known how much that makes of the file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from tfmot_asp.graph import budget

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
    sizes: dict[_Key, int] = {}
    depths: dict[_Key, int] = {}
    for start in functions:
        path = [start]
        while path:  # no recursion: functions can be nested as deep as a file likes
            key = path[-1]
            called = [k for k in _called(functions[key].node) if k in functions]
            missing = next((k for k in called if k not in sizes), None)
            if key in sizes or missing is None:
                sizes.setdefault(key, _own_size(functions[key].node) + sum(sizes[k] for k in called))
                depths[key] = 1 + max((depths[k] for k in called), default=0)
                if depths[key] > _DEEPEST:
                    raise ValueError(f"its functions call each other more than {_DEEPEST} deep")
                path.pop()
            elif missing in path:
                raise ValueError(f"its function {missing[1]!r} calls itself")
            else:
                path.append(missing)
    total = sum(sizes.get(key, 0) for key in _called(model.graph.node))
    budget.spend(total, "its functions, once for each call")


def _own_size(nodes: Iterable[onnx.NodeProto]) -> int:
    return sum(node.ByteSize() + budget.GRAPH_NODE for node in nodes)


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
