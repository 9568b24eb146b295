"""cuBLASLt by ctypes: its functions with their types, its structures and its errors.

Needs no device. ``tests/hardware/test_cublaslt.py`` compares what is written here with the header.
"""

from __future__ import annotations

import ctypes
from typing import Any

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
