"""Checks of a TFLite file against the function that it was made of, and what to tell about it."""

from __future__ import annotations

import logging
import math
import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_asp.export.tflite_files.read_tflite import read_tflite
from tfmot_asp.export.tflite_files.tflite_file import Subgraph, TfliteFile, quantization
from tfmot_asp.graph.compare import difference, reach, spread
from tfmot_asp.graph.probes import probes

logger = logging.getLogger(__name__)

Samples = list[dict[str, np.ndarray]]

_INT8_REMARKABLE = 0.1
_COMPARED_SAMPLES = 16


@contextmanager
def quiet() -> Iterator[None]:
    """Hides what TensorFlow warns of within its own code: that tf.lite moves, and that QAT models come without data."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"\s*Warning: tf\.lite\.Interpreter is deprecated")
        warnings.filterwarnings("ignore", message="Statistics for quantized inputs were expected")
        yield


def compare(
    function: Any,
    written: Path,
    precision: str,
    samples: Samples,
    tolerance: float,
    better: str,
    uncompared: Collection[str] = (),
) -> list[str]:
    """Runs the file and the model on the same inputs.

    Args:
        function: of the Keras model as it is.
        written: the file.
        precision: of the file.
        samples: what to run them on; a random input if there are none.
        tolerance: how far outputs may be off, relative to the largest of them, and in int8 to their spread.
        better: what to do for a better int8 file.
        uncompared: names of outputs that count for nothing.

    Returns:
        What to note about it. Quantized files are judged by TFLite's own kernels: those of XNNPACK, which the
        interpreter takes where it can, may be wrong (TensorFlow 2.21's int8 products of two activations on x86).

    Raises:
        RuntimeError: if they differ by more than the precision explains, or the file does not run.
    """
    if not samples:
        samples = [probe for probe, _ in probes(function)]
        if not samples:
            return ["Its outputs were not compared with the model's: no input could be made up."]
    samples = samples[:: max(1, len(samples) // _COMPARED_SAMPLES)][:_COMPARED_SAMPLES]
    expected = [function(**{name: tf.constant(value) for name, value in sample.items()}) for sample in samples]
    try:
        got, steps = _run(written, samples, delegate=precision != "int8")
    except _NeedsTensorFlowError:
        return ["Its outputs were not compared with the model's: this interpreter cannot run its TensorFlow ops."]
    worst = 0.0
    for name in expected[0]:
        if name in uncompared or not expected[0][name].dtype.is_floating:
            continue  # an argmax may flip on a tie
        before = np.concatenate([np.asarray(outputs[name], np.float64).reshape(-1) for outputs in expected])
        after = np.concatenate([np.asarray(outputs[name], np.float64).reshape(-1) for outputs in got])
        if before.shape != after.shape or not np.array_equal(np.isfinite(before), np.isfinite(after)):
            raise RuntimeError(f"the TFLite file's output {name!r} has other sizes than the model's, or is not finite")
        finite = np.isfinite(before)
        before, after = before[finite], after[finite]
        if not before.size:
            raise ValueError(f"the model's output {name!r} is NaN or infinite throughout; check its weights")
        worst = max(worst, _difference(name, before, after, precision, steps.get(name, 0.0), tolerance, better))
    samples_text = f"{len(samples)} input{'s' if len(samples) > 1 else ''}"
    if precision == "int8":
        if worst > _INT8_REMARKABLE:
            logger.warning("%s: int8 changes the outputs by %.0f %% of their spread.", written.name, 100 * worst)
        return [
            f"Outputs differ from the model's by {100 * worst:.3g} % of their spread (RMS, {samples_text}).",
            *_delegated(written, samples, got),
        ]
    return [f"Outputs differ from the model's by at most {worst:.1e} of the largest ({samples_text})."]


def _delegated(written: Path, samples: Samples, plain: list[dict[str, np.ndarray]]) -> list[str]:
    """What to say if XNNPACK computes something else of an int8 file than TFLite's own kernels."""
    found, _ = _run(written, samples, delegate=True)
    worst = 0.0
    for name in plain[0]:
        own, other = (np.concatenate([np.ravel(outputs[name]) for outputs in results]) for results in (plain, found))
        if own.dtype.kind == "f" and spread(own):
            worst = max(worst, float(np.sqrt(np.mean((own - other) ** 2))) / spread(own))
    if worst <= _INT8_REMARKABLE:
        return []
    return [
        f"On this machine XNNPACK, TFLite's default, computes other outputs than TFLite's own kernels, by "
        f"{100 * worst:.3g} % of their spread: run the file with BUILTIN_WITHOUT_DEFAULT_DELEGATES, and check it where "
        "it is to run."
    ]


def _difference(
    name: str, before: np.ndarray, after: np.ndarray, precision: str, step: float, tolerance: float, better: str
) -> float:
    """How much an output changed relative to its size (int8: its spread); raises RuntimeError if by too much."""
    if precision == "int8":
        varies = spread(before)
        error = float(np.sqrt(np.mean((before - after) ** 2)))
        step = max(step, reach(before) / 255)  # int8 spans zero as well
        # One step of the output's own quantization each for rounding, and for the way there.
        too_much = error > tolerance * varies + 2 * step
        relative, what = (error / max(varies, step) if error else 0.0), "its spread"
        hint = f"; does the calibration data show what the model sees? If so, {better}"
    else:
        relative, what, hint = difference(before, after), "its largest value", ""
        too_much = relative > tolerance
        if precision == "fp16":
            hint = "; are its weights, times the scale of the batch norm behind them, beyond float16's 65,504?"
    if too_much:
        raise RuntimeError(
            f"the TFLite file's output {name!r} differs from the model's by {100 * relative:.3g} % of {what}{hint}"
        )
    return relative


def _interpreter(path: Path, delegate: bool) -> Any:
    """The interpreter of TensorFlow, or of its successor, where TensorFlow no longer has one; with XNNPACK or not."""
    if hasattr(tf.lite, "Interpreter"):
        module, kinds = tf.lite, tf.lite.experimental.OpResolverType
    else:
        from ai_edge_litert import interpreter  # type: ignore[import-not-found, unused-ignore]

        module, kinds = interpreter, interpreter.OpResolverType
    kind = kinds.AUTO if delegate else kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    with quiet():
        return module.Interpreter(model_path=str(path), experimental_op_resolver_type=kind)


class _NeedsTensorFlowError(Exception):
    """The file has SELECT_TF_OPS, and the interpreter at hand was built without them."""


def _run(path: Path, samples: Samples, *, delegate: bool) -> tuple[list[dict[str, np.ndarray]], dict[str, float]]:
    """The file's outputs in real numbers for each sample, and the size of a quantization step of each output."""
    graph = TfliteFile(path).subgraphs[0]
    try:
        results, shapes = [], None
        for sample in samples:
            if shapes != (shapes := {name: value.shape for name, value in sample.items()}):
                # Resized once more, one with branches in it writes beyond its tensors (TensorFlow 2.21).
                interpreter = _interpreter(path, delegate)
                runner = interpreter.get_signature_runner()
                inputs, outputs = runner.get_input_details(), runner.get_output_details()
            else:
                interpreter.reset_all_variables()  # each is a sequence of its own to recurrent layers
            fed = {name: _stored(value, inputs[name]) for name, value in sample.items() if name in inputs}
            results.append({name: _real(value, outputs[name]) for name, value in runner(**fed).items()})
    except (RuntimeError, ValueError) as error:
        if "Select TensorFlow op" in str(error):
            raise _NeedsTensorFlowError from error
        raise RuntimeError(f"the TFLite file does not run: {_named(str(error), graph)}") from error
    steps = {}
    for name, details in outputs.items():
        producer = next((op for op in graph.ops if details["index"] in op.outputs), None)
        number = producer.inputs[0] if producer is not None and producer.type == "DEQUANTIZE" else details["index"]
        scale, _ = quantization(graph.tensors[number])
        steps[name] = 0.0 if scale is None else float(np.max(scale))
    return results, steps


def _named(message: str, graph: Subgraph) -> str:
    """A message of the interpreter, with the name of the op that it gives the number of."""
    found = re.search(r"Node number (\d+) \((\w+)\)", message)
    op = graph.ops[int(found[1])] if found and int(found[1]) < len(graph.ops) else None
    if found is None or op is None or op.type != found[2] or not op.outputs:
        return message
    return message.replace(found[0], f" {op.type} {graph.tensors[op.outputs[0]].name!r}")


def _stored(value: np.ndarray, details: Any) -> np.ndarray:
    scale, zero_point = details["quantization"]
    dtype = np.dtype(details["dtype"])
    if not scale or dtype.kind not in "iu" or value.dtype.kind != "f":
        return value.astype(dtype)
    limits = np.iinfo(dtype)
    return np.clip(np.round(value / scale) + zero_point, limits.min, limits.max).astype(dtype)


def _real(value: np.ndarray, details: Any) -> np.ndarray:
    scale, zero_point = details["quantization"]
    return (value.astype(np.float64) - zero_point) * scale if scale and value.dtype.kind in "iu" else value


def in_float(written: Path) -> list[str]:
    """What an int8 file computes in float: its products by name, all ops by type."""
    graphs = TfliteFile(written).subgraphs
    outputs = [
        (op.type, graph.tensors[op.outputs[0]])
        for graph in graphs
        for op in graph.ops
        if op.outputs and op.type not in ("QUANTIZE", "DEQUANTIZE")
    ]
    counts = Counter(kind for kind, tensor in outputs if tensor.type.startswith("FLOAT"))
    if not counts:
        return []
    names = {tensor.name for _, tensor in outputs if tensor.type.startswith("FLOAT")}
    products = [gemm.weight_name for gemm in read_tflite(written) if gemm.op in names]
    listed = f"; the weights of {', '.join(products)} are not quantized" if products else ""
    return [f"Computed in float: {', '.join(f'{count} {kind}' for kind, count in sorted(counts.items()))}{listed}."]


def looked_up(written: Path) -> dict[str, int]:
    """Names and sizes of the kernels that became tables: TFLite looks up the rows that one-hot vectors would take."""
    graphs = TfliteFile(written).subgraphs
    tables = (graph.tensors[op.inputs[1]] for graph in graphs for op in graph.ops if op.type == "EMBEDDING_LOOKUP")
    return {tensor.name.split(";")[0]: math.prod(tensor.shape) for tensor in tables}


def state(written: Path) -> list[str]:
    """What to do about layers that remember: TFLite's LSTM op starts where it ended the last time."""
    states = [tensor for graph in TfliteFile(written).subgraphs for tensor in graph.tensors if tensor.variable]
    if not states:
        return []
    return ["Recurrent layers keep their state from call to call: call reset_all_variables() before each new sequence."]


def sizes(written: Path) -> str:
    compressed, dense = TfliteFile(written).compressed_sizes()
    return (
        f"Size: {written.stat().st_size:,} bytes, {compressed:,} compressed (deflate); with other weights in place of "
        f"the zeros it would compress to {dense:,}."
    )
