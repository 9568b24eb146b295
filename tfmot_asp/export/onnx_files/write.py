"""Writes a converted model in each precision and runs the file. Each function returns the notes for the report."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tfmot_asp.export.calibration_data import CalibrationBatches
from tfmot_asp.export.kept_pattern import has_pattern
from tfmot_asp.export.onnx_files.comparison import OutputCheck
from tfmot_asp.export.onnx_files.float16 import check_weights, to_float16
from tfmot_asp.export.onnx_files.half_rounding import LARGEST, HalfRunner
from tfmot_asp.export.onnx_files.int8 import calibrate, insert_quantizers, plan_quantization
from tfmot_asp.export.onnx_files.onnx_graph import import_onnx
from tfmot_asp.export.onnx_files.read_onnx import gemms_of
from tfmot_asp.export.onnx_files.run import session
from tfmot_asp.graph.compare import TOLERANCES
from tfmot_asp.pattern import Pattern

if TYPE_CHECKING:
    import onnx

logger = logging.getLogger(__name__)

# Outputs that are off by more than this part of their spread, in the Euclidean norm, are of no use.
_INT8_LIMIT = 0.5
_FLOAT16_LIMIT = 0.1

_ON_OVERFLOW = "export it in fp32, or scale down what leads there"

_NOT_QUANTIZED = "it is of a kind that is not quantized, or in the body of a loop or condition"


@dataclass(frozen=True)
class Int8Options:
    """How to quantize, in the words of ``export.onnx``.

    Attributes:
        method: its ``calibration_method``.
        percentile: of the magnitudes that are kept.
        keep_float: names of nodes or weights that stay float.
        int8_weights: whether weights are stored in int8.
    """

    method: str
    percentile: float
    keep_float: Sequence[str]
    int8_weights: bool


def write_float(
    model: onnx.ModelProto, written: Path, check: OutputCheck, data: CalibrationBatches | None
) -> list[str]:
    """Saves a float32 file and runs it."""
    import_onnx().save(model, str(written))
    if data is not None:
        check.add(data.some())
    difference = check.compare(session(written))
    if not check.pairs:
        return []
    return [f"fp32: outputs differ from the Keras model's by {difference:.1e} of their size, in onnxruntime."]


def write_float16(
    model: onnx.ModelProto, written: Path, check: OutputCheck, data: CalibrationBatches | None, float16_io: bool
) -> list[str]:
    """Makes sure that a model fits into float16, converts and saves it."""
    check_weights(gemms_of(model))
    half = to_float16(model, float16_io)
    import_onnx().save(half, str(written))
    check.run_all(session(written))
    what = "random inputs (give calibration_data to judge by typical ones)" if data is None else "calibration_data"
    runner = HalfRunner(half)
    difference, error = check.errors(runner, check.pairs if data is None else check.expected(data.some()))
    overflows = [f"{node}, and float16 ends at {LARGEST:g}" for node in runner.overflows.values()]
    # Random inputs may all look alike to a model, whose outputs then hardly vary.
    differs = data is not None or difference > TOLERANCES["converted"]["float16"]
    if differs and error.overall > _FLOAT16_LIMIT:
        if overflows:
            raise ValueError(f"in fp16 the model overflows on {what}: {overflows[0]}; {_ON_OVERFLOW}")
        raise ValueError(
            f"in fp16 the outputs differ from the Keras model's {error} on {what}: export it in fp32, or with "
            f"calibration_data that show what the model sees{check.advice}"
        )
    for overflow in overflows:
        logger.warning("In fp16 the model overflows on %s: %s", what, overflow)
    notes = [f"fp16: overflow on {what}: {overflow}. If outputs suffer, {_ON_OVERFLOW}." for overflow in overflows]
    if not error.output:
        return notes
    return [
        f"fp16: outputs differ from the Keras model's by {difference:.1e} of their size, with every result rounded to "
        f"half as on a GPU; {error}.",
        *notes,
    ]


def write_int8(
    model: onnx.ModelProto,
    written: Path,
    check: OutputCheck,
    data: CalibrationBatches,
    options: Int8Options,
    pattern: Pattern,
) -> list[str]:
    """Quantizes and saves a model."""
    gemms = gemms_of(model)
    sparse = {gemm.op for gemm in gemms if has_pattern(gemm, pattern)}
    plan = plan_quantization(model, sparse, options.keep_float)
    ranges = calibrate(model, plan, map(check.in_file_layout, data.all()), options.method, options.percentile)
    import_onnx().save(insert_quantizers(model, plan, ranges, options.int8_weights), str(written))
    error = check.spread_error(session(written, optimize=False), data.some())
    if error.overall > _INT8_LIMIT:
        raise RuntimeError(
            f"in int8 the outputs differ from the Keras model's {error}, on calibration data. Try another "
            f"calibration_method, more data, or keep_float for sensitive layers{check.advice}"
        )
    left = {gemm.op: plan.left.get(gemm.op, _NOT_QUANTIZED) for gemm in gemms if gemm.op not in plan.names}
    return [
        f"int8: {len(plan.weights)} of {len(gemms)} products quantized, {len(sparse & plan.names)} of them with their "
        f"output, on {data.samples} samples ({options.method}).",
        *(f"int8: {op} stays float32: {why}." for op, why in left.items()),
        *([f"int8: outputs differ from the Keras model's {error}, on calibration data."] if error.output else []),
    ]
