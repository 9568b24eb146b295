"""cuSPARSELt by ctypes: finding the library of its wheel, and its functions with their types and errors.

Needs no device. ``tests/hardware/test_measure.py`` compares what is written here with the header in the wheel.
"""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path
from typing import Any

from tfmot_asp.hardware.c_library import CLibrary

OLDEST = (0, 8)  # older headers number the types of the sums differently

# Values of its enumerations, and of those of cuSPARSE and CUDA that it takes.
ORDER_COL, ORDER_ROW = 1, 2
NON_TRANSPOSE, TRANSPOSE = 0, 1
SPARSITY_50_PERCENT = 0
ALG_DEFAULT = 0
COMPUTE_32I, COMPUTE_32F = 0, 2
CUDA_R_16F, CUDA_R_8I, CUDA_R_32I = 2, 3, 10

# Descriptors are opaque, made and read by the library alone: of 512 bytes in 0.8 and 0.10, up to 11,024 before.
OPAQUE_BYTES, OPAQUE_ALIGNMENT = 16384, 16

_POINTER, _INT = ctypes.c_void_p, ctypes.c_int
_MATRIX = (_POINTER, _POINTER, *(ctypes.c_int64,) * 3, ctypes.c_uint32, _INT, _INT)
_MATMUL = (*(_POINTER,) * 9, _POINTER, ctypes.c_int32)

SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cusparseLtInit": (_POINTER,),
    "cusparseLtDestroy": (_POINTER,),
    "cusparseLtGetProperty": (_INT, _POINTER),
    "cusparseLtDenseDescriptorInit": _MATRIX,
    "cusparseLtStructuredDescriptorInit": (*_MATRIX, _INT),
    "cusparseLtMatDescriptorDestroy": (_POINTER,),
    "cusparseLtMatmulDescriptorInit": (_POINTER, _POINTER, _INT, _INT, *(_POINTER,) * 4, _INT),
    "cusparseLtMatmulAlgSelectionInit": (_POINTER, _POINTER, _POINTER, _INT),
    "cusparseLtMatmulAlgSelectionDestroy": (_POINTER,),
    "cusparseLtMatmulPlanInit": (_POINTER,) * 4,
    "cusparseLtMatmulPlanDestroy": (_POINTER,),
    "cusparseLtMatmulGetWorkspace": (_POINTER,) * 3,
    "cusparseLtMatmul": _MATMUL,
    "cusparseLtMatmulSearch": _MATMUL,
    "cusparseLtSpMMAPruneCheck": (_POINTER,) * 5,
    "cusparseLtSpMMACompressedSize": (_POINTER,) * 4,
    "cusparseLtSpMMACompress": (_POINTER,) * 6,
}


class Opaque:
    """Memory for a handle or a descriptor, which functions take as a pointer to it."""

    def __init__(self) -> None:
        self._memory = ctypes.create_string_buffer(OPAQUE_BYTES + OPAQUE_ALIGNMENT)
        address = ctypes.addressof(self._memory)
        self._as_parameter_ = ctypes.c_void_p(address + -address % OPAQUE_ALIGNMENT)


class CuSparseLt(CLibrary):
    """The library.

    Args:
        path: of ``libcusparseLt.so.0``.

    Attributes:
        version: such as ``(0, 8, 1)``.

    Raises:
        RuntimeError: if it is too old.
    """

    PREFIX, SIGNATURES, ERROR_TEXT = "cusparseLt", SIGNATURES, "cusparseLtGetErrorString"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.version = tuple(self._property(which) for which in range(3))
        if self.version < OLDEST:
            wanted, found = (".".join(map(str, version)) for version in (OLDEST, self.version))
            raise RuntimeError(f"cuSPARSELt {found} is too old, {wanted} or newer is needed: pip install -U its wheel")

    def _property(self, which: int) -> int:
        value = ctypes.c_int()
        self("GetProperty", which, ctypes.byref(value))
        return value.value


def find_library(cuda: int | None = None) -> Path | None:
    """The library in the wheel ``nvidia-cusparselt-cu12`` or ``-cu13``; None if neither is installed.

    Args:
        cuda: of both, the one for this major version of CUDA is taken.
    """
    try:
        spec = importlib.util.find_spec("nvidia")
    except ValueError:  # a package that was put into sys.modules by hand
        spec = None
    folders = [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]
    found = [path for folder in folders for path in sorted(folder.glob("*/lib/libcusparseLt.so.*"))]
    # The wheel for CUDA 12 has a folder "cusparselt", the one for 13 has "cu13", which all wheels for it share.
    wanted = "cusparselt" if (cuda or 12) < 13 else f"cu{cuda}"
    return min(found, key=lambda path: path.parts[-3] != wanted, default=None)
