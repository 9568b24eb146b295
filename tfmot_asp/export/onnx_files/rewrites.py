"""Rewrites for tf2onnx: TensorFlow ops that it has no counterpart for, a wrong one, or a needlessly involved one.

- ``Erfc``, from exact GELU: tf2onnx knows ``Erf`` only.
- ``Einsum`` of two activations, from attention: tf2onnx spells it out as some forty shape ops around the product;
  TensorRT recognises attention by its two matrix products.
- ``FloorMod`` and ``FloorDiv`` of integers: what tf2onnx makes of them rounds towards zero, so that padding to a
  multiple, ``-n % 32`` or ``-(-n // 32)``, comes out wrong.
- Layer normalization, in its module.

Each is a function of tf2onnx's graph and its nodes, as ``custom_rewriter`` takes them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tfmot_asp import einsum
from tfmot_asp.export.onnx_files.layer_norm import rewrite_layer_norm
from tfmot_asp.graph.ops import EINSUM, types_of


def rewrite_erfc(graph: Any, nodes: list[Any]) -> list[Any]:
    """``erfc(x)`` becomes ``1 - erf(x)``."""
    for node in nodes:
        if node.type != "Erfc":
            continue
        dtype, shape = graph.get_dtype(node.output[0]), graph.get_shape(node.output[0])
        one = graph.make_const(f"{node.name}/one", np.ones((), _numpy_dtype(dtype)))
        inputs, outputs = list(node.input), list(node.output)
        graph.remove_node(node.name)
        erf = graph.make_node("Erf", inputs, name=f"{node.name}/Erf", shapes=[shape], dtypes=[dtype])
        graph.make_node(
            "Sub", [one.output[0], erf.output[0]], outputs=outputs, name=node.name, shapes=[shape], dtypes=[dtype]
        )
    return graph.get_nodes()


def rewrite_floor(graph: Any, nodes: list[Any]) -> list[Any]:
    """Remainder and quotient of integers, rounded down: ``Mod``, and ``(x - Mod(x, y)) / y``."""
    for node in nodes:
        if node.type not in ("FloorMod", "FloorDiv"):
            continue
        dtype, shape = graph.get_dtype(node.output[0]), graph.get_shape(node.output[0])
        if dtype is None or np.dtype(_numpy_dtype(dtype)).kind not in "iu":
            continue
        (x, y), outputs = list(node.input), list(node.output)
        kind, name = node.type, node.name
        graph.remove_node(name)
        made = {"shapes": [shape], "dtypes": [dtype]}
        if kind == "FloorMod":
            graph.make_node("Mod", [x, y], outputs=outputs, name=name, **made)
            continue
        remainder = graph.make_node("Mod", [x, y], name=f"{name}/Mod", **made)
        whole = graph.make_node("Sub", [x, remainder.output[0]], name=f"{name}/Sub", **made)
        graph.make_node("Div", [whole.output[0], y], outputs=outputs, name=name, **made)
    return graph.get_nodes()


def rewrite_einsum(graph: Any, nodes: list[Any]) -> list[Any]:
    """An einsum that is one batched matrix product becomes ``Transpose``, ``MatMul`` and ``Transpose``."""
    for node in nodes:
        if node.type not in types_of(EINSUM) or len(node.input) != 2:
            continue
        orders = matmul_orders(node.get_attr_value("equation"))
        if orders is None:
            continue
        dtype, shape = graph.get_dtype(node.output[0]), graph.get_shape(node.output[0])
        inputs, outputs = list(node.input), list(node.output)
        graph.remove_node(node.name)
        operands = [
            _transposed(graph, name, order, f"{node.name}/operand_{i}")
            for i, (name, order) in enumerate(zip(inputs, orders[:2], strict=True))
        ]
        last = orders[2]
        if last == sorted(last):
            graph.make_node("MatMul", operands, outputs=outputs, name=node.name, shapes=[shape], dtypes=[dtype])
            continue
        inner = None if shape is None else [shape[last.index(i)] for i in range(len(last))]
        product = graph.make_node("MatMul", operands, name=f"{node.name}/MatMul", shapes=[inner], dtypes=[dtype])
        graph.make_node(
            "Transpose",
            product.output,
            attr={"perm": last},
            outputs=outputs,
            name=node.name,
            shapes=[shape],
            dtypes=[dtype],
        )
    return graph.get_nodes()


def matmul_orders(equation: str | bytes) -> tuple[list[int], list[int], list[int]] | None:
    """How to transpose both operands and the result of an einsum so that it is a batched matrix product.

    Args:
        equation: such as ``"btnh,bsnh->bnts"``.

    Returns:
        Three permutations, or None if the equation is no such product: it sums over exactly one letter, each operand
        brings exactly one letter of its own, and all others are batch.

    Example:
        >>> matmul_orders("btnh,bsnh->bnts")
        ([0, 2, 1, 3], [0, 2, 3, 1], [0, 1, 2, 3])
    """
    parsed = einsum.parse(equation)
    terms = (*parsed.operands, parsed.output)
    if len(terms) != 3 or any(einsum.ELLIPSIS in term or len(set(term)) != len(term) for term in terms):
        return None
    left, right, output = terms
    batch = [letter for letter in output if letter in left and letter in right]
    summed = [letter for letter in left if letter in right and letter not in output]
    rows = [letter for letter in left if letter in output and letter not in right]
    columns = [letter for letter in right if letter in output and letter not in left]
    alone = len(left) + len(right) - 2 * len(batch) - 2 * len(summed) - len(rows) - len(columns)
    if alone or not (len(summed) == len(rows) == len(columns) == 1) or len(output) != len(batch) + 2:
        return None
    made = batch + rows + columns
    return (
        [left.index(letter) for letter in batch + rows + summed],
        [right.index(letter) for letter in batch + summed + columns],
        [made.index(letter) for letter in output],
    )


REWRITES = [rewrite_erfc, rewrite_floor, rewrite_einsum, rewrite_layer_norm]


def _transposed(graph: Any, name: str, order: list[int], label: str) -> str:
    if order == sorted(order):
        return name
    shape = graph.get_shape(name)
    node = graph.make_node(
        "Transpose",
        [name],
        attr={"perm": order},
        name=label,
        shapes=[None if shape is None else [shape[i] for i in order]],
        dtypes=[graph.get_dtype(name)],
    )
    return node.output[0]


def _numpy_dtype(onnx_dtype: int) -> Any:
    from tf2onnx.utils import map_onnx_to_numpy_type

    return map_onnx_to_numpy_type(onnx_dtype)
