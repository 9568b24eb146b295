"""Writes ONNX files for TensorRT in float32, float16 or int8, and checks what was written before it takes its place."""

from __future__ import annotations

import itertools
import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_asp import masks
from tfmot_asp.export.calibration import METHODS, calibration_batches
from tfmot_asp.export.files import replacing
from tfmot_asp.export.gemms import find_gemms
from tfmot_asp.export.inference import (
    HALF_TOLERANCE,
    OUTPUT_TOLERANCE,
    inference_function,
    plain_model,
    serving_function,
)
from tfmot_asp.export.onnx_convert import DEFAULT_OPSET, check_opset, convert, import_tf2onnx
from tfmot_asp.export.onnx_float16 import check_activations, check_weights, to_float16
from tfmot_asp.export.onnx_graph import import_onnx
from tfmot_asp.export.onnx_int8 import calibrate, insert_quantizers, plan_quantization
from tfmot_asp.export.onnx_run import (
    Batch,
    in_file_layout,
    in_parts,
    largest_difference,
    outputs_of,
    probes,
    relative_error,
    run,
    session,
)
from tfmot_asp.export.read_onnx import gemms_of
from tfmot_asp.export.trtexec import trtexec_command
from tfmot_asp.export.verify import VerificationReport, verify
from tfmot_asp.permutation.trace import trace_function
from tfmot_asp.report import SHOW_PRUNING_INFO

logger = logging.getLogger(__name__)

PRECISIONS = ("fp32", "fp16", "int8")

# An int8 file whose outputs are off by more than this, in the Euclidean norm on its calibration data, is of no use.
_INT8_LIMIT = 0.5

# Models trained in mixed_bfloat16: the type has 8 bits.
_BFLOAT16_TOLERANCE = 8 * HALF_TOLERANCE

# Batches of calibration data that are kept for the comparison of outputs.
_COMPARED = 4

# Samples whose activations, of all layers, are held in memory at once.
_WATCHED = 2


@dataclass(frozen=True)
class _Int8Options:
    method: str
    percentile: float
    keep_float: Sequence[str]
    int8_weights: bool


