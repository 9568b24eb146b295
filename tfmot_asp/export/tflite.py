"""Writes a TFLite file, float or quantized, and checks what was written before it takes its place."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_asp.export.activation_ranges import calibration_batches
from tfmot_asp.export.lowering.inference import holder_of, inference_function, serving_function
from tfmot_asp.export.lowering.widening import computes_in_half, widened
from tfmot_asp.export.tflite_files.checks import Samples, compare, in_float, lost_pattern, quiet, sizes, state
from tfmot_asp.export.tflite_files.tflite_file import TfliteFile
from tfmot_asp.export.verify import verify
from tfmot_asp.files import replacing
from tfmot_asp.graph.compare import TOLERANCES
from tfmot_asp.graph.flatten import trace_function
from tfmot_asp.graph.gemms import find_gemms
from tfmot_asp.keras_models.plain import plain_model
from tfmot_asp.pattern import PatternLike
from tfmot_asp.reports.verification import VerificationReport
from tfmot_asp.types import CalibrationData, InputShapes, StrPath

logger = logging.getLogger(__name__)

_NO_SPEEDUP = (
    "TFLite's CPU kernels compute 2:4 weights as dense ones: no speed-up. XNNPACK's sparse inference wants at least "
    "2/3 zeros, and 1x1 convolutions (tensorflow/lite/delegates/xnnpack/README.md)."
)
_HALF_LIMIT = 65504.0
_IO_DTYPES = {"float32": tf.float32, "int8": tf.int8, "uint8": tf.uint8}


def tflite(
    model: Any,
    path: StrPath,
    *,
    quantize: str | None = None,
    representative_dataset: CalibrationData | None = None,
    batch_size: int | None = 1,
    input_shapes: InputShapes | None = None,
    io_dtype: str = "float32",
    select_tf_ops: bool = False,
    sparsity_m_by_n: PatternLike | None = None,
    overwrite: bool = False,
) -> VerificationReport:
    """Writes a model as a TFLite file with the signature ``serving_default``, and reads it back.

    TensorFlow's converter folds batch norm into the weights and turns einsums into FULLY_CONNECTED. The file is then
    checked: every kernel that has the pattern in the model has it in the file, and the file computes what the model
    does, up to what the precision costs. It takes its place only if it does.

    Args:
        model: a built tf_keras or Keras 3 model, with or without pruning wrappers; or one that was trained
            quantization-aware (``tfmot_asp.quantize_model``), whose own ranges are used.
        path: of the file, ending in ``.tflite``.
        quantize: None keeps float32 (a model trained quantization-aware becomes int8); ``"float16"`` halves the
            weights, which are widened again when they are loaded; ``"int8"`` quantizes weights (symmetric, zero point
            0, so that zeros stay zeros) and activations. An op that has no int8 kernel in TFLite stays float, and is
            named in the report's notes.
        representative_dataset: for ``"int8"`` after training: typical inputs, a few hundred, from which the ranges of
            the activations are taken. An array or a dict of arrays by input name; a ``tf.data.Dataset`` or other
            iterable of batches; or a function that returns one, as ``tf.lite`` has it. A model that was trained
            quantization-aware needs none; its outputs are compared on it if it is given.
        batch_size: fixed batch size. None leaves it open; converters and accelerators do better with a fixed one.
        input_shapes: for models that do not know their own input shapes, as in ``tfmot_asp.permute``.
        io_dtype: of inputs and outputs of an int8 file: ``"float32"`` (they are quantized inside), ``"int8"`` or
            ``"uint8"``. Integer inputs, such as token ids, keep their type.
        select_tf_ops: allow ops that TFLite lacks, which then run in TensorFlow's own kernels (SELECT_TF_OPS).
        sparsity_m_by_n: the pattern that the model's kernels have, ``(zeros, block)`` or ``"N:M"``, which the file must
            keep; by default that of its pruning wrappers, and 2:4 for a model without.
        overwrite: replace an existing file.

    Returns:
        The ``VerificationReport`` of the file. Its ``notes`` give the file's size, also compressed, how far its outputs
        are from the model's, what stayed float, and that TFLite's CPU kernels do not speed up 2:4.

    Raises:
        FileExistsError: if ``path`` exists.
        ValueError: if an argument makes no sense, the model is not built, its pruning has not reached the pattern, the
            dataset does not fit, or TFLite cannot express the model.
        RuntimeError: if the file does not say what the model says. Nothing is left behind then.

    Example:
        >>> options = {"quantize": "int8", "representative_dataset": images[:300]}
        >>> report = tfmot_asp.export.tflite(sparse, "model.tflite", **options)
        >>> report.ok
        True
    """
    path = Path(path)
    _check_arguments(path, quantize, io_dtype)
    with replacing(path, overwrite=overwrite, what="a TFLite file") as written:
        plain, pattern = plain_model(model, sparsity_m_by_n)
        function = serving_function(plain, batch_size, input_shapes)
        trained = _has_fake_quantization(function)
        if trained and quantize == "float16":
            raise ValueError(f"{model.name!r} was trained quantization-aware, for int8; quantize='float16' undoes that")
        quantize = "int8" if trained else quantize
        if io_dtype != "float32" and quantize != "int8":
            raise ValueError(f"io_dtype={io_dtype!r} is for files that are quantized: give quantize='int8' as well")
        samples = _samples(representative_dataset, function, batch_size, required=quantize == "int8" and not trained)
        if quantize == "float16":
            _check_float16(function)
        half = computes_in_half(function)
        job = _Conversion(plain, quantize, samples, trained, io_dtype, select_tf_ops)
        job.run(widened(function) if half else function, written)
        if (lost := lost_pattern(function, written, pattern)) and not trained:
            # The converter sums over the letters of an einsum in an order of its own; a lowered one has none left.
            lowered = inference_function(plain, batch_size, input_shapes)
            job.run(widened(lowered) if half else lowered, written)
            lost = lost_pattern(function, written, pattern)
        if lost:
            raise RuntimeError(f"the kernel {lost} is {pattern} in the model, but not in the TFLite file")
        report = verify(written, sparsity_m_by_n=pattern)
        reached = "fp16" if quantize == "float16" or (half and not quantize) else quantize or "fp32"
        tolerance = TOLERANCES["tflite"]["trained int8" if trained else reached]
        notes = [compare(function, written, quantize, samples, tolerance), *in_float(written, quantize)]
        notes += [*state(written), sizes(written), _NO_SPEEDUP]
    logger.info("Wrote %s: %d of %d weights sparse.", path, report.sparse, len(report.layers))
    return dataclasses.replace(report, path=str(path), notes=(*report.notes, *notes))


def _check_arguments(path: Path, quantize: str | None, io_dtype: str) -> None:
    if path.suffix.lower() != ".tflite":
        raise ValueError(f"{str(path)!r} should end in .tflite, the suffix by which TFLite files are known")
    if quantize not in (None, "float16", "int8"):
        raise ValueError(f"quantize must be None, 'float16' or 'int8', got {quantize!r}")
    if io_dtype not in _IO_DTYPES:
        raise ValueError(f"io_dtype must be one of {', '.join(map(repr, _IO_DTYPES))}, got {io_dtype!r}")


def _check_float16(function: Any) -> None:
    for gemm in find_gemms(trace_function(function)):
        largest = 0.0 if gemm.weight is None else float(np.max(np.abs(gemm.weight), initial=0.0))
        if largest > _HALF_LIMIT:  # the converter would clip it
            raise ValueError(f"the weight {gemm.weight_name} reaches {largest:.3g}; float16 ends at {_HALF_LIMIT:,.0f}")


def _has_fake_quantization(function: Any) -> bool:
    return any(op.type.startswith(("FakeQuant", "QuantizeAndDequantize")) for op in trace_function(function).ops)


def _samples(data: Any, function: Any, batch_size: int | None, *, required: bool) -> Samples:
    """The representative dataset in batches of the file's size, checked; empty if there is none."""
    if data is None:
        if required:
            raise ValueError(
                "quantize='int8' needs representative_dataset: a few hundred typical inputs, as an array, a dict of "
                "arrays by input name, or a tf.data.Dataset of batches, to see what ranges the activations take. A "
                "model from tfmot_asp.quantize_model brings its own"
            )
        return []
    specs = [
        tf.TensorSpec([None, *spec.shape[1:]] if spec.shape.rank else spec.shape, spec.dtype, spec.name)
        for spec in function.structured_input_signature[0]
    ]
    try:
        batches = list(calibration_batches(data, specs))
    except ValueError as error:
        raise ValueError(str(error).replace("calibration_data", "representative_dataset")) from error
    joined = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    size, total = batch_size or 1, len(next(iter(joined.values())))
    if total < size:
        raise ValueError(f"representative_dataset has {total} samples, less than one batch of {size}")
    starts = range(0, total - size + 1, size)
    return [{name: array[start : start + size] for name, array in joined.items()} for start in starts]


