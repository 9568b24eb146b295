"""A product of cuSPARSELt with a 2:4 weight, by its default algorithm or the one that its search finds."""

from __future__ import annotations

import ctypes
from typing import Any

from tfmot_asp.hardware import cusparselt
from tfmot_asp.hardware.cusparselt import CuSparseLt, Opaque
from tfmot_asp.hardware.product_types import ProductTypes

_ALIGNMENT = 16


class SparseProduct:
    """y[M, N] = x[M, K] @ w[N, K].T with a 2:4 weight, which is compressed first.

    Args:
        library: cuSPARSELt.
        handle: that it gave.
        stream: of CuPy's, that the product runs on.
        types: of the product.
        weight: (N, K) in the device's memory.
        x: (M, K) likewise.

    Attributes:
        result: (M, N).

    Raises:
        RuntimeError: if cuSPARSELt says that the weight is not 2:4.
    """

    def __init__(
        self, library: CuSparseLt, handle: Opaque, stream: Any, types: ProductTypes, weight: Any, x: Any
    ) -> None:
        import cupy

        self._call, self._handle, (n, k), m = library, handle, weight.shape, len(x)
        self._empty = lambda size: cupy.empty(max(int(size.value), 1), "uint8")
        self._stream = ctypes.c_void_p(stream.ptr)
        self._one, self._zero = ctypes.c_float(1), ctypes.c_float(0)
        self._x, self.result = x, cupy.zeros((m, n), types.result)
        self._matrices = sparse, dense, result = Opaque(), Opaque(), Opaque()
        self._product, self._choice, self._plan = Opaque(), Opaque(), Opaque()
        call = library
        of_operands = (_ALIGNMENT, types.cuda_operand, cusparselt.ORDER_ROW)
        half = cusparselt.SPARSITY_50_PERCENT
        call("StructuredDescriptorInit", handle, sparse, n, k, k, *of_operands, half)
        call("DenseDescriptorInit", handle, dense, m, k, k, *of_operands)
        call("DenseDescriptorInit", handle, result, n, m, n, _ALIGNMENT, types.cuda_result, cusparselt.ORDER_COL)
        sides = (cusparselt.NON_TRANSPOSE, cusparselt.TRANSPOSE, sparse, dense, result, result)
        call("MatmulDescriptorInit", handle, self._product, *sides, types.sparse_sums)
        call("MatmulAlgSelectionInit", handle, self._choice, self._product, cusparselt.ALG_DEFAULT)
        call("MatmulPlanInit", handle, self._plan, self._product, self._choice)
        wrong = cupy.zeros(1, "int32")
        call("SpMMAPruneCheck", handle, self._product, weight.data.ptr, wrong.data.ptr, self._stream)
        if int(wrong[0]):
            raise RuntimeError("cuSPARSELt says that the weight is not 2:4")
        size, scratch = ctypes.c_size_t(), ctypes.c_size_t()
        call("SpMMACompressedSize", handle, self._plan, ctypes.byref(size), ctypes.byref(scratch))
        self._compressed, temporary = self._empty(size), self._empty(scratch)
        pointers = (weight.data.ptr, self._compressed.data.ptr, temporary.data.ptr)
        call("SpMMACompress", handle, self._plan, *pointers, self._stream)
        stream.synchronize()
        self._size_workspace()

    def _size_workspace(self) -> None:
        size = ctypes.c_size_t()
        self._call("MatmulGetWorkspace", self._handle, self._plan, ctypes.byref(size))
        self._workspace = self._empty(size)

    def run(self) -> None:
        """Computes ``result``."""
        self._matmul("Matmul")

    def search(self) -> None:
        """Has the library look for the fastest algorithm, which ``run`` takes from then on."""
        self._matmul("MatmulSearch")
        self._size_workspace()

    def _matmul(self, name: str) -> None:
        out = self.result.data.ptr
        operands = (ctypes.byref(self._one), self._compressed.data.ptr, self._x.data.ptr)
        results = (ctypes.byref(self._zero), out, out, self._workspace.data.ptr)
        self._call(name, self._handle, self._plan, *operands, *results, ctypes.byref(self._stream), 1)

    def close(self) -> None:
        """Frees what the library holds for it."""
        self._call("MatmulPlanDestroy", self._plan)
        self._call("MatmulAlgSelectionDestroy", self._choice)
        for matrix in self._matrices:
            self._call("MatDescriptorDestroy", matrix)
