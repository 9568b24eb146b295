"""A dense product of cuBLASLt, with the choice of its algorithm."""

from __future__ import annotations

import ctypes
from typing import Any

from tfmot_asp.hardware import cublaslt
from tfmot_asp.hardware.product_types import ProductTypes


class DenseProduct:
    """y[M, N] = x[M, K] @ w[N, K].T, of row-major matrices in the device's memory.

    The library counts column-major: w is K x N, to be transposed, x is K x M, and y is N x M.

    Args:
        library: with its handle.
        types: of the product.
        sizes: M, N and K.
        pointers: to w, x and y, which the caller keeps alive, as the workspace.
        workspace: pointer to it, and its bytes.
        stream: pointer to the stream that it runs on.
    """

    def __init__(
        self,
        library: cublaslt.CuBlasLt,
        types: ProductTypes,
        sizes: tuple[int, int, int],
        pointers: tuple[int, int, int],
        workspace: tuple[int, int],
        stream: int,
    ) -> None:
        self._library, (m, n, k) = library, sizes
        self._one, self._zero = types.scalar(1), types.scalar(0)
        self._pointers, self._workspace, self._stream = pointers, workspace, stream
        self._made: list[tuple[str, ctypes.c_void_p]] = []
        self._product = self._create("MatmulDesc", types.dense_sums, types.cuda_scalar)
        self._set("MatmulDesc", self._product, cublaslt.MATMUL_DESC_TRANSA, ctypes.c_int32(cublaslt.OP_T))
        self._w = self._create("MatrixLayout", types.cuda_operand, k, n, k)
        self._x = self._create("MatrixLayout", types.cuda_operand, k, m, k)
        self._y = self._create("MatrixLayout", types.cuda_result, n, m, n)

    def algorithms(self, most: int) -> list[cublaslt.HeuristicResult]:
        """Those that the library would try, by its guess the fastest first.

        Raises:
            RuntimeError: if it has none.
        """
        preference = self._create("MatmulPreference")
        self._set(
            "MatmulPreference",
            preference,
            cublaslt.MATMUL_PREF_MAX_WORKSPACE_BYTES,
            ctypes.c_uint64(self._workspace[1]),
        )
        found, count = (cublaslt.HeuristicResult * most)(), ctypes.c_int()
        operands = (self._w, self._x, self._y, self._y)
        self._library(
            "MatmulAlgoGetHeuristic",
            *(self._library.handle, self._product, *operands, preference),
            *(most, found, ctypes.byref(count)),
        )
        return [result for result in found[: count.value] if result.state == 0]

    def run(self, algorithm: cublaslt.HeuristicResult) -> None:
        """Computes y.

        Raises:
            RuntimeError: if the algorithm cannot.
        """
        w, x, y = self._pointers
        self._library(
            "Matmul",
            *(self._library.handle, self._product, ctypes.byref(self._one), w, self._w, x, self._x),
            *(ctypes.byref(self._zero), y, self._y, y, self._y),
            *(ctypes.byref(algorithm.algo), *self._workspace, self._stream),
        )

    def close(self) -> None:
        """Frees what the library holds for it."""
        while self._made:
            kind, made = self._made.pop()
            self._library(f"{kind}Destroy", made)

    def _create(self, kind: str, *arguments: int) -> ctypes.c_void_p:
        made = ctypes.c_void_p()
        self._library(f"{kind}Create", ctypes.byref(made), *arguments)
        self._made.append((kind, made))
        return made

    def _set(self, kind: str, of: ctypes.c_void_p, attribute: int, value: Any) -> None:
        self._library(f"{kind}SetAttribute", of, attribute, ctypes.byref(value), ctypes.sizeof(value))
