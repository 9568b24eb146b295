"""The matrix products of an ONNX file, and the constant weight that each of them multiplies with.

Reads what any exporter writes: weights behind casts, transposes and quantization, in ``If`` and ``Loop`` bodies, in
local functions, in external data, and the quantized and fused products that onnxruntime's optimizer makes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfmot_asp import einsum
from tfmot_asp.export.onnx_files.onnx_graph import Scope, attributes, load_onnx, node_name
from tfmot_asp.graph.gemm import Gemm

if TYPE_CHECKING:
    import onnx

Axes = tuple[int, ...]


@dataclass(frozen=True)
class _Operand:
    """An operand of a product that may be its weight.

    Attributes:
        index: which of the node's inputs it is.
        axes: reduction and output axes, from the node's attributes and the weight's shape.
        zero_point: which input holds the value that stands for zero, in a quantized weight.
    """

    index: int
    axes: Callable[[dict[str, Any], Axes], tuple[Axes, Axes]]
    zero_point: int | None = None


def read_onnx(path: Path) -> list[Gemm]:
    """Finds every matrix product with a constant operand in an ONNX file.

    ``Gemm.op`` is the name of the node, which TensorRT's log has too. A weight that several nodes read is listed with
    each of them. The values of a quantized weight are given relative to its zero point, so that zeros are zeros.

    Args:
        path: an ``.onnx`` file; its external data lie beside it.

    Raises:
        ImportError: without the package onnx.
        ValueError: if the file is damaged or no ONNX model.
    """
    path = Path(path)
    model = load_onnx(path)
    try:
        return gemms_of(model)
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is no valid ONNX model: {error}") from error


def gemms_of(model: onnx.ModelProto) -> list[Gemm]:
    """The same for a model in memory.

    Raises:
        ValueError: if a node reads a tensor that does not exist.
    """
    return [gemm for scope, node in Scope(model, model.graph).walk() for gemm in _gemms(scope, node)]


def _gemms(scope: Scope, node: onnx.NodeProto) -> list[Gemm]:
    """The products of one node: none for most, several for a recurrent layer."""
    if not any(map(scope.varies, node.output)):
        return []  # a constant itself, and perhaps a part of some weight
    found = []
    for operand in _operands(node):
        name = node.input[operand.index] if operand.index < len(node.input) else ""
        if not name or scope.varies(name):
            continue
        found.append(_describe(scope, node, operand, name))
        if node.op_type not in _RECURRENT:
            break
    return found


def _describe(scope: Scope, node: onnx.NodeProto, operand: _Operand, name: str) -> Gemm:
    source, given = scope.source(name).removesuffix(":0"), attributes(node)  # tf2onnx keeps TensorFlow's tensor names
    groups = int(given.get("group", 1)) if node.op_type in _GROUPED else 1
    try:
        weight = _weight(scope, node, operand, name)
        reduction, outputs = operand.axes(given, weight.shape)
        reduced = weight.shape[reduction[0]] if reduction else 0
        if groups > 1 and reduced == (groups if node.op_type == "ConvTranspose" else 1):
            reduction = ()  # depthwise: one input channel per group
    except (ValueError, IndexError) as error:
        return Gemm(node_name(node), node.op_type, source, None, (), (), groups, str(error))
    return Gemm(node_name(node), node.op_type, source, weight, reduction, outputs, groups)


def _weight(scope: Scope, node: onnx.NodeProto, operand: _Operand, name: str) -> np.ndarray:
    if node.op_type in _PACKED or node.domain == _BLOCKED:
        raise ValueError(
            f"the weight of a {node.op_type} is packed in a format of onnxruntime's own: verify the file that "
            "onnxruntime optimized"
        )
    weight = scope.value(name)
    if weight.dtype.kind == "V":  # bfloat16, float8, int4: NumPy has only their names
        weight = weight.astype(np.float32)
    if operand.zero_point is None or operand.zero_point >= len(node.input) or not node.input[operand.zero_point]:
        return weight
    zero = scope.value(node.input[operand.zero_point])
    if zero.ndim == 1 and zero.size > 1:  # one for each output channel: the first axis of a convolution, the last else
        axis = 0 if "Conv" in node.op_type else weight.ndim - 1
        zero = zero.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
    return weight.astype(np.int32) - zero.astype(np.int32)


# The axes of each kind of weight


def _conv(given: dict[str, Any], shape: Axes) -> tuple[Axes, Axes]:
    return (1,), (0,)  # (O, I / groups, ...)


def _transposed_conv(given: dict[str, Any], shape: Axes) -> tuple[Axes, Axes]:
    return (0,), (1,)  # (I, O / groups, ...)


def _left(given: dict[str, Any], shape: Axes) -> tuple[Axes, Axes]:
    """The left operand of a product, ``(..., M, K)``."""
    return _matrix(len(shape), sums_last=not given.get("transA", 0), batch_inside=bool(given.get("transBatchA", 0)))


def _right(given: dict[str, Any], shape: Axes) -> tuple[Axes, Axes]:
    """The right operand of a product, ``(..., K, N)``."""
    return _matrix(len(shape), sums_last=bool(given.get("transB", 0)), batch_inside=bool(given.get("transBatchB", 0)))


def _matrix(rank: int, sums_last: bool, batch_inside: bool) -> tuple[Axes, Axes]:
    if rank == 1:
        return (0,), ()
    rows = 0 if batch_inside else rank - 2  # FusedMatMul can take the first of the two axes from before the batch
    return ((rank - 1,), (rows,)) if sums_last else ((rows,), (rank - 1,))


def _recurrent(given: dict[str, Any], shape: Axes) -> tuple[Axes, Axes]:
    return (2,), (1,)  # (directions, gates × hidden, I)


def _einsum(index: int) -> Callable[[dict[str, Any], Axes], tuple[Axes, Axes]]:
    return lambda given, shape: einsum.parse(given["equation"]).roles(index, len(shape))


def _operands(node: onnx.NodeProto) -> tuple[_Operand, ...]:
    """The inputs of a node that may be the weight of a product, the likelier first."""
    if node.domain not in ("", "ai.onnx", "com.microsoft", _BLOCKED):
        return ()
    if node.op_type == "Einsum":
        return tuple(_Operand(index, _einsum(index)) for index in reversed(range(len(node.input))))
    return _PRODUCTS.get(node.op_type, ())


_PRODUCTS: dict[str, tuple[_Operand, ...]] = {
    "MatMul": (_Operand(1, _right), _Operand(0, _left)),
    "Gemm": (_Operand(1, _right), _Operand(0, _left)),
    "Conv": (_Operand(1, _conv),),
    "DeformConv": (_Operand(1, _conv),),
    "ConvTranspose": (_Operand(1, _transposed_conv),),
    "QLinearConv": (_Operand(3, _conv, zero_point=5),),
    "ConvInteger": (_Operand(1, _conv, zero_point=3),),
    "QLinearMatMul": (_Operand(3, _right, zero_point=5), _Operand(0, _left, zero_point=2)),
    "MatMulInteger": (_Operand(1, _right, zero_point=3), _Operand(0, _left, zero_point=2)),
    "LSTM": (_Operand(1, _recurrent), _Operand(2, _recurrent)),
    "GRU": (_Operand(1, _recurrent), _Operand(2, _recurrent)),
    "RNN": (_Operand(1, _recurrent), _Operand(2, _recurrent)),
    # com.microsoft: what onnxruntime's optimizer makes of the above.
    "FusedConv": (_Operand(1, _conv),),
    "FusedMatMul": (_Operand(1, _right), _Operand(0, _left)),
    "FusedGemm": (_Operand(1, _right), _Operand(0, _left)),
    "QGemm": (_Operand(3, _right, zero_point=5),),
    "MatMulIntegerToFloat": (_Operand(1, _right, zero_point=5),),
    "DynamicQuantizeMatMul": (_Operand(1, _right, zero_point=3),),
    "Attention": (_Operand(1, _right),),
    "QAttention": (_Operand(1, _right, zero_point=7),),
    "MatMulNBits": (_Operand(1, _right),),
    "MatMulBnb4": (_Operand(1, _right),),
    "NhwcConv": (_Operand(1, lambda given, shape: ((len(shape) - 1,), (0,))),),
}
_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
_GROUPED = frozenset({"Conv", "ConvTranspose", "DeformConv", "QLinearConv", "ConvInteger", "FusedConv", "NhwcConv"})
_BLOCKED = "com.microsoft.nchwc"  # convolutions whose kernel is stored in blocks of channels
_PACKED = frozenset({"MatMulNBits", "MatMulBnb4"})
