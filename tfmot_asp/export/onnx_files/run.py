"""Runs ONNX models in onnxruntime."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfmot_asp.graph.probes import NamedArrays

if TYPE_CHECKING:
    import onnx

logger = logging.getLogger(__name__)


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

    def values(self, batch: NamedArrays) -> NamedArrays:
        """The tensors for one batch, in the layout of the file."""
        feeds = {name: value for name, value in batch.items() if name in self._fed}
        computed = self._session.run(self._computed, feeds) if self._computed else []
        return {name: batch[name] for name in self._inputs} | dict(zip(self._computed, computed, strict=True))


def run(
    runner: Any, batch: NamedArrays, inputs_as_nchw: Sequence[str] = (), outputs_as_nchw: Sequence[str] = ()
) -> NamedArrays:
    """Runs a session on inputs as the Keras model takes them.

    Args:
        runner: from ``session``, or a ``HalfRunner``.
        batch: inputs by name.
        inputs_as_nchw: those that the file takes channels first.
        outputs_as_nchw: those that it gives channels first.

    Returns:
        Outputs by name, in the file's dtypes.

    Raises:
        RuntimeError: if the model does not take them.
    """
    types = {value.name: value.type for value in runner.get_inputs()}
    feeds = {}
    for name, value in in_file_layout(batch, inputs_as_nchw).items():
        if name in types:  # an input that no output depends on may be left out
            feeds[name] = value.astype(np.float16) if types[name] == "tensor(float16)" else value
    names = [value.name for value in runner.get_outputs()]
    try:
        found = dict(zip(names, runner.run(names, feeds), strict=True))
    except Exception as error:  # onnxruntime's share no public class
        shapes = ", ".join(f"{name} {value.shape}" for name, value in feeds.items())
        raise RuntimeError(
            f"the ONNX model does not take inputs that the Keras model takes ({shapes}): {error}. If these are too "
            "small for the model, pass input_shapes with typical sizes"
        ) from error
    return {name: np.transpose(a, (0, 2, 3, 1)) if name in outputs_as_nchw else a for name, a in found.items()}


def in_file_layout(batch: NamedArrays, inputs_as_nchw: Sequence[str] = ()) -> NamedArrays:
    """A batch as the file takes it: images channels first, if so asked."""
    return {
        name: np.ascontiguousarray(np.transpose(value, (0, 3, 1, 2))) if name in inputs_as_nchw else value
        for name, value in batch.items()
    }
