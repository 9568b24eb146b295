"""Reads a written model back and tells whether the sparsity pattern is in the file, for each of its matrix products."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_asp import masks
from tfmot_asp.eligibility import INPUT_MULTIPLE, OUTPUT_MULTIPLE
from tfmot_asp.export.gemms import Gemm, find_gemms
from tfmot_asp.loading import check_saved_model, load_model
from tfmot_asp.permutation.trace import trace, trace_function
from tfmot_asp.report import align


@dataclass(frozen=True)
class VerifiedLayer:
    """One matrix product of a written model.

    Attributes:
        name: of the variable or constant that holds the weight.
        op: name of the op that multiplies with it.
        type: of that op, as its format calls it: ``MatMul``, ``Conv``, ``FULLY_CONNECTED``, ...
        shape: of the weight as the op reads it.
        reduction_axes: its axes that the product sums over.
        zeros: share of weights that are exactly zero, 0 to 1.
        stripes: number of stripes.
        violations: stripes with more than n - m nonzeros; None if there is no reduction axis or no readable weight.
        status: ``"sparse"`` if the pattern holds; ``"broken"`` if it holds in half of the stripes or more but not in
            all; ``"dense"`` if in fewer; ``"small"`` if stripes are too short for the pattern to ask for zeros;
            ``"depthwise"`` without a reduction axis; ``"unreadable"`` if the weight could not be computed.
        note: what keeps sparse Tensor Cores from using the layer, or why it is unreadable; empty otherwise.
        eligible: whether TensorRT said it could run the layer sparse; None before ``parse_tensorrt_log``.
        picked: whether TensorRT chose to, by timing; None before ``parse_tensorrt_log``.
    """

    name: str
    op: str
    type: str
    shape: tuple[int, ...]
    reduction_axes: tuple[int, ...]
    zeros: float
    stripes: int
    violations: int | None
    status: str
    note: str
    eligible: bool | None = None
    picked: bool | None = None

    @property
    def holds(self) -> bool:
        """Whether the pattern holds in every stripe, and asks for zeros at all."""
        return self.status == "sparse"


@dataclass(frozen=True)
class VerificationReport:
    """What ``verify`` found. ``str()`` is a table; ``to_dict()`` is plain data for JSON.

    Attributes:
        path: of the file.
        sparsity_m_by_n: the pattern that was checked.
        layers: one row per matrix product with a constant weight.
        notes: what else there is to say about the file: its size, the command that uses it.
    """

    path: str
    sparsity_m_by_n: tuple[int, int]
    layers: tuple[VerifiedLayer, ...]
    notes: tuple[str, ...] = ()

    @property
    def sparse(self) -> int:
        """Number of layers in which the pattern holds."""
        return sum(layer.holds for layer in self.layers)

    @property
    def ok(self) -> bool:
        """Whether some layer is sparse, none is broken, and all weights could be read.

        A dense layer is no failure: policies keep layers dense. Whether a layer that was to be sparse is dense shows in
        its row.
        """
        bad = any(layer.status in ("broken", "unreadable") for layer in self.layers)
        return self.sparse > 0 and not bad

    def to_dict(self) -> dict[str, Any]:
        """The report as dicts, lists, strings and numbers."""
        rows = [
            {**asdict(layer), "shape": list(layer.shape), "reduction_axes": list(layer.reduction_axes)}
            for layer in self.layers
        ]
        return {
            "path": self.path,
            "sparsity_m_by_n": list(self.sparsity_m_by_n),
            "ok": self.ok,
            "sparse": self.sparse,
            "layers": rows,
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        # TensorRT's columns, once its log was read.
        read = any(layer.eligible is not None for layer in self.layers)
        answers = {None: "-", True: "yes", False: "no"}
        tensorrt = [(answers[layer.eligible], answers[layer.picked]) if read else () for layer in self.layers]
        columns = ("eligible", "picked") if read else ()
        header = ("weight", "op", "shape", "axis", "zeros", "status", "violations", *columns, "note")
        rows = [
            (
                layer.name,
                layer.type,
                "x".join(map(str, layer.shape)),
                ",".join(map(str, layer.reduction_axes)) or "-",
                f"{100 * layer.zeros:5.1f}%",
                layer.status,
                "-" if layer.violations is None else f"{layer.violations:,} of {layer.stripes:,}",
                *answer,
                layer.note,
            )
            for layer, answer in zip(self.layers, tensorrt, strict=True)
        ]
        m, n = self.sparsity_m_by_n
        verdict = "ok" if self.ok else "NOT ok"
        pattern = f"{m} zeros in every {n}"
        summary = f"{self.path}: {self.sparse} of {len(self.layers)} weights have {pattern} values; {verdict}"
        return "\n".join([*align(header, rows), summary, *self.notes])


def verify(
    path: Any, *, sparsity_m_by_n: tuple[int, int] = masks.DEFAULT_M_BY_N, allow_unsafe: bool = False
) -> VerificationReport:
    """Opens a written model and checks the weight of each matrix product in it.

    Products and their weights are found in the graph, not by name: see ``tfmot_asp.export.gemms``. Products inside
    control flow (the loops of recurrent layers, which no policy of this package prunes) are listed for ONNX and TFLite
    files, not for those of TensorFlow.

    Args:
        path: a SavedModel folder (its ``serving_default`` signature is read), a ``.keras`` or ``.h5`` file of
            tf_keras, a ``.keras`` file of Keras 3, an ONNX file (``.onnx``) or a TFLite file (``.tflite``).
        sparsity_m_by_n: the pattern to look for.
        allow_unsafe: read a file that can run code (a Lambda layer, an op that writes files), because you trust where
            it comes from. Without it such a file is refused before anything of it runs.

    Returns:
        A ``VerificationReport``; its ``ok`` says whether the file is fit for sparse Tensor Cores.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: if it is none of these formats, damaged, without a signature, or can run code.

    Example:
        >>> report = tfmot_asp.export.verify("exported")
        >>> report.ok
        True
    """
    m_by_n = masks.check_m_by_n(sparsity_m_by_n)
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {str(path)!r} to verify")
    return VerificationReport(str(path), m_by_n, tuple(_check(gemm, m_by_n) for gemm in _gemms(path, allow_unsafe)))


def _gemms(path: Path, allow_unsafe: bool) -> list[Gemm]:
    """The matrix products in a file, by the format that its name says."""
    suffix = path.suffix.lower()
    if path.is_dir():
        return find_gemms(trace_function(load_signature(path, allow_unsafe)))
    if suffix in (".keras", ".h5", ".hdf5"):
        return find_gemms(trace(load_model(path, allow_unsafe=allow_unsafe)))
    if suffix == ".onnx":
        from tfmot_asp.export.read_onnx import read_onnx

        return read_onnx(path)
    if suffix == ".tflite":
        from tfmot_asp.export.read_tflite import read_tflite

        return read_tflite(path)
    raise ValueError(f"{str(path)!r} is no SavedModel folder and no .keras, .h5, .onnx or .tflite file")


def load_signature(path: Path, allow_unsafe: bool = False) -> Any:
    """The ``serving_default`` function of a SavedModel.

    Raises:
        ValueError: if the folder is no readable SavedModel, or has no such signature.
    """
    check_saved_model(path, allow_unsafe=allow_unsafe)  # before TensorFlow runs what a SavedModel runs on loading
    try:
        loaded = tf.saved_model.load(str(path))
    except Exception as error:  # damaged files fail in many ways, parse errors and missing ops among them
        raise ValueError(f"{str(path)!r} cannot be read as a SavedModel: {error}") from error
    signatures = dict(loaded.signatures)
    if "serving_default" not in signatures:
        has = f"it has {sorted(signatures)}" if signatures else "it has none"
        raise ValueError(
            f"{str(path)!r} has no signature 'serving_default', {has}; tfmot_asp.export.saved_model adds it"
        )
    function = signatures["serving_default"]
    function._loaded_object = loaded  # a signature does not keep its variables alive
    return function


def _check(gemm: Gemm, m_by_n: tuple[int, int]) -> VerifiedLayer:
    m, n = m_by_n
    weight, axes = gemm.weight, gemm.reduction_axes
    shape: tuple[int, ...] = ()
    zeros, stripes, violations, note = 0.0, 0, None, ""
    if weight is None:
        status, note = "unreadable", gemm.problem or ""
    else:
        shape = tuple(weight.shape)
        zeros = 1 - int(np.count_nonzero(weight)) / max(1, weight.size)
        if not axes:
            status, note = "depthwise", "sums over no channels"
        else:
            stripes = masks.stripe_count(shape, axes, m_by_n)
            violations = masks.violations(weight, axes, m_by_n)
            note = _obstacle(gemm, shape)
            if math.prod(shape[axis] for axis in axes) <= n - m:
                status = "small"
            elif violations == 0:
                status = "sparse"
            else:
                status = "broken" if 2 * violations <= stripes else "dense"
    return VerifiedLayer(gemm.weight_name, gemm.op, gemm.type, shape, axes, zeros, stripes, violations, status, note)


def _obstacle(gemm: Gemm, shape: tuple[int, ...]) -> str:
    """Why sparse Tensor Cores cannot use a product, whatever its zeros; empty if they can."""
    inputs = math.prod(shape[axis] for axis in gemm.reduction_axes)
    outputs = math.prod(shape[axis] for axis in gemm.output_axes)
    if gemm.groups > 1:
        return f"{gemm.groups} groups"
    if "Backprop" in gemm.type or "TRANSPOSE" in gemm.type.upper():
        return "transposed convolution"
    if inputs % INPUT_MULTIPLE:
        return f"{inputs} inputs, no multiple of {INPUT_MULTIPLE}"
    if outputs % OUTPUT_MULTIPLE:
        return f"{outputs} outputs, no multiple of {OUTPUT_MULTIPLE}"
    return ""
