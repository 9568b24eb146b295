"""Converts ONNX models to float16: all tensors, since TensorRT 11 takes precision from the file alone."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tfmot_asp.export.gemms import Gemm
from tfmot_asp.export.onnx_graph import import_onnx, sort_nodes

if TYPE_CHECKING:
    import onnx

_LARGEST = float(np.finfo(np.float16).max)


def to_float16(model: onnx.ModelProto, gemms: Sequence[Gemm], float16_io: bool) -> onnx.ModelProto:
    """Converts a model with onnxruntime's converter.

    Weights that are too small for float16 become its smallest number or zero, which leaves the pattern as it is; other
    constants that are too large (the -1e9 of attention masks) become the largest. Ops without a float16 form stay in
    float32, between casts.

    Args:
        model: a float32 model with shapes; it stays as it is.
        gemms: its products.
        float16_io: whether inputs and outputs are float16 too.

    Raises:
        ValueError: if a weight is too large for float16.
    """
    for gemm in gemms:
        if gemm.weight is None or gemm.weight.dtype.kind != "f":
            continue
        largest = float(np.max(np.abs(gemm.weight), initial=0.0))
        if largest > _LARGEST:
            raise ValueError(
                f"the weight {gemm.weight_name!r} of {gemm.op!r} holds {largest:.3g}, and float16 ends at "
                f"{_LARGEST:g}: export the model in fp32, or scale the layer down"
            )
    onnx = import_onnx()
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    converted = _converter()(copy, keep_io_types=not float16_io)
    sort_nodes(converted.graph)  # the converter appends its casts at the end
    del converted.graph.value_info[:]
    converted = onnx.shape_inference.infer_shapes(converted, data_prop=True)
    onnx.checker.check_model(converted, full_check=True)
    return converted


def _converter() -> Any:
    before = list(sys.path)
    try:
        from onnxruntime.transformers.float16 import convert_float_to_float16
    finally:
        sys.path[:] = before  # importing it appends its folder, whose modules have such names as "optimizer"
    return convert_float_to_float16
