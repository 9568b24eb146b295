"""Reads a written model back and tells whether the sparsity pattern is in the file, for each of its matrix products."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_asp.graph.flatten import trace_function
from tfmot_asp.graph.gemms import Gemm, find_gemms
from tfmot_asp.graph.inputs import known_inputs
from tfmot_asp.graph.trace import concrete_function, trace, variables_of
from tfmot_asp.hardware.libraries import tensorrt_obstacle
from tfmot_asp.keras_models.modules import all_variables
from tfmot_asp.keras_models.variables import underlying_variable
from tfmot_asp.loading import check_saved_model, load_model
from tfmot_asp.loading.formats import check_is_file, within_budget
from tfmot_asp.loading.one_line import first_line
from tfmot_asp.masks import standing
from tfmot_asp.pattern import TWO_FOUR, Pattern, PatternLike
from tfmot_asp.reports.verification import VerificationReport, VerifiedLayer
from tfmot_asp.types import StrPath


def verify(path: StrPath, *, sparsity_m_by_n: PatternLike = TWO_FOUR, allow_unsafe: bool = False) -> VerificationReport:
    """Opens a written model and checks the weight of each matrix product in it.

    Products and their weights are found in the graph, not by name: see ``tfmot_asp.graph.gemms``. Products inside
    control flow (the loops of recurrent layers, which no policy of this package prunes) are listed for ONNX and TFLite
    files, not for those of TensorFlow.

    Args:
        path: a SavedModel folder (its ``serving_default`` signature is read), a ``.keras`` or ``.h5`` file of
            tf_keras, a ``.keras`` file of Keras 3, an ONNX file (``.onnx``) or a TFLite file (``.tflite``).
        sparsity_m_by_n: the pattern to look for, ``(zeros, block)`` or ``"N:M"``.
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
    pattern = Pattern.of(sparsity_m_by_n)
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {str(path)!r} to verify")
    return VerificationReport(str(path), pattern, tuple(_check(gemm, pattern) for gemm in gemms_in(path, allow_unsafe)))


def gemms_in(path: Path, allow_unsafe: bool) -> list[Gemm]:
    """The matrix products in a file, by the format that its name says."""
    with within_budget(path, trusted=allow_unsafe):
        return _read(path, allow_unsafe)


def _read(path: Path, allow_unsafe: bool) -> list[Gemm]:
    suffix = path.suffix.lower()
    if path.is_dir():
        return find_gemms(trace_function(load_signature(path, allow_unsafe)))
    check_is_file(path)
    if suffix in (".keras", ".h5", ".hdf5"):
        return _gemms_of_model(load_model(path, allow_unsafe=allow_unsafe))
    if suffix == ".onnx":
        from tfmot_asp.export.onnx_files.read_onnx import read_onnx

        return read_onnx(path)
    if suffix == ".tflite":
        from tfmot_asp.export.tflite_files.read_tflite import read_tflite

        return read_tflite(path)
    raise ValueError(f"{str(path)!r} is no SavedModel folder and no .keras, .h5, .onnx or .tflite file")


def _gemms_of_model(model: Any) -> list[Gemm]:
    """The matrix products of a Keras model; where its inputs leave sizes open, they stay so: kernels have theirs."""
    known = known_inputs(model)
    specs = [spec for spec in tf.nest.flatten(known) if isinstance(spec, tf.TensorSpec)]
    if known is not None and any(spec.shape.rank is None or None in spec.shape.as_list()[1:] for spec in specs):
        graph = trace_function(concrete_function(model, known), variables=variables_of(model))
    else:
        graph = trace(model)
    # The variables that Keras 3 gives to layers of a subclassed model are all named "kernel"; their paths tell.
    paths = {id(underlying_variable(v)): v.path for v in all_variables(model) if hasattr(v, "path")}
    return find_gemms(graph, paths)


def load_signature(path: Path, allow_unsafe: bool = False) -> Any:
    """The ``serving_default`` function of a SavedModel.

    Raises:
        ValueError: if the folder is no readable SavedModel, or has no such signature.
    """
    check_saved_model(path, allow_unsafe=allow_unsafe)  # before TensorFlow runs what a SavedModel runs on loading
    try:
        loaded = tf.saved_model.load(str(path))
    except Exception as error:  # damaged files fail in many ways, parse errors and missing ops among them
        raise ValueError(f"{str(path)!r} cannot be read as a SavedModel: {first_line(error)}") from error
    signatures = dict(loaded.signatures)
    if "serving_default" not in signatures:
        has = f"it has {sorted(signatures)}" if signatures else "it has none"
        raise ValueError(
            f"{str(path)!r} has no signature 'serving_default', {has}; tfmot_asp.export.saved_model adds it"
        )
    function = signatures["serving_default"]
    function._loaded_object = loaded  # a signature does not keep its variables alive
    return function


def _check(gemm: Gemm, pattern: Pattern) -> VerifiedLayer:
    weight, axes = gemm.weight, gemm.reduction_axes
    shape: tuple[int, ...] = ()
    zeros, stripes, violations, why = 0.0, 0, None, ""
    if weight is None:
        status, why = "unreadable", gemm.problem or ""
    else:
        shape = tuple(weight.shape)
        zeros = 1 - int(np.count_nonzero(weight)) / max(1, weight.size)
        if not axes:
            status, why = "depthwise", "sums over no channels"
        else:
            found = standing(weight, axes, pattern)
            stripes, violations = found.stripes, found.violations
            inputs = math.prod(shape[axis] for axis in axes)
            transposed = "Backprop" in gemm.type or "TRANSPOSE" in gemm.type.upper()
            why = tensorrt_obstacle(inputs, groups=gemm.groups, transposed=transposed)
            status = "sparse" if found.holds else "broken" if found.broken else "dense" if found.asks else "small"
    return VerifiedLayer(
        gemm.weight_name, gemm.op, gemm.type, shape, axes, zeros, stripes, violations, status, why or None
    )
