"""How long the products of a model's kernels take on a GPU, dense and 2:4."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tfmot_asp.hardware import libraries
from tfmot_asp.hardware.cost_model import CostModel
from tfmot_asp.keras_models.kernels import Kernel

if TYPE_CHECKING:
    from tfmot_asp.graph.products import GemmSize


@dataclass(frozen=True)
class ProductTime:
    """Estimated times of all calls of a product of one size. See ``cost_model.estimate``.

    Attributes:
        dense_us: microseconds with the dense kernel.
        sparse_us: with the 2:4 one; None if there is none for this weight.
        error: standard error of ``speedup``, relative; None if there is none.
    """

    dense_us: float
    sparse_us: float | None
    error: float | None

    @property
    def speedup(self) -> float | None:
        """How many times as fast the 2:4 kernel is; below 1 it is slower."""
        return self.dense_us / self.sparse_us if self.sparse_us else None

    @property
    def best_us(self) -> float:
        """Microseconds with the faster of the two, which is what a library takes once the weight is 2:4."""
        return self.dense_us if self.sparse_us is None else min(self.dense_us, self.sparse_us)


def product_times(kernel: Kernel, gemms: Sequence[GemmSize], model: CostModel) -> tuple[ProductTime, ...]:
    """The times of a kernel's products, one for each of ``gemms``."""
    usable = why_no_sparse_kernel(kernel, model.precision) is None
    return tuple(_time(size, model, usable) for size in gemms)


def dense_time(gemms: Sequence[GemmSize], model: CostModel) -> float:
    """Microseconds of products that are dense whatever is pruned."""
    return sum(_time(size, model, False).dense_us for size in gemms)


def why_no_sparse_kernel(kernel: Kernel, precision: str) -> str | None:
    """Why no 2:4 kernel takes this weight in a precision, whose times are cuSPARSELt's; None if one does."""
    verdict = libraries.tensorrt_verdict(kernel)
    if not verdict.usable:
        return verdict.reason
    n, k, multiple = kernel.output_size, kernel.reduction_size, libraries.ALIGNMENT[precision].sparse
    bad = libraries.misaligned(precision, m=None, n=n, k=k)
    sides = (("K", f"{k} inputs"), ("N", f"{n} outputs"))
    return next((f"{side}, no multiple of {multiple}" for name, side in sides if name in bad), None)


def _time(size: GemmSize, model: CostModel, usable: bool) -> ProductTime:
    """A grouped or batched product, which is one launch, counts as one with as many more rows."""
    sizes = (size.m * size.groups, size.n, size.k)
    if not all((*sizes, size.calls)):
        return ProductTime(0.0, None, None)
    dense, sparse, error = (float(value[0]) for value in model.predict(np.array([sizes], np.float64)))
    return ProductTime(dense * size.calls, sparse * size.calls if usable else None, error if usable else None)