def onnx(
    model: Any,
    path: Any,
    *,
    precision: str = "fp32",
    opset: int = DEFAULT_OPSET,
    batch_size: int | None = None,
    input_shapes: Any = None,
    fold_batch_norm: bool = True,
    inputs_as_nchw: Sequence[str] = (),
    float16_io: bool = False,
    calibration_data: Any = None,
    calibration_method: str = "percentile",
    percentile: float = 99.99,
    keep_float: Iterable[str] = (),
    int8_weights: bool = False,
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
        >>> report = tfmot_asp.export.onnx(model, "model.onnx", precision="int8", calibration_data=images)
        >>> report.ok
        True
    """
    import_tf2onnx()
    path = Path(path)
    int8 = _Int8Options(calibration_method, percentile, _names(keep_float), int8_weights)
    _check_arguments(path, precision, float16_io, int8)
    check_opset(opset)
    with replacing(path, overwrite=overwrite, what="an ONNX file") as written:
        plain, m_by_n = plain_model(model)
        original = serving_function(plain, batch_size, input_shapes)
        specs = list(original.structured_input_signature[0])
        data = None
        if precision == "int8" or calibration_data is not None:
            data = _Data(calibration_data, specs)
        function = inference_function(plain, batch_size, input_shapes, fold_batch_norm=fold_batch_norm)
        converted = convert(function, opset, inputs_as_nchw, list(original.structured_outputs))
        expected = probes(original)
        exact = _tolerance(original)
        difference = _compare(session(converted), expected, inputs_as_nchw, exact)
        notes: list[str] = []
        given = []
        if data is not None and precision != "int8":
            given = [(batch, outputs_of(original, batch)) for batch in data.some()]
        if precision == "fp16":
            check_weights(gemms_of(converted))
            what = "calibration_data" if given else "random inputs (give calibration_data to judge by typical ones)"
            parts = (part for batch, _ in given or expected for part in in_parts(batch, specs, _WATCHED))
            check_activations(converted, (in_file_layout(part, inputs_as_nchw) for part in parts), what)
            converted = to_float16(converted, float16_io)
        elif precision == "int8":
            assert data is not None
            converted = _quantize(converted, int8, data, m_by_n, inputs_as_nchw, notes)
        import_onnx().save(converted, str(written))
        if precision == "int8":
            assert data is not None
            given = [(batch, outputs_of(original, batch)) for batch in data.some()]
            notes.append(_compare_int8(written, expected, given, inputs_as_nchw))
        else:
            tolerance = max(exact, HALF_TOLERANCE) if precision == "fp16" else exact
            difference = _compare(session(written), expected + given, inputs_as_nchw, tolerance)
            if expected + given:
                notes.append(f"onnxruntime: outputs differ from the Keras model's by {difference:.1e} of their size.")
        report = verify(written, sparsity_m_by_n=m_by_n)
        _check_nothing_lost(original, report, m_by_n)
    return _finish(report, path, notes)


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


def _tolerance(function: Any) -> float:
    """How far a float32 file may be from the Keras model, which computes as its own types have it."""
    dtypes = {tensor.dtype for op in trace_function(function).ops for tensor in op.outputs}
    if tf.bfloat16 in dtypes:
        return _BFLOAT16_TOLERANCE
    return HALF_TOLERANCE if tf.float16 in dtypes else OUTPUT_TOLERANCE


def _names(keep_float: Iterable[str]) -> Sequence[str]:
    return (keep_float,) if isinstance(keep_float, str) else tuple(keep_float)


def _check_arguments(path: Path, precision: str, float16_io: bool, int8: _Int8Options) -> None:
    if path.suffix.lower() != ".onnx":
        raise ValueError(f"path must end in .onnx, by which verify knows the format; got {str(path)!r}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(map(repr, PRECISIONS))}, got {precision!r}")
    if float16_io and precision != "fp16":
        raise ValueError(f"float16_io is for precision='fp16', got {precision!r}")
    if (int8.keep_float or int8.int8_weights) and precision != "int8":
        raise ValueError(f"keep_float and int8_weights are for precision='int8', got {precision!r}")
    if int8.method not in METHODS:
        names = ", ".join(map(repr, METHODS))
        raise ValueError(f"calibration_method must be one of {names}, got {int8.method!r}")
    if not 50 < int8.percentile <= 100:
        raise ValueError(f"percentile must be above 50 and at most 100, got {int8.percentile!r}")


def _compare(runner: Any, pairs: Sequence[tuple[Any, Any]], inputs_as_nchw: Sequence[str], tolerance: float) -> float:
    """The largest relative difference of outputs; RuntimeError if it passes the tolerance."""
    worst = max(
        (largest_difference(expected, run(runner, batch, inputs_as_nchw)) for batch, expected in pairs),
        default=(0.0, ""),
    )
    if worst[0] > tolerance:
        raise RuntimeError(
            f"the ONNX file does not compute what the model does: its output {worst[1]!r} differs by {worst[0]:.1e} of "
            f"its size, where {tolerance:g} is allowed"
        )
    return worst[0]


def _quantize(
    model: Any,
    int8: _Int8Options,
    data: _Data,
    m_by_n: tuple[int, int],
    inputs_as_nchw: Sequence[str],
    notes: list[str],
) -> Any:
    """The model with quantizers, calibrated; adds to ``notes`` what was quantized."""
    gemms = gemms_of(model)
    sparse = {gemm.op for gemm in gemms if gemm.weight is not None and _holds(gemm.weight, gemm.reduction_axes, m_by_n)}
    plan = plan_quantization(model, sparse, int8.keep_float)
    feeds = (in_file_layout(batch, inputs_as_nchw) for batch in data.all())
    ranges = calibrate(model, plan, feeds, int8.method, int8.percentile)
    left = {gemm.op: plan.left.get(gemm.op, "it is none that TensorRT quantizes, or in a body") for gemm in gemms}
    left = {op: why for op, why in left.items() if op not in plan.names}
    notes.append(
        f"int8: {len(plan.weights)} of {len(gemms)} products quantized, {len(sparse & plan.names)} of them with their "
        f"output, on {data.samples} samples ({int8.method})."
    )
    notes += [f"int8: {op} stays float32: {why}." for op, why in left.items()]
    return insert_quantizers(model, plan, ranges, int8.int8_weights)


def _compare_int8(written: Path, probed: Sequence[Any], given: Sequence[Any], inputs_as_nchw: Sequence[str]) -> str:
    """Runs an int8 file as it stands on calibration data; RuntimeError if its outputs are nothing like the model's."""
    runner = session(written, optimize=False)
    for batch, _ in probed:
        run(runner, batch, inputs_as_nchw)  # any batch size, whatever the values
    error, name = relative_error((expected, run(runner, batch, inputs_as_nchw)) for batch, expected in given)
    if error > _INT8_LIMIT:
        raise RuntimeError(
            f"in int8 the output {name!r} differs by {100 * error:.0f} % from the Keras model's on calibration data. "
            "Try another calibration_method, more data, or keep_float for sensitive layers"
        )
    return f"int8: outputs differ from the Keras model's by {100 * error:.1f} % (RMS) on calibration data."


def _holds(weight: np.ndarray, axes: tuple[int, ...], m_by_n: tuple[int, int]) -> bool:
    """Whether a weight has the pattern, and is large enough for it to ask for zeros."""
    m, n = m_by_n
    length = math.prod(weight.shape[axis] for axis in axes) if axes else 0
    return length > n - m and not masks.violations(weight, axes, m_by_n)


def _check_nothing_lost(function: Any, report: VerificationReport, m_by_n: tuple[int, int]) -> None:
    """Raises RuntimeError unless each kernel that has the pattern in the model has a counterpart in the file.

    Kernels are counted by their sizes: a converter may transpose and rename them, and write twice what is called twice.
    """
    sparse = {
        (gemm.op, gemm.weight_name): _sizes(gemm.weight.shape, gemm.reduction_axes)
        for gemm in find_gemms(trace_function(function))
        if gemm.weight is not None and _holds(gemm.weight, gemm.reduction_axes, m_by_n)
    }
    needed = Counter(sparse.values())
    found = Counter(_sizes(layer.shape, layer.reduction_axes) for layer in report.layers if layer.holds)
    lost = [name for (_, name), size in sparse.items() if needed[size] > found[size]]
    if lost:
        raise RuntimeError(
            f"the ONNX file lost the {m_by_n} pattern of {', '.join(lost[:3])}{', ...' * (len(lost) > 3)}; "
            f"it says:\n{report}"
        )


def _sizes(shape: Sequence[int], reduction_axes: Sequence[int]) -> tuple[int, int]:
    """Length of the reduction axes, and number of weights."""
    return math.prod(shape[axis] for axis in reduction_axes), math.prod(shape)


def _finish(report: VerificationReport, path: Path, notes: list[str]) -> VerificationReport:
    try:
        command = trtexec_command(path)
        logger.log(SHOW_PRUNING_INFO, "Wrote %s. Build the TensorRT engine with:\n%s", path, command)
        notes.append(f"TensorRT: {command}")
    except ValueError as error:  # open axes, whose sizes only the user knows
        logger.log(SHOW_PRUNING_INFO, "Wrote %s. For the trtexec command: %s", path, error)
        notes.append(f"TensorRT: tfmot_asp.export.trtexec_command({str(path)!r}, shapes=...); {error}")
    return replace(report, path=str(path), notes=(*report.notes, *notes))
