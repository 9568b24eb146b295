"""What a SavedModel asks for: ops and constants, counted before TensorFlow makes them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from tfmot_asp.graph import budget
from tfmot_asp.graph.call_sizes import sizes_once_called

_DEEPEST = 200  # TensorFlow follows calls by recursion, and ends the process where that goes too deep


def spend_on_graph(meta_graph: Any, functions: Mapping[str, Any]) -> None:
    """Asks for the memory of a graph's constants, and of its ops as they are once each call is a copy of its function.

    Args:
        meta_graph: with the main graph.
        functions: its function library, by name.

    Raises:
        OverBudgetError: if that is too much.
        ValueError: if functions call each other in a circle, or a constant has a shape that none can have.
    """
    bodies = [meta_graph.graph_def.node, *(function.node_def for function in functions.values())]
    for nodes in bodies:
        for node in nodes:
            for value in node.attr.values():
                if value.HasField("tensor"):
                    _spend_on_constant(node.name, value.tensor)
    counts = sizes_once_called(
        functions,
        lambda name: [inner for node in functions[name].node_def for inner in _called(node) if inner in functions],
        lambda name: len(functions[name].node_def),
        _DEEPEST,
    )
    main = sum(counts.get(name, 0) for node in bodies[0] for name in _called(node)) + len(bodies[0])
    most = max([main, *counts.values()])
    budget.spend(most * budget.GRAPH_NODE, f"{most:,} ops, once each call is a copy of its function")
    objects = len(meta_graph.object_graph_def.nodes)
    budget.spend(objects * budget.GRAPH_NODE + len(functions) * budget.FUNCTION, f"{objects:,} objects and functions")


def _spend_on_constant(name: str, tensor: Any) -> None:
    """A constant of any shape may be stored as one number that stands for all."""
    import tensorflow as tf

    dims = [dim.size for dim in tensor.tensor_shape.dim]
    if any(size < 0 for size in dims):
        raise ValueError(f"its constant {name!r} has the shape {dims}")
    try:
        width = tf.as_dtype(tensor.dtype).size or budget.TEXT
    except TypeError:
        raise ValueError(f"its constant {name!r} has the dtype {tensor.dtype}, which this TensorFlow has not") from None
    budget.spend(math.prod(dims) * width, f"the constant {name!r} of shape {dims}")


def _called(node: Any) -> Iterator[str]:
    yield node.op
    for value in node.attr.values():
        if value.HasField("func"):
            yield value.func.name
        yield from (function.name for function in value.list.func)
