"""How long a matrix product takes on a GPU, dense and 2:4: from times that were measured there, for any size.

Two parts. A roofline in four terms, fitted to the times: what every launch costs, the multiply-adds at the rate of the
chip (in whole waves of tiles, as kernels run), the bytes that are moved, and the sums over K one after the other that
no parallelism shortens. It is right to a few per cent on average and holds beyond the sizes that were measured. What it
leaves, the habits of a library's kernels, is smooth in the logarithms of M, N and K: a Gaussian process (kriging, with
a Matérn covariance of 3/2) on them says how far off it is near the sizes that were measured, and how sure that is. The
ratio of both times is known better than either, since what goes wrong with one goes wrong with the other: it has a
process of its own, and the three are reconciled.
"""

from __future__ import annotations

import functools
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tfmot_asp.hardware.precision import check_precision
from tfmot_asp.hardware.timing_table import SHIPPED, Array, read_table
from tfmot_asp.keras_models.checks import check_count
from tfmot_asp.types import StrPath

_TILE = 128  # rows and columns of an output that one block of threads computes
OPERAND_BYTES = {"fp16": 2, "int8": 1}
RESULT_BYTES = {"fp16": 2, "int8": 4}
PRECISIONS = tuple(OPERAND_BYTES)
_SPARSE_BYTES = 9 / 16  # of a dense weight in fp16: half the values, and two bits of position for each

# Of the processes: how far their values reach, in doublings of M, N or K; how far off the roofline is; how far off a
# measurement is. Chosen by cross-validation on the H100's times: within a factor of two none matters much.
_REACH, _SPREAD, _NOISE = 3.0, 0.10, 0.05

# A gain above this is only promised if no gain at all lies two standard errors away.
_CAUTIOUS_FROM, _STANDARD_ERRORS = 1.1, 2.5


@dataclass(frozen=True)
class Estimate:
    """What a product takes.

    Attributes:
        dense_us: microseconds of the dense kernel.
        sparse_us: microseconds of the 2:4 kernel.
        error: standard error of ``speedup``, relative: 0.05 is 5 %. It grows with the distance from what was measured.
    """

    dense_us: float
    sparse_us: float
    error: float

    @property
    def speedup(self) -> float:
        """How many times as fast the 2:4 kernel is; below 1 it is slower, and a library takes the dense one."""
        return self.dense_us / self.sparse_us


def estimate(m: int, n: int, k: int, *, precision: str = "fp16", gpu: StrPath = "H100") -> Estimate:
    """How long one matrix product takes on a GPU, dense and with a 2:4 weight.

    The figures are those of the best kernel of cuBLAS and of cuSPARSELt (after its algorithm search), one product after
    the other without a gap. A convolution is taken for the product that it comes down to; whatever else a layer does is
    left out.

    Args:
        m: rows, positions: batch times tokens, or times the pixels of a convolution's output.
        n: output channels.
        k: input channels, times the positions of a convolution's kernel.
        precision: ``"fp16"`` or ``"int8"``.
        gpu: ``"H100"`` or ``"H100-tuned"``, of which times come with the package, or a JSON file of times of the same
            form. The dense times of the first are of the default algorithms, those of the second of the fastest.

    Returns:
        An ``Estimate``.

    Raises:
        TypeError: if a size is no integer, or ``gpu`` no name or path.
        ValueError: if a size is less than 1, or there are no times for this GPU or precision.
        FileNotFoundError: if ``gpu`` is a path and there is no such file.

    Example:
        >>> tfmot_asp.hardware.estimate(8192, 4096, 4096).speedup > tfmot_asp.hardware.estimate(128, 512, 512).speedup
        True
    """
    named = (("m", m), ("n", n), ("k", k))
    sizes = [check_count(value, name, "a number of rows or channels", "1 or more") for name, value in named]
    model = cost_model(gpu, precision)
    dense, sparse, error = model.predict(np.array([sizes], np.float64))
    return Estimate(float(dense[0]), float(sparse[0]), float(error[0]))


def cost_model(gpu: StrPath, precision: str) -> CostModel:
    """The model of a GPU in a precision, fitted once. See ``estimate``."""
    known = ", ".join(map(repr, SHIPPED))
    if not isinstance(gpu, (str, os.PathLike)):
        raise TypeError(f"gpu must be {known} or the path of a .json file of times, got {gpu!r}")
    path = {name.upper(): file for name, file in SHIPPED.items()}.get(str(gpu).upper(), Path(gpu))
    if path.suffix != ".json":
        raise ValueError(f"no times are known for gpu={str(gpu)!r}; it must be {known} or a .json file of times")
    path = path.resolve()
    return _fitted(path, path.stat().st_mtime_ns, check_precision(precision, PRECISIONS))


@functools.lru_cache
def _fitted(path: Path, written: int, precision: str) -> CostModel:
    table = read_table(path)
    sizes, dense, sparse = table.of(precision)
    if len(sizes) < LEAST_PRODUCTS:
        raise ValueError(
            f"{str(path)!r} has {len(sizes)} products in {precision}; at least {LEAST_PRODUCTS} are needed"
        )
    return CostModel(
        sizes, dense, sparse, precision, table.multiprocessors, table.gpu, dense_was_searched=table.dense_was_searched
    )


