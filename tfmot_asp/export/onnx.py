"""Writes ONNX files for TensorRT in float32, float16 or int8, and checks what was written before it takes its place."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tfmot_asp.export.activation_ranges import METHODS
from tfmot_asp.export.calibration_data import CalibrationBatches
from tfmot_asp.export.kept_pattern import check_nothing_lost
from tfmot_asp.export.keywords import takes_aliases
from tfmot_asp.export.lowering.inference import check_outputs, inference_function, serving_function
from tfmot_asp.export.onnx_files.comparison import OutputCheck
from tfmot_asp.export.onnx_files.convert import DEFAULT_OPSET, check_opset, convert, import_tf2onnx
from tfmot_asp.export.onnx_files.run import session
from tfmot_asp.export.onnx_files.write import Int8Options, write_float, write_float16, write_int8
from tfmot_asp.export.tensorrt.builder_check import check_installed, check_with_tensorrt
from tfmot_asp.export.tensorrt.trtexec import (
    DEFAULT_BATCH_SIZES,
    DEFAULT_TENSORRT,
    Shapes,
    check_batch_sizes,
    check_tensorrt,
    trtexec_command,
)
from tfmot_asp.export.verify import verify
from tfmot_asp.files import replacing
from tfmot_asp.hardware.precision import check_precision
from tfmot_asp.keras_models.plain import plain_model
from tfmot_asp.pattern import PatternLike
from tfmot_asp.reports.progress_bar import Stages
from tfmot_asp.reports.table import Marked
from tfmot_asp.reports.verification import VerificationReport
from tfmot_asp.types import CalibrationData, InputShapes, StrPath

logger = logging.getLogger(__name__)


@takes_aliases
def onnx(
    model: Any,
    path: StrPath,
    *,
    precision: str = "fp16",
    opset: int = DEFAULT_OPSET,
    batch_size: int | None = None,
    input_shapes: InputShapes | None = None,
    fold_batch_norm: bool = True,
    inputs_as_nchw: Sequence[str] = (),
    outputs_as_nchw: Sequence[str] = (),
    uncompared: Iterable[str] = (),
    float16_io: bool = False,
    calibration_data: CalibrationData | None = None,
    calibration_method: str = "percentile",
    percentile: float = 99.99,
    keep_float: Iterable[str] = (),
    int8_weights: bool = False,
    tensorrt: int | str = DEFAULT_TENSORRT,
    batch_sizes: Sequence[int] = DEFAULT_BATCH_SIZES,
    shapes: Shapes | None = None,
    check: str | None = None,
    sparsity_m_by_n: PatternLike | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> VerificationReport:
    """Writes a model as an ONNX file that TensorRT can run with sparse kernels.

    Each product reads one constant weight (2-D, or a convolution kernel), batch norm is folded into it, and the
    precision is in the file, as TensorRT 11 needs it. The file is written beside ``path``, run in onnxruntime, compared
    with the Keras model, read back and searched for every 2:4 kernel of the model; only then it is renamed to ``path``.
    The ``trtexec`` command for it is logged and noted in the report.

    With ``precision="fp16"``, the default, tensors are float16 but for norms, which are computed in float32, and the
    outputs are compared with every result rounded as on a GPU. What overflows there is noted, or refused.

    With ``precision="int8"`` weights are symmetric with a scale per output channel, activations symmetric with a scale
    per tensor, quantized at the input of each product and, for 2:4 products, at the output of its kernel (behind bias,
    shortcut and activation): TensorRT chooses sparse int8 kernels for products that are int8 in and out. Everything
    else stays float32. Zeros stay zeros.

    Args:
        model: a built tf_keras or Keras 3 model, with or without pruning wrappers. It stays as it is.
        path: file to write; ``.onnx``.
        precision: ``"fp16"``, ``"int8"`` or ``"fp32"``, which TensorRT 11 has no sparse kernels for.
        opset: ONNX opset. TensorRT 8.6 reads up to 17.
        batch_size: fixed batch size, or None to leave it open.
        input_shapes: for models that do not know their own input shapes, as in ``tfmot_asp.permute``.
        fold_batch_norm: whether to fold batch norm before the conversion; tf2onnx folds what directly follows a
            convolution in any case.
        inputs_as_nchw: names of image inputs that the file is to take channels first.
        outputs_as_nchw: names of outputs of rank 4 that the file is to give channels first.
        uncompared: names of outputs that may differ, such as those that are ordered by ``TopK``, whose ties change
            places.
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
        tensorrt: version of TensorRT that the noted command is for, such as ``11`` or ``"8.6"``.
        batch_sizes: smallest, most frequent and largest batch in that command, where the batch is open.
        shapes: sizes for other open axes in that command, as in ``trtexec_command``.
        check: ``"tensorrt"`` has TensorRT's own parser and builder take the file before it gets its name, without a
            GPU; see ``check_with_tensorrt``.
        sparsity_m_by_n: the pattern that the model's kernels have, ``(zeros, block)`` or ``"N:M"``, which the file must
            keep; by default that of its pruning wrappers, and 2:4 for a model without.
        overwrite: replace an existing file.
        progress: show a progress bar; by default if stderr is a terminal.

    Returns:
        The ``VerificationReport`` of the written file. Its ``op`` names are those of TensorRT's log, for
        ``parse_tensorrt_log``.

    Raises:
        FileExistsError: if ``path`` exists.
        ImportError: without tf2onnx, onnx and onnxruntime (the extra ``onnx``).
        ValueError: if the model is none, not built, its pruning has not reached the pattern, it has string inputs or
            ops that ONNX lacks, a weight or what is computed does not fit into float16, or an argument makes no
            sense.
        RuntimeError: if the written file does not compute what the model does, lost a 2:4 kernel, or TensorRT refuses
            it (with ``check``). Nothing is left behind then.

    Example:
        >>> report = tfmot_asp.export.onnx(sparse, "model.onnx", precision="int8", calibration_data=images)
        >>> report.ok
        True
    """
    import_tf2onnx()
    path = Path(path)
    int8 = Int8Options(calibration_method, percentile, _names(keep_float), int8_weights)
    precision = check_precision(precision)
    _check_arguments(path, precision, float16_io, int8)
    check_opset(opset)
    check_tensorrt(tensorrt)
    check_batch_sizes(batch_sizes)
    if check not in (None, "tensorrt"):
        raise ValueError(f"check must be 'tensorrt' or None, got {check!r}")
    if check:
        check_installed()
    stages = ["tracing", "rewriting", "converting", "comparing", f"writing {precision}", "checking"]
    stages += ["TensorRT"] if check else []
    with (
        replacing(path, overwrite=overwrite, what="an ONNX file") as written,
        Stages("onnx", stages, progress) as at,
    ):
        at.begin("tracing")
        plain, pattern = plain_model(model, sparsity_m_by_n)
        original = serving_function(plain, batch_size, input_shapes, distinct_names=True)
        data = None
        if precision == "int8" or calibration_data is not None:
            data = CalibrationBatches(calibration_data, list(original.structured_input_signature[0]))
        at.begin("rewriting")
        function = inference_function(
            plain,
            batch_size,
            input_shapes,
            fold_batch_norm=fold_batch_norm,
            distinct_names=True,
            real_numbers=True,
        )
        left_out = check_outputs(uncompared, original)
        at.begin("converting")
        converted = convert(
            function,
            opset,
            inputs_as_nchw,
            list(original.structured_outputs),
            outputs_as_nchw,
            original.variables,
        )
        at.begin("comparing")
        outputs = OutputCheck(original, inputs_as_nchw, outputs_as_nchw, left_out)
        outputs.compare(session(converted))
        at.begin(f"writing {precision}")
        if precision == "fp32":
            notes = write_float(converted, written, outputs, data)
        elif precision == "fp16":
            notes = write_float16(converted, written, outputs, data, float16_io)
        else:
            assert data is not None
            notes = write_int8(converted, written, outputs, data, int8, pattern)
        at.begin("checking")
        report = verify(written, sparsity_m_by_n=pattern, allow_unsafe=True)
        check_nothing_lost(original, report, "the ONNX file")
        if check:
            at.begin("TensorRT")
            taken = check_with_tensorrt(written, batch_sizes=batch_sizes, shapes=shapes)
            if not taken.ok:
                raise RuntimeError(f"{str(path)!r} is not written: {taken}")
            notes.append(str(taken))
        notes += [f"Output {name!r} was not compared with the model's." for name in left_out]
    return _finish(report, path, notes, tensorrt=tensorrt, batch_sizes=batch_sizes, shapes=shapes)


def _names(keep_float: Iterable[str]) -> Sequence[str]:
    return (keep_float,) if isinstance(keep_float, str) else tuple(keep_float)


def _check_arguments(path: Path, precision: str, float16_io: bool, int8: Int8Options) -> None:
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


def _finish(report: VerificationReport, path: Path, notes: list[str], **options: Any) -> VerificationReport:
    try:
        command = trtexec_command(path, **options)
        logger.info("Wrote %s. Build the TensorRT engine with:\n%s", path, command)
        notes.append(Marked(f"TensorRT: {command}", "whole"))
    except ValueError as error:  # open axes, whose sizes only the user knows
        logger.info("Wrote %s. For the trtexec command: %s", path, error)
        notes.append(f"TensorRT: {error}, for the trtexec command")
    return replace(report, path=str(path), notes=(*report.notes, *notes))
