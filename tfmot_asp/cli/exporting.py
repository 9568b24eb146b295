"""``tfmot-asp export``: which options go with which target, and the call of the library."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from tfmot_asp.cli.commands import load, written
from tfmot_asp.cli.options import input_shapes, read_array
from tfmot_asp.cli.terminal import Console, load_tensorflow
from tfmot_asp.cli.writing import check_output
from tfmot_asp.files import is_saved_model
from tfmot_asp.pattern import TWO_FOUR

_SUFFIXES = {"onnx": (".onnx",), "tflite": (".tflite",), "saved_model": ("",), "tftrt": ("",)}
_OPTIONS = {
    "onnx": (
        *("precision", "batch_size", "fold_batch_norm", "calibration_data", "opset", "float16_io"),
        *("inputs_as_nchw", "outputs_as_nchw", "uncompared"),
        *("calibration_method", "percentile", "keep_float", "int8_weights", "tensorrt", "batch_sizes", "shapes"),
        "check",
    ),
    "saved_model": ("precision", "batch_size", "fold_batch_norm"),
    "tflite": ("precision", "batch_size", "calibration_data", "io_dtype", "select_tf_ops", "uncompared"),
    "tftrt": (
        *("precision", "batch_size", "calibration_data", "max_workspace_size_bytes", "minimum_segment_size"),
        *("maximum_cached_engines", "allow_build_at_runtime"),
    ),
}
_FLAGS = {
    "fold_batch_norm": "no-fold-batch-norm",
    "calibration_data": "calibration",
    "tensorrt": "tensorrt-version",
    "allow_build_at_runtime": "no-build-at-runtime",
}
_INT8_NEEDS_DATA = "int8 needs --calibration: typical inputs, as an .npy file, or .npz with an array per input"


def export(arguments: argparse.Namespace, console: Console) -> int:
    """Writes a model for deployment, and prints what was verified in the file."""
    target = arguments.to
    given = _given(arguments)
    check_output(arguments.output, arguments.model, force=arguments.force, formats=_SUFFIXES[target])
    if "calibration_data" in given:
        given["calibration_data"] = read_array(given["calibration_data"])
    if target == "tftrt":
        return _tftrt(arguments, given, console)
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
            progress=console.progress,
            **given,
        )
    console.result(report.document(), {"output": str(arguments.output), **report.to_dict()})
    if not report.sparse:
        console.note(f"No weight in it is {report.sparsity_m_by_n}: `tfmot-asp prune` comes first.")
    return 0


def _tftrt(arguments: argparse.Namespace, given: dict[str, Any], console: Console) -> int:
    """By a SavedModel: the one that is given, or one that is made of the Keras model."""
    load_tensorflow()
    from tfmot_asp import export as exporters
    from tfmot_asp.export.tensorrt.tf_trt import check_available
    from tfmot_asp.files import temporary_folder

    check_available()
    shapes, batch = input_shapes(arguments.input_shape), given.pop("batch_size", None)
    pattern, allow_unsafe = arguments.pattern or TWO_FOUR, arguments.allow_unsafe
    with temporary_folder() as folder:
        source = arguments.model
        if not is_saved_model(source) or (source / "keras_metadata.pb").exists():
            source = folder / "saved_model"
            exporters.saved_model(
                load(arguments),
                source,
                batch_size=batch,
                input_shapes=shapes,
                sparsity_m_by_n=arguments.pattern,
                progress=console.progress,
            )
        report = exporters.verify(source, sparsity_m_by_n=pattern, allow_unsafe=allow_unsafe)
        exporters.tftrt(
            source,
            arguments.output,
            **given,
            input_shapes=shapes,
            overwrite=arguments.force,
            allow_unsafe=allow_unsafe,
            sparsity_m_by_n=pattern,
            progress=console.progress,
        )
    report = dataclasses.replace(report, path=str(arguments.model))
    console.result(written(arguments, report.document()), {"output": str(arguments.output), **report.to_dict()})
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
    if "shapes" in given:
        given["shapes"] = dict(given["shapes"])
    if given.get("precision") == "int8" and target == "saved_model":
        raise ValueError("--to saved_model writes fp32 or fp16, not int8")
    if given.get("precision") == "int8" and "calibration_data" not in given and target == "onnx":
        raise ValueError(_INT8_NEEDS_DATA)
    return given
