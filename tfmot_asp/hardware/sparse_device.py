"""Products on this machine's GPU, 2:4 by cuSPARSELt, dense by cuBLAS and cuBLASLt, and their times.

All products are y[M, N] = x[M, K] @ w[N, K].T of row-major matrices. For all libraries y is the column-major N x M.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tfmot_asp.hardware import cublaslt, cuda_device, cusparselt, device_values
from tfmot_asp.hardware.cublaslt import CuBlasLt
from tfmot_asp.hardware.cusparselt import CuSparseLt, Opaque
from tfmot_asp.hardware.dense_product import DenseProduct
from tfmot_asp.hardware.product_types import PRODUCT_TYPES
from tfmot_asp.hardware.sparse_product import SparseProduct

logger = logging.getLogger(__name__)

PER_GRAPH, REPEATS = 20, 8
_WORKSPACE_BYTES = 32 << 20  # what cuBLAS recommends for Hopper
TOLERANCE = 0.01  # of fp16, summed in another order and rounded once
_CUBLAS_DEFAULT = -1

ALGORITHMS = 16  # of cuBLASLt's, how many are tried
_TRIALS, _TRIAL_US = 3, 1000  # the best of so many graphs of about so long decides between them


class Samples(NamedTuple):
    """Microseconds of one product, once for each repetition. What a search does not find has the default's."""

    dense_default: list[float]
    dense_searched: list[float]
    sparse_default: list[float]
    sparse_searched: list[float]


def why_not() -> str | None:
    """What is missing on this machine, and what to do about it; None if products can be run here."""
    if (problem := cuda_device.why_no_cupy()) is not None:
        return problem
    if cusparselt.find_library() is None:
        return "cuSPARSELt is not installed; install nvidia-cusparselt-cu12 or nvidia-cusparselt-cu13"
    if not Path("/proc/self/maps").exists():
        return "products can be measured on Linux only"
    if (problem := cuda_device.why_no_device()) is not None:
        return problem
    import cupy

    capability, oldest = cupy.cuda.Device().compute_capability, cuda_device.OLDEST_CAPABILITY
    if int(capability) < oldest:
        return f"the GPU has compute capability {capability}, and sparse Tensor Cores came with {oldest}"
    return None


