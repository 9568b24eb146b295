"""The matrix products of a traced graph, and the constant weight that each of them multiplies with.

Weights are found by following the graph from the product back to variables and constants, through whatever casts,
transposes, reshapes and products with other constants lie between: what is checked is the array that the product reads.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from tfmot_asp.graph.flat_graph import Graph, Op, Tensor
from tfmot_asp.graph.gemm import Gemm
from tfmot_asp.graph.graph_constants import GraphConstants
from tfmot_asp.graph.ops import product_of
from tfmot_asp.graph.products import depends_on


def find_gemms(graph: Graph, names: Mapping[int, str] | None = None) -> list[Gemm]:
    """Finds every matrix product with a constant operand, in execution order.

    Args:
        graph: what ``trace_function`` makes of a concrete function.
        names: what to call variables instead of by their own names, by their ``id``.

    Returns:
        One ``Gemm`` per product. A weight that several products read the same way (a layer that is called twice) is
        listed once, at the first of them. Products of two activations are left out.
    """
    depends = depends_on(graph, graph.inputs)
    constants = GraphConstants(graph)
    found: list[Gemm] = []
    seen: set[tuple[Any, ...]] = set()
    for op in graph.ops:
        product, operand = product_of(op), weight_operand(op, depends)
        if product is None or operand is None:
            continue
        tensor = op.inputs[operand]
        reduction_axes, output_axes = product.weight_axes(op, operand)
        source = constants.name(tensor)
        key = (source, reduction_axes, output_axes, tensor.shape)
        if key not in seen:
            seen.add(key)
            weight, problem = constants.read(tensor)
            groups = 1 if weight is None else product.groups(op, weight.shape)
            name = (names or {}).get(source[1], _shown(source[0], op))
            found.append(Gemm(op.name, op.type, name, weight, reduction_axes, output_axes, groups, problem))
    return found


def weight_operand(op: Op, varying: Collection[Tensor]) -> int | None:
    """Which input of a product is its constant weight (one of them, if both are); None if it has none."""
    product = product_of(op)
    return next((i for i in product.weights if op.inputs[i] not in varying), None) if product is not None else None


def weight_names(graph: Graph) -> dict[str, str]:
    """For each product with a constant weight, by the op's name: what its weight is called."""
    varying, constants = depends_on(graph, graph.inputs), GraphConstants(graph)
    operands = ((op, weight_operand(op, varying)) for op in graph.ops)
    return {
        op.name: _shown(constants.name(op.inputs[operand])[0], op) for op, operand in operands if operand is not None
    }


def _shown(name: str, op: Op) -> str:
    """What to call a weight; one without a name, by the op that multiplies with it."""
    return name or f"constant of {op.source.name}"
