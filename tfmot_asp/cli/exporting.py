"""``tfmot-asp export``: which options go with which target, and the call of the library."""

from __future__ import annotations

import argparse
from typing import Any

from tfmot_asp.cli.commands import load
from tfmot_asp.cli.options import input_shapes, read_array
from tfmot_asp.cli.terminal import Console
from tfmot_asp.cli.writing import check_output

_SUFFIXES = {"onnx": (".onnx",), "tflite": (".tflite",), "saved_model": ("",)}
_OPTIONS = {
    "onnx": (
        *("precision", "batch_size", "fold_batch_norm", "calibration_data", "opset", "float16_io"),
        *("inputs_as_nchw", "outputs_as_nchw", "uncompared"),
        *("calibration_method", "percentile", "keep_float", "int8_weights", "tensorrt", "batch_sizes", "check"),
    ),
    "saved_model": ("precision", "batch_size", "fold_batch_norm"),
    "tflite": ("precision", "batch_size", "calibration_data", "io_dtype", "select_tf_ops", "uncompared"),
}
_FLAGS = {
    "fold_batch_norm": "no-fold-batch-norm",
    "calibration_data": "calibration",
    "tensorrt": "tensorrt-version",
}
_INT8_NEEDS_DATA = "int8 needs --calibration: typical inputs, as an .npy file, or .npz with an array per input"


def export(arguments: argparse.Namespace, console: Console) -> int:
    """Writes a model for deployment, and prints what was verified in the file."""
    target = arguments.to
    given = _given(arguments)
    check_output(arguments.output, arguments.model, force=arguments.force, formats=_SUFFIXES[target])
    if "calibration_data" in given:
        given["calibration_data"] = read_array(given["calibration_data"])
    model = load(arguments)
    from tfmot_asp import export as exporters
    from tfmot_asp.keras_models.quantized import quantized_layers

    if given.get("precision") == "int8" and "calibration_data" not in given and not quantized_layers(model):
        raise ValueError(_INT8_NEEDS_DATA)
    with console.without_noise():  # of the TFLite converter
        report = getattr(exporters, target)(
            model,
            arguments.output,
            overwrite=arguments.force,
            input_shapes=input_shapes(arguments.input_shape),
            sparsity_m_by_n=arguments.pattern,
            **given,
        )
    console.result(report.document(), {"output": str(arguments.output), **report.to_dict()})
    if not report.sparse:
        console.note(f"No weight in it is {report.sparsity_m_by_n}: `tfmot-asp prune` comes first.")
    return 0


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that were given, with values as the library takes them; all go with the target."""
    target = arguments.to
    names = sorted({name for options in _OPTIONS.values() for name in options})
    given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    for name in given.keys() - set(_OPTIONS[target]):
        fitting = " and ".join(f"--to {other}" for other, options in _OPTIONS.items() if name in options)
        flag = _FLAGS.get(name, name.replace("_", "-"))
        raise ValueError(f"--{flag} goes with {fitting}, not with --to {target}")
    if given.get("batch_size") == "open":
        given["batch_size"] = None
    if given.get("precision") == "int8" and target == "saved_model":
        raise ValueError("--to saved_model writes fp32 or fp16, not int8")
    if given.get("precision") == "int8" and "calibration_data" not in given and target == "onnx":
        raise ValueError(_INT8_NEEDS_DATA)
    return given
