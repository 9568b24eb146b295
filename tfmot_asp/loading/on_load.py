"""What runs when a SavedModel is loaded: initializers of tables and of other resources, and restoring.

Loading must end, so no loop runs in it, and need no more memory than the file explains, so nothing large is made of
something small. Variables are not made in it: their values come from the checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tfmot_asp.loading.asset_paths import MAIN, named_functions, node_name

_LOOPS = re.compile(r"_?While|StatelessWhile|For|MapDefun|(Ref)?(Enter|NextIteration)|SymbolicGradient|BatchFunction")
_GROWING = re.compile(
    r"Fill|Tile|BroadcastTo|LinSpace|OneHot|(Mirror)?Pad(V2)?|Resize.*|Decode(Compressed|Gif|Png|Jpeg|Image|Bmp|WebP)"
    r"|.*(Random|Normal|Multinomial|Scatter|SparseToDense|ConvND|Conv\d?D|MatMul|Einsum).*|EmptyTensorList|Empty"
    r"|MatrixDiag.*|Diag|TensorListReserve|Repeat|StringNGrams|AudioSpectrogram|Cross|Outer.*|ReduceJoin"
)
_MOST_NUMBERS = 1 << 20  # in a range
_ON_LOAD = frozenset({"_create_resource", "_initialize", "_destroy_resource"})


def refusals(meta_graph: Any, functions: Mapping[str, Any], initial: Iterable[Any]) -> Iterator[str]:
    """Why what runs on loading may not end, or may need any amount of memory.

    Args:
        meta_graph: whose objects have functions that the loader runs.
        functions: its library, by name.
        initial: the nodes of the main graph that the loader of TensorFlow 1 runs.
    """
    pending = list(_run_by_loader(meta_graph))
    limits = _Limits(meta_graph.graph_def.node)
    for node in initial:
        yield from _refused(node, MAIN, limits)
        pending += [name for name in named_functions(node) if name in functions]
    seen: set[str] = set()
    while pending:
        name = pending.pop()
        if name in seen or name not in functions:
            continue
        seen.add(name)
        limits = _Limits(functions[name].node_def)
        for node in functions[name].node_def:
            yield from _refused(node, f"function {name!r}", limits)
            pending += [inner for inner in named_functions(node) if inner in functions]


class _Limits:
    """The numbers that nodes of a graph count up to; those that are no constants are sizes of something."""

    def __init__(self, nodes: Iterable[Any]) -> None:
        self._constants = {node.name: node.attr["value"].tensor for node in nodes if node.op == "Const"}

    def of(self, node: Any) -> float:
        import tensorflow as tf

        held = [self._constants[name] for name in map(node_name, node.input) if name in self._constants]
        small = [value for value in held if not value.tensor_shape.dim]
        return max((abs(float(tf.make_ndarray(value))) for value in small), default=0.0)


def _refused(node: Any, where: str, limits: _Limits) -> Iterator[str]:
    if _LOOPS.fullmatch(node.op):
        yield f"its op {node.op} (node {node.name!r} in {where}) runs when it is loaded, and may never end"
    elif _GROWING.fullmatch(node.op) or (node.op == "Range" and not limits.of(node) <= _MOST_NUMBERS):
        yield f"its op {node.op} (node {node.name!r} in {where}) runs when it is loaded, and may need any memory"


def _run_by_loader(meta_graph: Any) -> Iterator[str]:
    """Names of the functions that resources are made with, and that restore what is no variable."""
    nodes = meta_graph.object_graph_def.nodes
    for node in nodes:
        called = [child.node_id for child in (*node.children, *node.dependencies) if child.local_name in _ON_LOAD]
        called += [saveable.restore_function for saveable in node.saveable_objects.values()]
        for number in called:
            function = nodes[number] if 0 <= number < len(nodes) else None
            if function is not None and function.HasField("function"):
                yield from function.function.concrete_functions
            elif function is not None and function.HasField("bare_concrete_function"):
                yield function.bare_concrete_function.concrete_function_name
