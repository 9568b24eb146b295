"""What products are computed in, by precision: the types of their values, in the numbers of each library."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

from tfmot_asp.hardware import cublaslt, cusparselt


class ProductTypes(NamedTuple):
    """Types of one precision.

    Attributes:
        operand, result: names of the dtypes.
        cuda_operand, cuda_result: the same as ``cudaDataType``.
        sparse_sums: a ``cusparseComputeType``.
        dense_sums: a ``cublasComputeType_t``.
        cuda_scalar: of alpha and beta for cuBLAS and cuBLASLt, as ``cudaDataType``; for cuSPARSELt they are float.
        scalar: the same as a type of ``ctypes``.
    """

    operand: str
    result: str
    cuda_operand: int
    cuda_result: int
    sparse_sums: int
    dense_sums: int
    cuda_scalar: int
    scalar: Any


PRODUCT_TYPES = {
    "fp16": ProductTypes(
        *("float16", "float16", cusparselt.CUDA_R_16F, cusparselt.CUDA_R_16F),
        *(cusparselt.COMPUTE_32F, cublaslt.COMPUTE_32F, cublaslt.CUDA_R_32F, ctypes.c_float),
    ),
    "int8": ProductTypes(
        *("int8", "int32", cusparselt.CUDA_R_8I, cusparselt.CUDA_R_32I),
        *(cusparselt.COMPUTE_32I, cublaslt.COMPUTE_32I, cusparselt.CUDA_R_32I, ctypes.c_int32),
    ),
}
