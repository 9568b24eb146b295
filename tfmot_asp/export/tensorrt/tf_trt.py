"""TF-TRT's converter, and what it can be asked for in this TensorFlow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tensorflow as tf

from tfmot_asp.hardware.precision import check_precision

_ELSEWHERE = (
    "TF-TRT is part of TensorFlow up to 2.17 on Linux, with the libraries of TensorRT 8.6 (pip install "
    "tensorflow[and-cuda]==2.17.1 tensorrt==8.6.1, then put tensorrt_libs on LD_LIBRARY_PATH), and of NVIDIA's "
    "TensorFlow containers on NGC up to 25.02 (tensorflow:25.02-tf2-py3). With any other TensorFlow go by ONNX: "
    "tfmot_asp.export.onnx(model, path), then trtexec --sparsity=enable"
)


def conversion_parameters(precision: str = "fp16", **options: Any) -> dict[str, Any]:
    """The keyword arguments of ``tf.experimental.tensorrt.ConversionParams`` (TensorFlow 2.17), checked.

    Args:
        precision: ``"fp32"``, ``"fp16"`` or ``"int8"``.
        **options: ``max_workspace_size_bytes``, ``minimum_segment_size``, ``maximum_cached_engines``,
            ``use_calibration`` and ``allow_build_at_runtime``, as ``tftrt`` describes them.

    Raises:
        ValueError: if one is of the wrong type, or too small.
    """
    precision_mode = check_precision(precision).upper()
    for name, least in (("max_workspace_size_bytes", 1), ("minimum_segment_size", 1), ("maximum_cached_engines", 1)):
        value = options.get(name, least)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    return {"precision_mode": precision_mode, **options}


def new_converter(source: Path, parameters: dict[str, Any], *, dynamic: bool) -> Any:
    """TF-TRT's converter, with a dynamic shape profile where the signature leaves axes open.

    Raises:
        RuntimeError: if this TensorFlow, or this machine, cannot convert.
    """
    check_available()
    try:
        return tf.experimental.tensorrt.Converter(**converter_arguments(source, parameters, dynamic=dynamic))
    except RuntimeError as error:
        raise RuntimeError(f"TensorFlow {tf.__version__} cannot convert: {error}. {_ELSEWHERE}") from error


def check_available() -> None:
    """Raises RuntimeError if TF-TRT cannot run here, with what can."""
    if (problem := why_not()) is not None:
        raise RuntimeError(f"{problem}. {_ELSEWHERE}")


def converter_arguments(source: Any, parameters: dict[str, Any], *, dynamic: bool) -> dict[str, Any]:
    """The keyword arguments of ``tf.experimental.tensorrt.Converter`` (TensorFlow 2.17).

    Args:
        source: folder of the SavedModel.
        parameters: from ``conversion_parameters``.
        dynamic: whether its signature leaves axes open. One profile then spans all shapes that engines are built for.
    """
    profile = {"use_dynamic_shape": True, "dynamic_shape_profile_strategy": "Range"} if dynamic else {}
    return {
        "input_saved_model_dir": str(source),
        "input_saved_model_signature_key": "serving_default",
        **parameters,
        **profile,
    }


def why_not() -> str | None:
    """Why TF-TRT cannot run here; None if it can."""
    try:
        from tensorflow.compiler.tf2tensorrt import _pywrap_py_utils as bridge

        built_against = tuple(bridge.get_linked_tensorrt_version())
        usable = bool(bridge.is_tensorrt_enabled())
    except (ImportError, AttributeError):
        built_against, usable = (0, 0, 0), False
    if not any(built_against):
        return f"TensorFlow {tf.__version__} was built without TensorRT"
    if not usable:
        version = ".".join(map(str, built_against))
        return (
            f"TensorFlow {tf.__version__} was built against TensorRT {version}, whose libraries it does not find here"
        )
    if not tf.config.list_physical_devices("GPU"):
        return f"TensorFlow {tf.__version__} sees no GPU, and TF-TRT builds its engines on one"
    return None
