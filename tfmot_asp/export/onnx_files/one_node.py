"""Computes one ONNX node on known arrays with ONNX's reference implementation, once it is known how much that makes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tfmot_asp import einsum
from tfmot_asp.graph import budget

if TYPE_CHECKING:
    import onnx

# The reference implementation knows this op from here on; what it does for int8 has not changed since opset 10.
_DEQUANTIZE_OPSET = 19

_MOST_STEPS = 1 << 31  # of an einsum: seconds

_SMALL = 1 << 16  # elements; a shape or a list of indices is smaller, and what is larger decides no shape

# They make tensors of any size of small ones. Of all others, what cannot be inferred is about as large as the inputs.
_GROWING = frozenset(
    re.findall(
        r"\w+",
        """
        AffineGrid BlackmanWindow CenterCropPad Col2Im ConstantOfShape ConvTranspose DFT Expand EyeLike Gather GatherND
        GatherElements GridSample HammingWindow HannWindow ImageDecoder MaxRoiPool MaxUnpool MelWeightMatrix OneHot Pad
        Range Resize RoiAlign STFT ScatterND StringSplit Tile Upsample
        """,
    )
)

# They do much work, or take much memory, for each element; no weight is made by one.
_COSTLY = re.compile(
    r".*(Conv|Pool|DFT|STFT|RNN|LSTM|GRU|Attention|RoiAlign).*|Resize|Upsample|GridSample|Col2Im|Det|LRN|TopK"
    r"|MelWeightMatrix|NonMaxSuppression|TfIdfVectorizer|ImageDecoder|RegexFullMatch|StringNormalizer"
)


def compute(node: onnx.NodeProto, feeds: Mapping[str, np.ndarray], opsets: Mapping[str, int]) -> list[np.ndarray]:
    """The outputs of a node.

    Args:
        node: any but one with a body.
        feeds: its inputs by name.
        opsets: of the model that it is from.

    Raises:
        OverBudgetError: if they would be larger than the size of the file explains.
        Exception: of any kind, if it cannot be computed: what is lacking or does not fit has no class of its own.
    """
    import onnx
    from onnx.reference import ReferenceEvaluator

    opsets = dict(opsets)
    if node.op_type == "DequantizeLinear":
        opsets[""] = max(opsets.get("", 0), _DEQUANTIZE_OPSET)
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    if any(value.dtype.kind in "OSU" for value in feeds.values()):
        raise ValueError("it handles text")
    budget.spend(_size_of_outputs(node, feeds, imports), f"what a node {node.op_type} computes from constants")
    if budget.limited() and (_COSTLY.fullmatch(node.op_type) or _steps_of_einsum(node, feeds) > _MOST_STEPS):
        raise ValueError("it may take for ever")
    graph = onnx.helper.make_graph(
        [node],
        "constant",
        [onnx.helper.make_empty_tensor_value_info(name) for name in feeds],
        [onnx.helper.make_empty_tensor_value_info(name) for name in node.output if name],
    )
    results = ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=imports)).run(None, dict(feeds))
    return [np.asarray(result) for result in results]


def _steps_of_einsum(node: onnx.NodeProto, feeds: Mapping[str, np.ndarray]) -> int:
    """How often an einsum multiplies: once for each value of each index. 0 for other ops."""
    if node.op_type != "Einsum":
        return 0
    equation = einsum.parse(node.attribute[0].s)
    sizes: dict[str, int] = {}
    for operand, name in enumerate(node.input):
        sizes.update(zip(equation.axes(operand, feeds[name].ndim), feeds[name].shape, strict=True))
    return math.prod(sizes.values())


def _size_of_outputs(node: onnx.NodeProto, feeds: Mapping[str, np.ndarray], imports: list[Any]) -> int:
    """The bytes of what a node makes, as ONNX infers them without running it.

    Raises:
        ValueError: if that cannot be told, for a node that can make more than it is given.
    """
    import onnx

    sizes: list[int | None] = [None]
    try:
        inferred = onnx.shape_inference.infer_shapes(_described(node, feeds, imports), data_prop=True)
        sizes = [_bytes_of(output.type.tensor_type) for output in inferred.graph.output]
    except (KeyError, TypeError, ValueError, RuntimeError, onnx.shape_inference.InferenceError):
        pass  # a dtype that NumPy has no name for, or inputs that do not fit
    if None in sizes and (node.op_type in _GROWING or node.domain not in ("", "ai.onnx")):
        raise ValueError("how large its result is cannot be told")
    most = sum(value.size * max(1, value.ndim) * 8 for value in feeds.values())
    return sum(most if size is None else size for size in sizes)


def _described(node: onnx.NodeProto, feeds: Mapping[str, np.ndarray], imports: list[Any]) -> onnx.ModelProto:
    """A model of the node alone, in which small inputs have their values and large ones their shapes."""
    import onnx

    inputs, initializers = [], []
    for name, value in feeds.items():
        if value.size <= _SMALL:
            initializers.append(onnx.numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name))
        else:
            kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
            inputs.append(onnx.helper.make_tensor_value_info(name, kind, value.shape))
    outputs = [onnx.helper.make_empty_tensor_value_info(name) for name in node.output if name]
    graph = onnx.helper.make_graph([node], "constant", inputs, outputs, initializers)
    return onnx.helper.make_model(graph, opset_imports=imports)


def _bytes_of(kind: Any) -> int | None:
    import onnx

    if not kind.HasField("shape") or not kind.elem_type:
        return None
    dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim]
    if None in dims:
        return None
    return math.prod(map(int, dims)) * onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize  # type: ignore[arg-type]
