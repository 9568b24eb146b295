"""Writes a TFLite file, float or quantized, and checks what was written before it takes its place."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_asp.export.calibration_data import calibration_batches
from tfmot_asp.export.kept_pattern import check_nothing_lost, lost_kernels
from tfmot_asp.export.keywords import takes_aliases
from tfmot_asp.export.lowering.inference import check_outputs, inference_function, serving_function
from tfmot_asp.export.lowering.slices import needs_lowering
from tfmot_asp.export.lowering.widening import computes_in_half, widened
from tfmot_asp.export.tflite_files.convert import Conversion
from tfmot_asp.export.tflite_files.file_checks import Samples, compare, in_float, looked_up, sizes, state
from tfmot_asp.export.tflite_files.int8_forms import suit_int8
from tfmot_asp.export.verify import verify
from tfmot_asp.files import replacing
from tfmot_asp.graph.compare import TOLERANCES
from tfmot_asp.graph.flatten import trace_function
from tfmot_asp.graph.gemms import find_gemms
from tfmot_asp.hardware.precision import check_precision
from tfmot_asp.keras_models.plain import plain_model
from tfmot_asp.pattern import PatternLike
from tfmot_asp.reports.progress_bar import Stages
from tfmot_asp.reports.verification import VerificationReport
from tfmot_asp.types import CalibrationData, InputShapes, StrPath

logger = logging.getLogger(__name__)

_NO_SPEEDUP = (
    "TFLite's CPU kernels compute 2:4 weights as dense ones: no speed-up. XNNPACK's sparse inference wants at least "
    "2/3 zeros, and 1x1 convolutions (tensorflow/lite/delegates/xnnpack/README.md)."
)
_HALF_LIMIT = 65504.0
_IO_DTYPES = {"float32": tf.float32, "int8": tf.int8, "uint8": tf.uint8}


@takes_aliases
def tflite(
    model: Any,
    path: StrPath,
    *,
    precision: str | None = None,
    calibration_data: CalibrationData | None = None,
    batch_size: int | None = 1,
    input_shapes: InputShapes | None = None,
    io_dtype: str = "float32",
    select_tf_ops: bool = False,
    uncompared: Iterable[str] = (),
    sparsity_m_by_n: PatternLike | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> VerificationReport:
    """Writes a model as a TFLite file with the signature ``serving_default``, and reads it back.

    TensorFlow's converter folds batch norm into the weights and turns einsums into FULLY_CONNECTED. The file is then
    checked: every kernel that has the pattern in the model has it in the file, and the file computes what the model
    does, up to what the precision costs. It takes its place only if it does.

    Args:
        model: a built tf_keras or Keras 3 model, with or without pruning wrappers; or one that was trained
            quantization-aware (``tfmot_asp.quantize_model``), whose own ranges are used.
        path: of the file, ending in ``.tflite``.
        precision: ``"fp32"``; ``"fp16"`` halves the weights, which are widened again when they are loaded; ``"int8"``
            quantizes weights (symmetric, zero point 0, so that zeros stay zeros) and activations. An op that has no
            int8 kernel in TFLite stays float, and is named in the report's notes. By default ``"fp32"``, and
            ``"int8"`` for a model that was trained quantization-aware. ``quantize=`` is the same.
        calibration_data: for ``"int8"`` after training: typical inputs, a few hundred, from which the ranges of the
            activations are taken. An array or a dict of arrays by input name; a ``tf.data.Dataset`` or other iterable
            of batches; or a function that returns one, as ``tf.lite`` has it, whose ``representative_dataset=`` is the
            same. A model that was trained quantization-aware needs none; its outputs are compared on it if it is given.
        batch_size: fixed batch size. None leaves it open; converters and accelerators do better with a fixed one.
        input_shapes: for models that do not know their own input shapes, as in ``tfmot_asp.permute``.
        io_dtype: of inputs and outputs of an int8 file: ``"float32"`` (they are quantized inside), ``"int8"`` or
            ``"uint8"``. Integer inputs, such as token ids, keep their type.
        select_tf_ops: allow ops that TFLite lacks, which then run in TensorFlow's own kernels (SELECT_TF_OPS).
        uncompared: names of outputs that may differ, such as those that are ordered by ``TopK``, whose ties change
            places.
        sparsity_m_by_n: the pattern that the model's kernels have, ``(zeros, block)`` or ``"N:M"``, which the file must
            keep; by default that of its pruning wrappers, and 2:4 for a model without.
        overwrite: replace an existing file.
        progress: show a progress bar; by default if stderr is a terminal.

    Returns:
        The ``VerificationReport`` of the file. Its ``notes`` give the file's size, also compressed, how far its outputs
        are from the model's, what stayed float, and that TFLite's CPU kernels do not speed up 2:4.

    Raises:
        FileExistsError: if ``path`` exists.
        ValueError: if an argument makes no sense, the model is not built, its pruning has not reached the pattern, the
            calibration data does not fit, or TFLite cannot express the model.
        RuntimeError: if the file does not say what the model says. Nothing is left behind then.

    Example:
        >>> report = tfmot_asp.export.tflite(sparse, "model.tflite", precision="int8", calibration_data=images[:300])
        >>> report.ok
        True
    """
    path = Path(path)
    precision = _check_arguments(path, precision, io_dtype)
    stages = ("tracing", "rewriting", "converting", "checking", "comparing")
    with (
        replacing(path, overwrite=overwrite, what="a TFLite file") as written,
        Stages("tflite", stages, progress) as at,
    ):
        at.begin("tracing")
        plain, pattern = plain_model(model, sparsity_m_by_n)
        function = serving_function(plain, batch_size, input_shapes)
        left_out = check_outputs(uncompared, function)
        trained = _has_fake_quantization(function)
        if trained and precision not in (None, "int8"):
            raise ValueError(f"{model.name!r} was trained quantization-aware, for int8; {precision=} undoes that")
        precision = precision or ("int8" if trained else "fp32")
        if io_dtype != "float32" and precision != "int8":
            raise ValueError(f"io_dtype={io_dtype!r} is for files that are quantized: give precision='int8' as well")
        samples = _samples(calibration_data, function, batch_size, required=precision == "int8" and not trained)
        if precision == "fp16":
            _check_float16(function)
        half = computes_in_half(function)
        job = Conversion(plain, precision, samples, trained, _IO_DTYPES[io_dtype], select_tf_ops)

        def convert(source: Any) -> tuple[VerificationReport, dict[str, int]]:
            at.begin("converting")
            source = widened(source) if half else source
            job.run(suit_int8(source, plain.name, samples) if precision == "int8" and not trained else source, written)
            at.begin("checking")
            return verify(written, sparsity_m_by_n=pattern, allow_unsafe=True), looked_up(written)

        at.begin("rewriting")
        lowered = inference_function(plain, batch_size, input_shapes) if needs_lowering(function) else None
        report, tables = convert(lowered or function)
        if lowered is None and lost_kernels(function, report, tables.values()) and not trained:
            # The converter sums over the letters of an einsum in an order of its own; a lowered one has none left.
            at.begin("rewriting")
            report, tables = convert(inference_function(plain, batch_size, input_shapes))
        check_nothing_lost(function, report, "the TFLite file", tables.values())
        at.begin("comparing")
        reached = "trained int8" if trained else "fp16" if half and precision == "fp32" else precision
        notes = compare(function, written, precision, samples, TOLERANCES["tflite"][reached], job.better, left_out)
        notes += in_float(written) if precision == "int8" else []
        notes += [f"Output {name!r} was not compared with the model's." for name in left_out]
        notes += [
            f"{name!r} multiplies one-hot vectors: TFLite looks up its rows, so no product is left." for name in tables
        ]
        notes += [*state(written), sizes(written), _NO_SPEEDUP]
    logger.info("Wrote %s: %d of %d weights sparse.", path, report.sparse, len(report.layers))
    return dataclasses.replace(report, path=str(path), notes=(*report.notes, *notes))


def _check_arguments(path: Path, precision: Any, io_dtype: str) -> str | None:
    if path.suffix.lower() != ".tflite":
        raise ValueError(f"{str(path)!r} should end in .tflite, the suffix by which TFLite files are known")
    if io_dtype not in _IO_DTYPES:
        raise ValueError(f"io_dtype must be one of {', '.join(map(repr, _IO_DTYPES))}, got {io_dtype!r}")
    return None if precision is None else check_precision(precision)


def _check_float16(function: Any) -> None:
    for gemm in find_gemms(trace_function(function)):
        largest = 0.0 if gemm.weight is None else float(np.max(np.abs(gemm.weight), initial=0.0))
        if largest > _HALF_LIMIT:  # the converter would clip it
            raise ValueError(f"the weight {gemm.weight_name} reaches {largest:.3g}; float16 ends at {_HALF_LIMIT:,.0f}")


def _has_fake_quantization(function: Any) -> bool:
    return any(op.type.startswith(("FakeQuant", "QuantizeAndDequantize")) for op in trace_function(function).ops)


def _samples(data: Any, function: Any, batch_size: int | None, *, required: bool) -> Samples:
    """The calibration data in batches of the file's size, checked; empty if there is none."""
    if data is None:
        if required:
            raise ValueError(
                "precision='int8' needs calibration_data: a few hundred typical inputs, as an array, a dict of "
                "arrays by input name, or a tf.data.Dataset of batches, to see what ranges the activations take. A "
                "tf_keras model from tfmot_asp.quantize_model brings its own"
            )
        return []
    given = list(function.structured_input_signature[0])
    has_numbers = any(spec.shape.rank == 0 for spec in given)
    first = (batch_size or 1) if has_numbers else None
    specs = [
        tf.TensorSpec([first, *spec.shape[1:]] if spec.shape.rank else spec.shape, spec.dtype, spec.name)
        for spec in given
    ]
    batches = list(calibration_batches(data, specs))
    if has_numbers:  # each goes with its batch
        return batches
    joined = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    size, total = batch_size or 1, len(next(iter(joined.values())))
    if total < size:
        raise ValueError(f"calibration_data has {total} samples, less than one batch of {size}")
    starts = range(0, total - size + 1, size)
    return [{name: array[start : start + size] for name, array in joined.items()} for start in starts]
