"""Runs ONNX models in onnxruntime, and compares what they compute with the Keras model."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

if TYPE_CHECKING:
    import onnx

logger = logging.getLogger(__name__)

# Tried in turn for open axes other than the batch: some models take no short sequence, some no long one.
_OPEN_SIZES = (16, 64, 224)

Batch = dict[str, np.ndarray]


def session(model: onnx.ModelProto | Path, optimize: bool = True) -> Any:
    """An onnxruntime session on the CPU.

    Args:
        model: a model, or the path of its file.
        optimize: whether onnxruntime may fuse nodes. Without, quantizers are computed as they stand in the file, as
            TensorRT does; with it, the int8 products of CPUs without VNNI saturate (seen: 13 % off instead of 1.2 %).

    Raises:
        RuntimeError: if onnxruntime cannot run the model.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; they are raised as well
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no public class
        raise RuntimeError(f"onnxruntime cannot run the ONNX model: {error}") from error


class Watcher:
    """Runs a model and gives chosen tensors inside it."""

    def __init__(self, model: onnx.ModelProto, names: Sequence[str]) -> None:
        """Makes the tensors outputs of a copy of the model; inputs may be among them."""
        from onnx import ModelProto, TensorProto, helper

        self._fed = {value.name for value in model.graph.input}
        self._inputs = [name for name in names if name in self._fed]
        self._computed = [name for name in names if name not in self._fed]
        stated = {value.name for value in model.graph.output}
        watched = ModelProto()
        watched.CopyFrom(model)
        hidden = [name for name in self._computed if name not in stated]
        watched.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in hidden)
        self._session = session(watched, optimize=False)

    def values(self, batch: Batch) -> Batch:
        """The tensors for one batch, in the layout of the file."""
        feeds = {name: value for name, value in batch.items() if name in self._fed}
        computed = self._session.run(self._computed, feeds) if self._computed else []
        return {name: batch[name] for name in self._inputs} | dict(zip(self._computed, computed, strict=True))


def probes(function: Any) -> list[tuple[Batch, Batch]]:
    """Random inputs for a function, and its outputs for them: batches of 1 and 3 if the batch axis is open.

    Integers are drawn from {0, 1}, which every table of embeddings has, or are 0 if the function refuses that; floats
    are 0 if it refuses those (they may be token ids too).

    Returns:
        Pairs of inputs and expected outputs by name; none, with a warning, if no input can be made up.
    """
    specs = list(function.structured_input_signature[0])
    sizes = (1, 3) if all(spec.shape.rank and spec.shape[0] is None for spec in specs) else (1,)
    problem: Exception | None = None
    for largest, open_size in itertools.product((1, 0, None), _OPEN_SIZES):
        generator = np.random.default_rng(0)
        batches = [{spec.name: _random(spec, size, open_size, largest, generator) for spec in specs} for size in sizes]
        try:
            return [(batch, outputs_of(function, batch)) for batch in batches]
        except (tf.errors.OpError, ValueError) as error:
            problem = error
    logger.warning("The file's outputs are not compared: no random input suits the model (%s)", _gist(problem))
    return []


def outputs_of(function: Any, batch: Batch) -> Batch:
    """A function's outputs as arrays."""
    found = function(**{name: tf.constant(value) for name, value in batch.items()})
    return {name: np.asarray(value) for name, value in found.items()}


def _gist(error: Exception | None) -> str:
    """What an error says in one line: TensorFlow puts where the op was made before it, and names the op after it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line, after in itertools.pairwise(lines) if after.startswith("[[")]
    return (said or lines or [""])[0]


def _random(
    spec: tf.TensorSpec, size: int, open_size: int, largest: int | None, generator: np.random.Generator
) -> np.ndarray:
    shape = [open_size if dim is None else dim for dim in spec.shape]
    if shape and spec.shape[0] is None:
        shape[0] = size
    dtype = spec.dtype.as_numpy_dtype
    if spec.dtype.is_floating and largest is not None:
        return generator.standard_normal(shape).astype(dtype)
    return generator.integers(0, (largest or 0) + 1, shape).astype(dtype)


def run(runner: Any, batch: Batch, inputs_as_nchw: Sequence[str] = ()) -> Batch:
    """Runs a session on inputs as the Keras model takes them.

    Args:
        runner: from ``session``.
        batch: inputs by name.
        inputs_as_nchw: those that the file takes channels first.

    Returns:
        Outputs by name, in the file's dtypes.
    """
    types = {value.name: value.type for value in runner.get_inputs()}
    feeds = {}
    for name, value in in_file_layout(batch, inputs_as_nchw).items():
        if name in types:  # an input that no output depends on may be left out
            feeds[name] = value.astype(np.float16) if types[name] == "tensor(float16)" else value
    names = [value.name for value in runner.get_outputs()]
    return dict(zip(names, runner.run(names, feeds), strict=True))


def in_parts(batch: Batch, specs: Sequence[tf.TensorSpec], size: int) -> Iterator[Batch]:
    """A batch in smaller ones, if the batch axis of all inputs is open."""
    if not all(spec.shape.rank and spec.shape[0] is None for spec in specs):
        yield batch
        return
    total = next(iter(batch.values())).shape[0]
    for start in range(0, total, size):
        yield {name: value[start : start + size] for name, value in batch.items()}


def in_file_layout(batch: Batch, inputs_as_nchw: Sequence[str] = ()) -> Batch:
    """A batch as the file takes it: images channels first, if so asked."""
    return {
        name: np.ascontiguousarray(np.transpose(value, (0, 3, 1, 2))) if name in inputs_as_nchw else value
        for name, value in batch.items()
    }


def largest_difference(expected: Batch, got: Batch) -> tuple[float, str]:
    """The largest difference of any output, relative to that output's largest value, and which output it is.

    Outputs of integers are left out: an argmax may flip on a tie. One that is missing, misshapen, or not finite where
    it should be is infinitely far off.
    """
    worst = (0.0, "")
    for name, before in expected.items():
        if not _is_float(before):
            continue
        after = got.get(name)
        if after is None or after.shape != before.shape:
            return float("inf"), name
        a, b = before.astype(np.float64), after.astype(np.float64)
        scale = float(np.max(np.abs(a[np.isfinite(a)]), initial=0.0)) or 1.0
        same = np.isclose(a, b, rtol=0, atol=0, equal_nan=True)
        with np.errstate(invalid="ignore"):
            gaps = np.abs(a - b)[~same]
        gap = float(np.max(gaps, initial=0.0)) / scale
        worst = max(worst, (gap if np.isfinite(gaps).all() else float("inf"), name))
    return worst


def relative_error(pairs: Iterable[tuple[Batch, Batch]]) -> tuple[float, str]:
    """The error of several batches in the Euclidean norm, relative to the expected outputs: of the worst output."""
    gaps: dict[str, float] = {}
    norms: dict[str, float] = {}
    for expected, got in pairs:
        for name, before in expected.items():
            if _is_float(before):
                a, b = before.astype(np.float64), got[name].astype(np.float64)
                gaps[name] = gaps.get(name, 0.0) + float(np.sum((a - b) ** 2))
                norms[name] = norms.get(name, 0.0) + float(np.sum(a**2))
    errors = [(np.sqrt(gaps[name] / norms[name]) if norms[name] else np.sqrt(gaps[name]), name) for name in gaps]
    value, name = max(((e if np.isfinite(e) else np.inf, n) for e, n in errors), default=(0.0, ""))
    return float(value), name


def _is_float(array: np.ndarray) -> bool:
    return array.dtype.kind == "f" or array.dtype.kind == "V"  # V: bfloat16
