"""Writes ONNX files for TensorRT in float32, float16 or int8, and checks what was written before it takes its place."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tfmot_asp.export.activation_ranges import METHODS, calibration_batches
from tfmot_asp.export.kept_pattern import check_nothing_lost, has_pattern
from tfmot_asp.export.keywords import takes_aliases
from tfmot_asp.export.lowering.inference import inference_function, serving_function
from tfmot_asp.export.onnx_files.comparison import OutputCheck
from tfmot_asp.export.onnx_files.convert import DEFAULT_OPSET, check_opset, convert, import_tf2onnx
from tfmot_asp.export.onnx_files.float16 import check_activations, check_weights, to_float16
from tfmot_asp.export.onnx_files.int8 import calibrate, insert_quantizers, plan_quantization
from tfmot_asp.export.onnx_files.onnx_graph import import_onnx
from tfmot_asp.export.onnx_files.read_onnx import gemms_of
from tfmot_asp.export.onnx_files.run import Batch, session
from tfmot_asp.export.tensorrt.trtexec import trtexec_command
from tfmot_asp.export.verify import verify
from tfmot_asp.files import replacing
from tfmot_asp.hardware.precision import check_precision
from tfmot_asp.keras_models.plain import plain_model
from tfmot_asp.pattern import Pattern, PatternLike
from tfmot_asp.reports.verification import VerificationReport
from tfmot_asp.types import CalibrationData, InputShapes, StrPath

logger = logging.getLogger(__name__)

# An int8 file whose outputs are off by more than this, in the Euclidean norm on its calibration data, is of no use.
_INT8_LIMIT = 0.5

# Batches of calibration data that are kept for the comparison of outputs.
_COMPARED = 4

_NOT_QUANTIZED = "it is of a kind that is not quantized, or in the body of a loop or condition"


@dataclass(frozen=True)
class _Int8Options:
    method: str
    percentile: float
    keep_float: Sequence[str]
    int8_weights: bool


@takes_aliases
def onnx(
    model: Any,
    path: StrPath,
    *,
    precision: str = "fp32",
    opset: int = DEFAULT_OPSET,
    batch_size: int | None = None,
    input_shapes: InputShapes | None = None,
    fold_batch_norm: bool = True,
    inputs_as_nchw: Sequence[str] = (),
    float16_io: bool = False,
    calibration_data: CalibrationData | None = None,
    calibration_method: str = "percentile",
    percentile: float = 99.99,
    keep_float: Iterable[str] = (),
    int8_weights: bool = False,
    sparsity_m_by_n: PatternLike | None = None,
    overwrite: bool = False,
) -> VerificationReport:
    """Writes a model as an ONNX file that TensorRT can run with sparse kernels.

    Each product reads one constant weight (2-D, or a convolution kernel), batch norm is folded into it, and the
    precision is in the file, as TensorRT 11 needs it. The file is written beside ``path``, run in onnxruntime, compared
    with the Keras model, read back and searched for every 2:4 kernel of the model; only then it is renamed to ``path``.
    The ``trtexec`` command for it is logged and noted in the report.

    With ``precision="int8"`` weights are symmetric with a scale per output channel, activations symmetric with a scale
    per tensor, quantized at the input of each product and, for 2:4 products, at the output of its kernel (behind bias,
    shortcut and activation): TensorRT chooses sparse int8 kernels for products that are int8 in and out. Everything
    else stays float32. Zeros stay zeros.

    Args:
        model: a built tf_keras or Keras 3 model, with or without pruning wrappers. It stays as it is.
        path: file to write; ``.onnx``.
        precision: ``"fp32"``, ``"fp16"`` or ``"int8"``.
        opset: ONNX opset. TensorRT 8.6 reads up to 17.
        batch_size: fixed batch size, or None to leave it open.
        input_shapes: for models that do not know their own input shapes, as in ``tfmot_asp.permute``.
        fold_batch_norm: whether to fold batch norm before the conversion; tf2onnx folds what directly follows a
            convolution in any case.
        inputs_as_nchw: names of image inputs that the file is to take channels first.
        float16_io: with fp16, whether inputs and outputs are float16 too; by default they keep their types.
        calibration_data: typical inputs, needed for int8; in any precision, outputs are compared on them as well. An
            array (one input), a tuple of arrays, a dict of arrays by input name, or an iterable of batches in these
            forms such as a ``tf.data.Dataset``.
        calibration_method: how the largest magnitude of an activation is chosen: ``"percentile"``, ``"mse"``,
            ``"entropy"`` or ``"minmax"``. High percentiles do well on most models: Wu et al., "Integer Quantization for
            Deep Learning Inference", 2020, arXiv:2004.09602.
        percentile: of the magnitudes that are kept, in percent.
        keep_float: with int8, names of nodes or weights (as in the report) that are not quantized.
        int8_weights: with int8, store weights in int8: a quarter of the size, for TensorRT 10 and later.
        sparsity_m_by_n: the pattern that the model's kernels have, ``(zeros, block)`` or ``"N:M"``, which the file must
            keep; by default that of its pruning wrappers, and 2:4 for a model without.
        overwrite: replace an existing file.

    Returns:
        The ``VerificationReport`` of the written file. Its ``op`` names are those of TensorRT's log, for
        ``parse_tensorrt_log``.

    Raises:
        FileExistsError: if ``path`` exists.
        ImportError: without tf2onnx, onnx and onnxruntime (the extra ``onnx``).
        ValueError: if the model is none, not built, its pruning has not reached the pattern, it has string inputs or
            ops that ONNX lacks, a weight does not fit into float16, or an argument makes no sense.
        RuntimeError: if the written file does not compute what the model does, or lost a 2:4 kernel. Nothing is left
            behind then.

    Example:
        >>> report = tfmot_asp.export.onnx(sparse, "model.onnx", precision="int8", calibration_data=images)
        >>> report.ok
        True
    """
    import_tf2onnx()
    path = Path(path)
    int8 = _Int8Options(calibration_method, percentile, _names(keep_float), int8_weights)
    precision = check_precision(precision)
    _check_arguments(path, precision, float16_io, int8)
    check_opset(opset)
    with replacing(path, overwrite=overwrite, what="an ONNX file") as written:
        plain, pattern = plain_model(model, sparsity_m_by_n)
        original = serving_function(plain, batch_size, input_shapes, distinct_names=True)
        data = None
        if precision == "int8" or calibration_data is not None:
            data = _Data(calibration_data, list(original.structured_input_signature[0]))
        function = inference_function(
            plain, batch_size, input_shapes, fold_batch_norm=fold_batch_norm, distinct_names=True
        )
        converted = convert(function, opset, inputs_as_nchw, list(original.structured_outputs))
        check = OutputCheck(original, inputs_as_nchw)
        check.compare(session(converted))
        if precision == "fp32":
            notes = _write(converted, written, check, data)
        elif precision == "fp16":
            notes = _write_float16(converted, written, check, data, float16_io)
        else:
            assert data is not None
            notes = _write_int8(converted, written, check, data, int8, pattern)
        report = verify(written, sparsity_m_by_n=pattern)
        check_nothing_lost(original, report, "the ONNX file")
    return _finish(report, path, notes)


def _names(keep_float: Iterable[str]) -> Sequence[str]:
    return (keep_float,) if isinstance(keep_float, str) else tuple(keep_float)


def _check_arguments(path: Path, precision: str, float16_io: bool, int8: _Int8Options) -> None:
    if path.suffix.lower() != ".onnx":
        raise ValueError(f"path must end in .onnx, by which verify knows the format; got {str(path)!r}")
    if float16_io and precision != "fp16":
        raise ValueError(f"float16_io is for precision='fp16', got {precision!r}")
    if (int8.keep_float or int8.int8_weights) and precision != "int8":
        raise ValueError(f"keep_float and int8_weights are for precision='int8', got {precision!r}")
    if int8.method not in METHODS:
        names = ", ".join(map(repr, METHODS))
        raise ValueError(f"calibration_method must be one of {names}, got {int8.method!r}")
    if not 50 < int8.percentile <= 100:
        raise ValueError(f"percentile must be above 50 and at most 100, got {int8.percentile!r}")


class _Data:
    """Calibration data that is read once, from the first batch on, which is checked at once."""

    def __init__(self, data: Any, specs: list[Any]) -> None:
        self._rest = calibration_batches(data, specs)
        self._kept = [next(self._rest)]
        self.samples = 0

    def all(self) -> Iterator[Batch]:
        """Every batch; the first few are kept."""
        for batch in itertools.chain(list(self._kept), self._rest):
            if batch is not self._kept[0] and len(self._kept) < _COMPARED:
                self._kept.append(batch)
            self.samples += max((array.shape[0] if array.ndim else 1 for array in batch.values()), default=0)
            yield batch

    def some(self) -> list[Batch]:
        """The first few batches, for comparisons."""
        while len(self._kept) < _COMPARED:
            batch = next(self._rest, None)
            if batch is None:
                break
            self._kept.append(batch)
        return self._kept


def _write(model: Any, written: Path, check: OutputCheck, data: _Data | None, what: str = "fp32") -> list[str]:
    """Saves a float file and runs it; the notes for the report."""
    import_onnx().save(model, str(written))
    if data is not None:
        check.add(data.some())
    difference = check.compare(session(written), half=what == "fp16")
    if not check.pairs:
        return []
    return [f"{what}: outputs differ from the Keras model's by {difference:.1e} of their size, in onnxruntime."]


def _write_float16(model: Any, written: Path, check: OutputCheck, data: _Data | None, float16_io: bool) -> list[str]:
    check_weights(gemms_of(model))
    what = "random inputs (give calibration_data to judge by typical ones)" if data is None else "calibration_data"
    batches = [batch for batch, _ in check.pairs] if data is None else data.some()
    check_activations(model, check.small_batches(batches), what)
    return _write(to_float16(model, float16_io), written, check, data, "fp16")


def _write_int8(
    model: Any, written: Path, check: OutputCheck, data: _Data, int8: _Int8Options, pattern: Pattern
) -> list[str]:
    gemms = gemms_of(model)
    sparse = {gemm.op for gemm in gemms if has_pattern(gemm, pattern)}
    plan = plan_quantization(model, sparse, int8.keep_float)
    ranges = calibrate(model, plan, map(check.in_file_layout, data.all()), int8.method, int8.percentile)
    import_onnx().save(insert_quantizers(model, plan, ranges, int8.int8_weights), str(written))
    error, name = check.relative_error(session(written, optimize=False), data.some())
    if error > _INT8_LIMIT:
        raise RuntimeError(
            f"in int8 the output {name!r} differs by {100 * error:.0f} % from the Keras model's on calibration data. "
            "Try another calibration_method, more data, or keep_float for sensitive layers"
        )
    left = {gemm.op: plan.left.get(gemm.op, _NOT_QUANTIZED) for gemm in gemms if gemm.op not in plan.names}
    return [
        f"int8: {len(plan.weights)} of {len(gemms)} products quantized, {len(sparse & plan.names)} of them with their "
        f"output, on {data.samples} samples ({int8.method}).",
        *(f"int8: {op} stays float32: {why}." for op, why in left.items()),
        f"int8: outputs differ from the Keras model's by {100 * error:.1f} % (RMS) on calibration data.",
    ]


def _finish(report: VerificationReport, path: Path, notes: list[str]) -> VerificationReport:
    try:
        command = trtexec_command(path)
        logger.info("Wrote %s. Build the TensorRT engine with:\n%s", path, command)
        notes.append(f"TensorRT: {command}")
    except ValueError as error:  # open axes, whose sizes only the user knows
        logger.info("Wrote %s. For the trtexec command: %s", path, error)
        notes.append(f"TensorRT: tfmot_asp.export.trtexec_command({str(path)!r}, shapes=...); {error}")
    return replace(report, path=str(path), notes=(*report.notes, *notes))
