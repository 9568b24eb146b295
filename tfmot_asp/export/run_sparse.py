"""Runs the products of a written file 2:4 on this machine's GPU: proof that its weights are what the hardware takes."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfmot_asp.export.verify import gemms_in
from tfmot_asp.graph.gemm import Gemm
from tfmot_asp.hardware import libraries
from tfmot_asp.hardware.sparse_device import TOLERANCE, SparseDevice
from tfmot_asp.masks import standing
from tfmot_asp.reports.document import Document, Table
from tfmot_asp.reports.readable import Report
from tfmot_asp.reports.table import Marked
from tfmot_asp.types import StrPath

_ROWS = 64


@dataclass(frozen=True)
class ProductRun:
    """One weight of a file.

    Attributes:
        name: of the weight.
        op: name of the op that multiplies with it.
        n: output channels.
        k: what is summed over.
        error: largest difference of the 2:4 product from the dense one, of the dense one's largest value; None if it
            was not run.
        reason: why it was not run; None if it was.
    """

    name: str
    op: str
    n: int
    k: int
    error: float | None
    reason: str | None

    @property
    def equal(self) -> bool:
        """Whether both products agree, to the rounding of fp16."""
        return self.error is not None and self.error < TOLERANCE


@dataclass(frozen=True)
class SparseRun(Report):
    """What ``run_sparse`` found. ``str()`` is a table; ``to_dict()`` is plain data for JSON.

    Attributes:
        path: of the file.
        gpu: that it was run on.
        products: one row per matrix product with a constant weight.
    """

    path: str
    gpu: str
    products: tuple[ProductRun, ...]

    _ROWS = "products"

    @property
    def ok(self) -> bool:
        """Whether some product was run 2:4, and each of these agrees with the dense one."""
        ran = [product for product in self.products if product.error is not None]
        return bool(ran) and all(product.equal for product in ran)

    def to_dict(self) -> dict[str, Any]:
        """The report as dicts, lists, strings and numbers."""
        rows = [{**asdict(product), "equal": product.equal} for product in self.products]
        return {"path": self.path, "gpu": self.gpu, "ok": self.ok, "products": rows}

    def document(self) -> Document:
        rows = [
            (
                product.name,
                f"{product.n} x {product.k}",
                "-" if product.error is None else f"{product.error:.1e}",
                product.reason or ("equal" if product.equal else Marked("DIFFERENT", "bad")),
            )
            for product in self.products
        ]
        ran = sum(product.error is not None for product in self.products)
        equal = sum(product.equal for product in self.products)
        summary = f"{self.path}: of {ran} products run 2:4 on {self.gpu}, {equal} equal the dense ones"
        header = ("weight", "N x K", "error", "2:4 and dense")
        return Document([Marked(summary, "good" if self.ok else "bad")], [Table(header, rows)])


def run_sparse(path: StrPath, *, allow_unsafe: bool = False) -> SparseRun:
    """Runs each product of a file whose weight is 2:4 on this machine's GPU, sparse and dense, and compares both.

    The weight is compressed by cuSPARSELt, which refuses what is not 2:4, and multiplied in fp16 with 64 rows of random
    activations; cuBLAS does the same with the weight as it is. The weight of a convolution is taken as its matrix,
    output channels by kernel positions and input channels. What this machine needs is said of ``hardware.measure``.

    Args:
        path: a file that ``verify`` reads, such as ``"model.onnx"``.
        allow_unsafe: as ``verify`` takes it.

    Returns:
        A ``SparseRun``.

    Raises:
        FileNotFoundError, ValueError: as ``verify``.
        RuntimeError: if something is missing on this machine, or a library fails.

    Example:
        >>> print(tfmot_asp.export.run_sparse("model.onnx"))
    """
    path = Path(path)
    gemms = gemms_in(path, allow_unsafe)
    device = SparseDevice()
    return SparseRun(str(path), device.gpu, tuple(_run(device, gemm) for gemm in gemms))


def weight_matrix(gemm: Gemm) -> np.ndarray | None:
    """A weight as (N, K), reduction axes last, so that 2:4 holds in every four of K; None if it is no such matrix."""
    weight = gemm.weight
    if weight is None or not gemm.reduction_axes or gemm.groups > 1:
        return None
    positions = [axis for axis in range(weight.ndim) if axis not in (*gemm.output_axes, *gemm.reduction_axes)]
    matrix = weight.transpose((*gemm.output_axes, *positions, *gemm.reduction_axes))
    return matrix.reshape(math.prod(matrix.shape[: len(gemm.output_axes)]), -1)


def _run(device: SparseDevice, gemm: Gemm) -> ProductRun:
    matrix = weight_matrix(gemm)
    n, k = (0, 0) if matrix is None else matrix.shape

    def row(error: float | None, reason: str | None) -> ProductRun:
        return ProductRun(gemm.weight_name, gemm.op, n, k, error, reason)

    if matrix is None:
        return row(None, gemm.problem or ("grouped" if gemm.groups > 1 else "sums over no channels"))
    assert gemm.weight is not None
    if not standing(gemm.weight, gemm.reduction_axes).holds:
        return row(None, "not 2:4")
    inputs = math.prod(gemm.weight.shape[axis] for axis in gemm.reduction_axes)
    if bad := libraries.misaligned("fp16", m=None, n=n, k=inputs):
        return row(None, f"{' and '.join(bad)} no multiple of {libraries.ALIGNMENT['fp16'].sparse}")
    x = np.random.default_rng(0).standard_normal((_ROWS, k), np.float32)
    sparse, dense = (result.astype(np.float32) for result in device.run("fp16", matrix, x))
    largest = float(np.max(np.abs(dense)))
    return row(float(np.max(np.abs(sparse - dense))) / largest if largest else 0.0, None)
