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
    "onnx": ("precision", "opset", "batch_size", "fold_batch_norm", "calibration_data"),
    "saved_model": ("precision", "batch_size", "fold_batch_norm"),
    "tflite": ("quantize", "calibration_data"),
}
_PRECISIONS = {"onnx": ("fp32", "fp16", "int8"), "saved_model": ("fp32", "fp16")}
_DEFAULTS: dict[str, Any] = {"fold_batch_norm": True}


def export(arguments: argparse.Namespace, console: Console) -> int:
    """Writes a model for deployment, and prints what was verified in the file."""
    target = arguments.to
    _check_options(arguments)
    check_output(arguments.output, arguments.model, force=arguments.force, formats=_SUFFIXES[target])
    data = None if arguments.calibration_data is None else read_array(arguments.calibration_data)
    model = load(arguments)
    from tfmot_asp import export as exporters

    options: dict[str, Any] = {"overwrite": arguments.force, "input_shapes": input_shapes(arguments.input_shape)}
    if target == "tflite":
        if arguments.quantize is not None:
            options["quantize"] = arguments.quantize
        if data is not None:
            options["representative_dataset"] = data
    else:
        options |= {"batch_size": arguments.batch_size, "fold_batch_norm": arguments.fold_batch_norm}
    if target == "saved_model":
        options["dtype"] = "float16" if arguments.precision == "fp16" else None
    if target == "onnx":
        options |= {"precision": arguments.precision or "fp32", "calibration_data": data}
        if arguments.opset is not None:
            options["opset"] = arguments.opset
    with console.without_noise():  # of the TFLite converter
        report = getattr(exporters, target)(model, arguments.output, **options)
    console.result(str(report), {"output": str(arguments.output), **report.to_dict()})
    if not report.sparse:
        console.note("No weight in it is 2:4: `tfmot-asp prune` comes first.")
    return 0


def _check_options(arguments: argparse.Namespace) -> None:
    target = arguments.to
    for name in sorted({name for names in _OPTIONS.values() for name in names} - set(_OPTIONS[target])):
        if getattr(arguments, name) != _DEFAULTS.get(name):
            fitting = " and ".join(f"--to {other}" for other, names in _OPTIONS.items() if name in names)
            flag = "no-fold-batch-norm" if name == "fold_batch_norm" else name.replace("_", "-")
            raise ValueError(f"--{flag} goes with {fitting}, not with --to {target}")
    precision = arguments.precision
    if precision is not None and precision not in _PRECISIONS[target]:
        raise ValueError(f"--to {target} writes {' or '.join(_PRECISIONS[target])}, not {precision}")
    if precision == "int8" and arguments.calibration_data is None:
        raise ValueError(
            "int8 needs --calibration-data: typical inputs, as an .npy file, or .npz with an array per input"
        )
