"""cuBLASLt by ctypes: its functions with their types, and a dense product with a choice of algorithms.

Needs no device to be imported. ``tests/hardware/test_cublaslt.py`` compares what is written here with the header.
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

from tfmot_asp.hardware.c_library import CLibrary

# Values of its enumerations, and of those of cuBLAS and CUDA that it takes.
OP_N, OP_T = 0, 1
COMPUTE_32F, COMPUTE_32I = 68, 72
CUDA_R_32F = 0
MATMUL_DESC_TRANSA = 3  # takes an int32
MATMUL_PREF_MAX_WORKSPACE_BYTES = 1  # takes a uint64

_POINTER, _INT, _SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
_ATTRIBUTE = (_POINTER, _INT, _POINTER, _SIZE)

SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cublasLtCreate": (_POINTER,),
    "cublasLtMatmulDescCreate": (_POINTER, _INT, _INT),
    "cublasLtMatmulDescDestroy": (_POINTER,),
    "cublasLtMatmulDescSetAttribute": _ATTRIBUTE,
    "cublasLtMatrixLayoutCreate": (_POINTER, _INT, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int64),
    "cublasLtMatrixLayoutDestroy": (_POINTER,),
    "cublasLtMatmulPreferenceCreate": (_POINTER,),
    "cublasLtMatmulPreferenceDestroy": (_POINTER,),
    "cublasLtMatmulPreferenceSetAttribute": _ATTRIBUTE,
    "cublasLtMatmulAlgoGetHeuristic": (*(_POINTER,) * 7, _INT, _POINTER, _POINTER),
    "cublasLtMatmul": (*(_POINTER,) * 14, _SIZE, _POINTER),
}


class Algo(ctypes.Structure):
    """``cublasLtMatmulAlgo_t``, opaque."""

    _fields_ = (("data", ctypes.c_uint64 * 8),)


class HeuristicResult(ctypes.Structure):
    """``cublasLtMatmulHeuristicResult_t``: an algorithm, and what it needs; valid if ``state`` is 0."""

    _fields_ = (
        ("algo", Algo),
        ("workspaceSize", _SIZE),
        ("state", _INT),
        ("wavesCount", ctypes.c_float),
        ("reserved", _INT * 4),
    )


class CuBlasLt(CLibrary):
    """The library, with a handle on the current device.

    Args:
        path: of ``libcublasLt.so``.

    Attributes:
        handle: which its functions take first.
    """

    PREFIX, SIGNATURES, ERROR_TEXT = "cublasLt", SIGNATURES, "cublasLtGetStatusString"

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.handle = ctypes.c_void_p()
        self("Create", ctypes.byref(self.handle))


class Types(NamedTuple):
    """What a product is computed in.

    Attributes:
        operand, result: values of ``cudaDataType``.
        scalar: of alpha and beta, likewise.
        sums: a value of ``cublasComputeType_t``.
        one, zero: alpha and beta, of that scalar type.
    """

    operand: int
    result: int
    scalar: int
    sums: int
    one: Any
    zero: Any


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
        library: CuBlasLt,
        types: Types,
        sizes: tuple[int, int, int],
        pointers: tuple[int, int, int],
        workspace: tuple[int, int],
        stream: int,
    ) -> None:
        self._library, self._types, (m, n, k) = library, types, sizes
        self._pointers, self._workspace, self._stream = pointers, workspace, stream
        self._made: list[tuple[str, ctypes.c_void_p]] = []
        self._product = self._create("MatmulDesc", types.sums, types.scalar)
        self._set("MatmulDesc", self._product, MATMUL_DESC_TRANSA, ctypes.c_int32(OP_T))
        self._w = self._create("MatrixLayout", types.operand, k, n, k)
        self._x = self._create("MatrixLayout", types.operand, k, m, k)
        self._y = self._create("MatrixLayout", types.result, n, m, n)

    def algorithms(self, most: int) -> list[HeuristicResult]:
        """Those that the library would try, by its guess the fastest first.

        Raises:
            RuntimeError: if it has none.
        """
        preference = self._create("MatmulPreference")
        self._set("MatmulPreference", preference, MATMUL_PREF_MAX_WORKSPACE_BYTES, ctypes.c_uint64(self._workspace[1]))
        found, count = (HeuristicResult * most)(), ctypes.c_int()
        operands = (self._w, self._x, self._y, self._y)
        self._library(
            "MatmulAlgoGetHeuristic",
            *(self._library.handle, self._product, *operands, preference),
            *(most, found, ctypes.byref(count)),
        )
        return [result for result in found[: count.value] if result.state == 0]

    def run(self, algorithm: HeuristicResult) -> None:
        """Computes y.

        Raises:
            RuntimeError: if the algorithm cannot.
        """
        w, x, y = self._pointers
        self._library(
            "Matmul",
            *(self._library.handle, self._product, ctypes.byref(self._types.one), w, self._w, x, self._x),
            *(ctypes.byref(self._types.zero), y, self._y, y, self._y),
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
