"""Reads a written model back and tells whether the sparsity pattern is in the file, for each of its matrix products."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tfmot_asp.graph.gemm import Gemm
from tfmot_asp.hardware.libraries import tensorrt_obstacle
from tfmot_asp.loading.formats import check_is_file, within_budget
from tfmot_asp.masks import standing
from tfmot_asp.pattern import TWO_FOUR, Pattern, PatternLike
from tfmot_asp.reports.verification import VerificationReport, VerifiedLayer
from tfmot_asp.types import StrPath


def verify(path: StrPath, *, sparsity_m_by_n: PatternLike = TWO_FOUR, allow_unsafe: bool = False) -> VerificationReport:
    """Opens a written model and checks the weights of its matrix products.

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
    weights = _by_weight(gemms_in(path, allow_unsafe))
    return VerificationReport(str(path), pattern, tuple(_check(products, pattern) for products in weights))


def gemms_in(path: Path, allow_unsafe: bool) -> list[Gemm]:
    """The matrix products in a file, by the format that its name says."""
    with within_budget(path, trusted=allow_unsafe):
        return _read(path, allow_unsafe)


def _read(path: Path, allow_unsafe: bool) -> list[Gemm]:
    suffix = path.suffix.lower()
    if path.is_dir():
        from tfmot_asp.export.read_tensorflow import read_saved_model  # here: it imports TensorFlow

        return read_saved_model(path, allow_unsafe)
    check_is_file(path)
    if suffix in (".keras", ".h5", ".hdf5"):
        from tfmot_asp.export.read_tensorflow import read_keras

        return read_keras(path, allow_unsafe)
    if suffix == ".onnx":
        from tfmot_asp.export.onnx_files.read_onnx import read_onnx

        return read_onnx(path)
    if suffix == ".tflite":
        from tfmot_asp.export.tflite_files.read_tflite import read_tflite

        return read_tflite(path)
    raise ValueError(f"{str(path)!r} is no SavedModel folder and no .keras, .h5, .onnx or .tflite file")


def _by_weight(gemms: Iterable[Gemm]) -> list[list[Gemm]]:
    """Products that read one weight in one way, together, in the order of the first of them."""
    found: list[list[Gemm]] = []
    by_name: dict[tuple[Any, ...], list[list[Gemm]]] = {}
    for gemm in gemms:
        read = (gemm.weight_name, gemm.type, gemm.reduction_axes, gemm.output_axes, gemm.groups, gemm.problem)
        alike = by_name.setdefault(read, [])  # in a file's graphs several weights may have one name
        products = next((products for products in alike if _same(products[0].weight, gemm.weight)), None)
        if products is None:
            products = []
            alike.append(products)
            found.append(products)
        products.append(gemm)
    return found


def _same(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    return one is other or (one is not None and other is not None and np.array_equal(one, other))


def _check(products: list[Gemm], pattern: Pattern) -> VerifiedLayer:
    gemm = products[0]
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
        *(gemm.weight_name, gemm.op, gemm.type, shape, axes, zeros, stripes, violations, status, why or None),
        more_ops=tuple(product.op for product in products[1:]),
    )