# The logarithms of a roofline's parameters to start from: microseconds of a launch, and of 1,000 sums over K; TFLOP/s;
# GB/s; how sharply one limit gives way to the next; the power of K; and the share of whole waves, as a logit.
_START = {"launch": 2.5, "sums": 1.0, "rate": 800.0, "bandwidth": 2500.0, "blend": 2.0, "power": 0.75, "waves": 1.0}

_LARGEST_POWER = 3.0  # of K: a table of few sizes may ask for any, and times would overflow

LEAST_PRODUCTS = len(_START)  # so many parameters ask for as many times


class CostModel:
    """Times of products as a function of their sizes.

    Args:
        sizes: (products, 3) M, N and K of what was measured.
        dense_us, sparse_us: (products,) their times.
        precision: ``"fp16"`` or ``"int8"``.
        processors: streaming multiprocessors of the GPU.
        gpu: its name.
        dense_was_searched: whether the dense times are of the fastest algorithm.

    Attributes:
        gpu: its name.
        precision: as given.
        dense_was_searched: as given.
    """

    def __init__(
        self,
        sizes: Array,
        dense_us: Array,
        sparse_us: Array,
        precision: str,
        processors: int,
        gpu: str = "",
        *,
        dense_was_searched: bool = True,
    ) -> None:
        self.gpu, self.precision, self.dense_was_searched = gpu, precision, dense_was_searched
        self._sizes, self._processors = sizes, processors
        dense, sparse = np.log(dense_us), np.log(sparse_us)
        self._dense, self._sparse = self._fit(dense, 1.0), self._fit(sparse, _SPARSE_BYTES)
        expected_dense, expected_sparse = self._rooflines(sizes)
        self._left = np.stack(
            [dense - expected_dense, sparse - expected_sparse, (dense - sparse) - (expected_dense - expected_sparse)],
            axis=1,
        )

    def predict(self, sizes: Array) -> tuple[Array, Array, Array]:
        """Microseconds dense, microseconds 2:4, and the relative standard error of their ratio, of each product."""
        covariance = _covariance(self._sizes, self._sizes) + _NOISE**2 * np.eye(len(self._sizes))
        shared = _covariance(sizes, self._sizes)
        weights = np.linalg.solve(covariance, shared.T).T
        left = weights @ self._left
        variance = np.maximum(_SPREAD**2 - np.einsum("ij,ij->i", weights, shared), 0) + _NOISE**2
        dense, sparse = self._rooflines(sizes)
        ratio = dense - sparse + left[:, 2]
        dense, sparse = dense + left[:, 0], sparse + left[:, 1]
        # All three have the same variance, so each of the times gives way by a third of what they disagree by.
        disagreement = ratio - (dense - sparse)
        dense, sparse = dense + disagreement / 3, sparse - disagreement / 3
        gain, error = dense - sparse, np.sqrt(2 / 3 * variance)
        doubtful = (gain > math.log(_CAUTIOUS_FROM)) & (gain < _STANDARD_ERRORS * error)
        sparse = np.where(doubtful, dense - math.log(_CAUTIOUS_FROM), sparse)
        return np.exp(dense), np.exp(sparse), error

    def _rooflines(self, sizes: Array) -> tuple[Array, Array]:
        """Logarithms of the times by the fitted rooflines, dense and 2:4."""
        dense = self._roofline(self._dense, sizes, 1.0)
        return np.log(dense), np.log(self._roofline(self._sparse, sizes, _SPARSE_BYTES))

    def _fit(self, times: Array, share: float) -> Array:
        from scipy.optimize import least_squares

        def off(values: Array) -> Array:
            return np.log(self._roofline(values, self._sizes, share)) - times

        return least_squares(off, np.log(list(_START.values())), loss="soft_l1", f_scale=0.1).x

    def _roofline(self, values: Array, sizes: Array, share: float) -> Array:
        """Microseconds; ``share``: bytes of the weight, of those of a dense one."""
        at = dict(zip(_START, np.exp(np.clip(values, -20, 20)), strict=True))
        m, n, k = sizes.T
        tiles = np.ceil(m / _TILE) * np.ceil(n / _TILE)
        whole = np.ceil(tiles / self._processors) * self._processors
        waves = at["waves"] / (1 + at["waves"])
        work = 2e-6 * _TILE**2 * k * whole**waves * tiles ** (1 - waves) / at["rate"]
        operands = OPERAND_BYTES[self.precision] * (m * k + share * n * k)
        moved = 1e-3 * (operands + RESULT_BYTES[self.precision] * m * n) / at["bandwidth"]
        sums = at["sums"] * (k / 1000) ** min(at["power"], _LARGEST_POWER)
        blend = 1 + at["blend"]
        most = np.maximum(np.maximum(work, moved), sums)  # taken out, so that no power overflows
        return at["launch"] + most * sum((part / most) ** blend for part in (work, moved, sums)) ** (1 / blend)


def _covariance(first: Array, second: Array) -> Array:
    difference = (np.log2(first)[:, None] - np.log2(second)[None]) / _REACH
    distance = np.sqrt(3 * np.sum(difference**2, axis=-1))
    return _SPREAD**2 * (1 + distance) * np.exp(-distance)