class SparseDevice:
    """This machine's GPU, with both libraries.

    Attributes:
        gpu: its name.
        multiprocessors: how many it has.
        driver: version of its driver.
        versions: of the libraries, by name.

    Raises:
        RuntimeError: if something is missing, see ``why_not``.
    """

    def __init__(self) -> None:
        if (why := why_not()) is not None:
            raise RuntimeError(f"products cannot be run on a GPU here: {why}")
        import cupy

        self._cupy = cupy
        runtime = cupy.cuda.runtime
        path = cusparselt.find_library(runtime.runtimeGetVersion() // 1000)
        assert path is not None  # why_not has looked
        facts = runtime.getDeviceProperties(cupy.cuda.Device().id)
        self.gpu, self.multiprocessors = facts["name"].decode(), int(facts["multiProcessorCount"])
        self.driver = _driver() or f"for CUDA {runtime.driverGetVersion() // 1000}"
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._sparse, self._handle = CuSparseLt(path), Opaque()
        self._sparse("Init", self._handle)
        # Of cuBLAS, CuPy's copy with a handle of our own: CuPy itself refuses to call it while a graph is captured.
        assert cupy.cuda.Device().cublas_handle  # loads it
        self._cublas, self._cublas_handle = ctypes.CDLL(_loaded("libcublas.so")), ctypes.c_void_p()
        self._workspace = cupy.empty(_WORKSPACE_BYTES, "uint8")
        self._dense("Create", ctypes.byref(self._cublas_handle))
        self._dense("SetStream", self._cublas_handle, ctypes.c_void_p(self._stream.ptr))
        workspace = ctypes.c_void_p(self._workspace.data.ptr), ctypes.c_size_t(_WORKSPACE_BYTES)
        self._dense("SetWorkspace", self._cublas_handle, *workspace)
        version = ctypes.c_int()
        self._dense("GetVersion", self._cublas_handle, ctypes.byref(version))
        self.versions = {
            "CuPy": cupy.__version__,
            "cuBLAS": str(version.value),
            "cuSPARSELt": ".".join(map(str, self._sparse.version)),
        }

    @property
    def free_bytes(self) -> int:
        """Of the device's memory."""
        return cuda_device.free_bytes()

    def times(self, precision: str, m: int, n: int, k: int) -> Samples:
        """Times of a product of random values: dense with a weight that is not pruned, then with one that is 2:4.

        Raises:
            RuntimeError: if a library fails, or they do not compute the same.
        """
        cupy, types = self._cupy, PRODUCT_TYPES[precision]
        with self._stream:
            generator = cupy.random.RandomState(0)
            x, weight = (cupy.empty((rows, k), types.operand) for rows in (m, n))
            for array in (x, weight):
                device_values.fill_normal(cupy, generator, array)
            run_dense, dense = self._dense_product(precision, weight, x)
            samples = [self._timed(run_dense)]
            samples.append(self._searched_dense(precision, weight, x, dense, samples[0]))
            device_values.fill_normal(cupy, generator, weight, two_four=True)
            run_dense()
            with self._sparse_product(precision, weight, x) as product:
                samples.append(self._timed(product.run))
                _check_equal(product.result, dense, "cuSPARSELt")
                product.search()
                samples.append(self._timed(product.run))
                _check_equal(product.result, dense, "cuSPARSELt")
        return Samples(*samples)

    def _searched_dense(self, precision: str, weight: Any, x: Any, dense: Any, default: list[float]) -> list[float]:
        """Times of cuBLASLt's fastest algorithm, which must compute ``dense``; the default's times if none runs."""
        types, (n, k), m = PRODUCT_TYPES[precision], weight.shape, len(x)
        result = self._cupy.zeros((m, n), types.result)
        pointers = weight.data.ptr, x.data.ptr, result.data.ptr
        workspace = self._workspace.data.ptr, _WORKSPACE_BYTES
        product = DenseProduct(self._cublaslt, types, (m, n, k), pointers, workspace, self._stream.ptr)
        with contextlib.closing(product):
            launches = max(2, min(PER_GRAPH, int(_TRIAL_US / min(default))))
            if (run := self._fastest(product, launches)) is None:
                return default
            result.fill(0)
            times = self._timed(run)
            _check_equal(result, dense, "cuBLASLt")
        return times

    def _fastest(self, product: DenseProduct, launches: int) -> Callable[[], None] | None:
        """A function that runs the fastest of cuBLASLt's algorithms; None if none runs."""
        trials, failed = [], []
        try:
            for algorithm in product.algorithms(ALGORITHMS):
                run = functools.partial(product.run, algorithm)
                try:
                    trials.append((min(self._timed(run, launches, _TRIALS)), run))
                except RuntimeError as error:
                    failed.append(error)
        except RuntimeError as error:  # it has none
            failed.append(error)
        if not trials:
            logger.warning("cuBLASLt runs no algorithm of a dense product; its default is taken: %s", failed)
        return min(trials, key=lambda trial: trial[0])[1] if trials else None

    def run(self, precision: str, weight: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What both libraries compute of a 2:4 weight (N, K) and of activations (M, K): (M, N) sparse and dense.

        Raises:
            RuntimeError: if cuSPARSELt says that the weight is not 2:4.
        """
        cupy, dtype = self._cupy, PRODUCT_TYPES[precision].operand
        with self._stream:
            on_device = [cupy.asarray(np.ascontiguousarray(values, dtype)) for values in (weight, x)]
            run_dense, dense = self._dense_product(precision, *on_device)
            run_dense()
            with self._sparse_product(precision, *on_device) as product:
                product.run()
                return cupy.asnumpy(product.result), cupy.asnumpy(dense)

    def _sparse_product(self, precision: str, weight: Any, x: Any) -> contextlib.closing[SparseProduct]:
        types = PRODUCT_TYPES[precision]
        return contextlib.closing(SparseProduct(self._sparse, self._handle, self._stream, types, weight, x))

    def _dense_product(self, precision: str, weight: Any, x: Any) -> tuple[Callable[[], None], Any]:
        """A function that runs it, and where the result is then."""
        types, (n, k), m = PRODUCT_TYPES[precision], weight.shape, len(x)
        result = self._cupy.zeros((m, n), types.result)
        one, zero = types.scalar(1), types.scalar(0)
        operands = [(ctypes.c_void_p(array.data.ptr), types.cuda_operand, k) for array in (weight, x)]
        sides = cublaslt.OP_T, cublaslt.OP_N, n, m, k
        arguments = (
            *(self._cublas_handle, *sides, ctypes.byref(one), *operands[0], *operands[1]),
            *(ctypes.byref(zero), ctypes.c_void_p(result.data.ptr), types.cuda_result, n),
            *(types.dense_sums, _CUBLAS_DEFAULT),
        )
        return lambda: self._dense("GemmEx", *arguments), result

    def _dense(self, name: str, *arguments: Any) -> None:
        """Calls a function of cuBLAS."""
        suffix = "" if name == "GemmEx" else "_v2"
        status = getattr(self._cublas, f"cublas{name}{suffix}")(*arguments)
        if status:
            raise RuntimeError(f"cublas{name} failed with status {status}")

    @functools.cached_property
    def _cublaslt(self) -> CuBlasLt:
        """cuBLASLt, which cuBLAS itself calls."""
        return CuBlasLt(_loaded("libcublasLt.so"))

    def _timed(self, run: Callable[[], None], launches: int = PER_GRAPH, repeats: int = REPEATS) -> list[float]:
        """Microseconds of one run, in a graph of many, as often as it is repeated."""
        cupy, stream = self._cupy, self._stream
        run()
        stream.synchronize()
        stream.begin_capture()
        try:
            for _ in range(launches):
                run()
        finally:  # a stream that captures can do nothing else
            graph = stream.end_capture()
        graph.launch(stream)
        start, end = cupy.cuda.Event(), cupy.cuda.Event()
        times = []
        for _ in range(repeats):
            start.record(stream)
            graph.launch(stream)
            end.record(stream)
            end.synchronize()
            times.append(1000 * cupy.cuda.get_elapsed_time(start, end) / launches)
        return times


def _check_equal(result: Any, expected: Any, library: str) -> None:
    apart, largest = device_values.difference(result, expected)
    error = apart / max(largest, 1.0)
    if not error <= (TOLERANCE if expected.dtype == np.float16 else 0.0):  # sums of integers are exact
        raise RuntimeError(f"{library}'s result differs from cuBLAS's by {error:.3g} of its largest value")


def _driver() -> str | None:
    path = Path("/proc/driver/nvidia/version")
    found = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", path.read_text()) if path.exists() else None
    return found[0] if found else None


def _loaded(name: str) -> str:
    """The path of a library that this process has loaded."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.split(maxsplit=5)[-1]
        if Path(path).name.startswith(name):
            return path
    raise RuntimeError(f"CuPy did not load {name}")