@dataclasses.dataclass(frozen=True)
class _Conversion:
    """What is to be converted, and how: the arguments of ``tflite``."""

    model: Any
    quantize: str | None
    samples: Samples
    trained: bool
    io_dtype: str
    select_tf_ops: bool

    def run(self, function: Any, written: Path) -> None:
        """Writes the file."""
        ops = tf.lite.OpsSet
        if self.quantize != "int8" or self.trained:
            written.write_bytes(self._explained(function, [ops.TFLITE_BUILTINS]))
            return
        self._check_loops(function, written)
        try:
            content = self._convert(function, [ops.TFLITE_BUILTINS_INT8], self.quantize)
        except Exception as error:  # whatever the converter raises, the second attempt tells
            logger.warning("Not all of %s can be int8, the rest stays float: %s", self.model.name, _first_line(error))
            content = self._explained(function, [ops.TFLITE_BUILTINS, ops.TFLITE_BUILTINS_INT8])
        written.write_bytes(content)

    def _check_loops(self, function: Any, written: Path) -> None:
        """Refuses what would crash the process: TensorFlow 2.21's calibrator, in a loop that collects a sequence."""
        if not any(op.type.startswith("TensorList") for op in trace_function(function).ops):
            return
        written.write_bytes(self._explained(function, [tf.lite.OpsSet.TFLITE_BUILTINS], None))
        if any(op.type == "WHILE" for graph in TfliteFile(written).subgraphs for op in graph.ops):
            raise ValueError(
                f"{self.model.name!r} has a recurrent layer that becomes a loop, on which TFLite's calibrator crashes. "
                "Give the layer unroll=True, use tf_keras' LSTM (which becomes one op), or train it "
                "quantization-aware with tfmot_asp.quantize_model"
            )

    def _explained(self, function: Any, supported: Sequence[Any], *quantize: str | None) -> bytes:
        try:
            return self._convert(function, supported, *(quantize or (self.quantize,)))
        except Exception as error:  # ConverterError is no public name, and others pass through it
            raise ValueError(_explanation(error, self.model.name)) from error

    def _convert(self, function: Any, supported: Sequence[Any], quantize: str | None) -> bytes:
        converter = tf.lite.TFLiteConverter.from_concrete_functions([function], holder_of(function, self.model))
        more = [tf.lite.OpsSet.SELECT_TF_OPS] if self.select_tf_ops else []
        converter.target_spec.supported_ops = [*supported, *more]
        if quantize is not None:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if quantize == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if quantize == "int8":
            if not self.trained:
                converter.representative_dataset = lambda: iter(self.samples)
            if all(spec.dtype.is_floating for spec in function.structured_input_signature[0]):
                converter.inference_input_type = _IO_DTYPES[self.io_dtype]
            converter.inference_output_type = _IO_DTYPES[self.io_dtype]
        with quiet():
            return converter.convert()


def _explanation(error: BaseException, name: str) -> str:
    lacking = re.findall(r"^\s*(?:TF Select|Custom) ops: (.+)$", str(error), re.MULTILINE)
    if not lacking:
        return f"TFLite's converter cannot convert {name!r}: {_first_line(error)}"
    ops = ", ".join(sorted({op.strip() for line in lacking for op in line.split(",")}))
    return (
        f"TFLite has no ops for {ops}, which {name!r} uses. Replace the layer, or give select_tf_ops=True: they then "
        "run in TensorFlow's own kernels (SELECT_TF_OPS), which the app must ship"
    )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "error:" in line), lines[0] if lines else type(error).__name__)
