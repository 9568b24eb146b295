"""cuBLASLt without a GPU: which product it is asked for, which algorithm is taken, and what its header says."""

import contextlib
import ctypes
import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

from tests.hardware import fake_gpu
from tfmot_asp.hardware import cublaslt, measure, sparse_device
from tfmot_asp.hardware.dense_product import DenseProduct
from tfmot_asp.hardware.product_types import PRODUCT_TYPES

SIZES = [(32 * i, 64, 32 * j) for i in (1, 2) for j in (1, 2, 3, 4)]


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    return fake_gpu.install(monkeypatch, tmp_path)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize(("m", "n", "k"), [(16, 32, 64), (48, 64, 32), (1, 32, 32)])
def test_the_search_times_the_product(gpu, monkeypatch, precision, m, n, k):
    monkeypatch.setattr(fake_gpu.CuBlasLt, "algorithms", (80.0, 30.0))
    generator, kind = np.random.default_rng(0), {"fp16": np.float16, "int8": np.int8}[precision]
    w, x = (fake_gpu.array(generator.integers(-9, 10, (rows, k)).astype(kind)) for rows in (n, m))
    expected = fake_gpu.array((x.astype(int) @ w.T.astype(int)).astype({"fp16": kind, "int8": np.int32}[precision]))
    device = sparse_device.SparseDevice()
    assert device._searched_dense(precision, w, x, expected, [50.0]) == pytest.approx([30.0] * sparse_device.REPEATS)
    expected[-1, -1] += 1
    with pytest.raises(RuntimeError, match="cuBLASLt's result differs from cuBLAS's by"):
        device._searched_dense(precision, w, x, fake_gpu.array(2 * expected), [50.0])
    assert fake_gpu.CuBlasLt.live.known == {}


@pytest.mark.parametrize(
    ("algorithms", "best"),
    [((80.0, None, 30.0, 40.0), 30), ((None, None, 20.0), 20), ((70.0, 60.0), 50), ((None, None), 50), ((), 50)],
)
def test_the_fastest_algorithm_that_runs_is_taken_else_the_default(gpu, monkeypatch, caplog, algorithms, best):
    monkeypatch.setattr(fake_gpu.CuBlasLt, "algorithms", algorithms)
    table = measure(products=SIZES)
    assert {(row.dense_default_us, row.dense_us) for row in table.rows} == {(50, best)}
    assert ("cuBLASLt runs no algorithm" in caplog.text) == (not any(algorithms))
    assert fake_gpu.CuBlasLt.live.known == {}
    ran = fake_gpu.CuBlasLt.live.ran
    assert set(ran) == {i for i, us in enumerate(algorithms) if us}
    assert max(ran, key=ran.get, default=None) == min(ran, key=lambda i: algorithms[i], default=None)


@pytest.mark.parametrize(("precision", "wrong"), [("fp16", 1000), ("int8", 1)])
def test_a_wrong_result_of_the_search_ends_it(gpu, monkeypatch, precision, wrong):
    monkeypatch.setattr(fake_gpu.CuBlasLt, "wrong", wrong)
    with pytest.raises(RuntimeError, match=f"32 x 64 x 32 in {precision}: cuBLASLt's result differs from cuBLAS's by"):
        measure(products=SIZES, precisions=[precision])


def test_large_products_are_tried_a_few_times(gpu, monkeypatch):
    monkeypatch.setattr(fake_gpu, "DEFAULT_US", 2000.0)
    monkeypatch.setattr(fake_gpu.CuBlasLt, "algorithms", (1000.0, *(2000.0,) * 30))
    sparse_device.SparseDevice().times("fp16", 16, 32, 64)
    ran = fake_gpu.CuBlasLt.live.ran
    assert ran == {0: 3 + 1 + sparse_device.PER_GRAPH, **dict.fromkeys(range(1, sparse_device.ALGORITHMS), 3)}


def test_products_are_run_without_it(gpu, monkeypatch):
    monkeypatch.setattr(fake_gpu.CuBlasLt, "Create", lambda self, out: 1)
    device, ones = sparse_device.SparseDevice(), np.ones((32, 32), int)
    device.run("fp16", np.tile([1, 0, 1, 0], (32, 8)), ones)
    with pytest.raises(RuntimeError, match="cublasLtCreate failed with status 1: no good"):
        device.times("fp16", 16, 32, 64)


# The library


def wheel(name):
    """A file of NVIDIA's wheel of cuBLAS, for CUDA 12 or 13; None if it is not installed."""
    spec = importlib.util.find_spec("nvidia")
    folders = (spec and spec.submodule_search_locations) or ()
    return next((path for folder in folders for path in Path(folder).glob(f"*/{name}")), None)


HEADER = wheel("include/cublasLt.h")
installed = pytest.mark.skipif(HEADER is None, reason="the wheel nvidia-cublas or nvidia-cublas-cu12 is not installed")
C_TYPES = {"int": ctypes.c_int, "int64_t": ctypes.c_int64, "uint64_t": ctypes.c_uint64, "size_t": ctypes.c_size_t}
HANDLES = ("cudaStream_t", "cublasLtHandle_t", *(f"cublasLt{name}_t" for name in ("MatmulDesc", "MatrixLayout")))
POINTERS = {*HANDLES, "cublasLtMatmulPreference_t"}


def code(header):
    """Its text without comments, and without what Visual C++'s annotations are."""
    return re.sub(r"/\*.*?\*/|//[^\n]*|\b_\w+_(\(\w*\))?(?= )", "", header.read_text(), flags=re.DOTALL)


def here(kind):
    if "*" in kind or "[]" in kind or kind in POINTERS:
        return ctypes.c_void_p
    return C_TYPES.get(kind, ctypes.c_int)  # the rest are enumerations


@installed
def test_what_is_written_here_is_what_the_header_says():
    header, of_cublas = code(HEADER), code(HEADER.with_name("cublas_api.h"))
    for name, types_here in cublaslt.SIGNATURES.items():
        (given,) = re.findall(rf"\b{name}\(([^)]*)\)", header)
        arguments = [" ".join(argument.replace("*", "* ").split()) for argument in given.split(",")]
        kinds = [re.sub(r"\w+(\[\])?$", r"\1", argument).strip() for argument in arguments]
        assert [here(kind) for kind in kinds] == list(types_here), (name, kinds)
        assert f"cublasStatus_t CUBLASWINAPI {name}(" in header
    for text, prefix, names in (
        (header, "CUBLASLT_", ("MATMUL_DESC_TRANSA", "MATMUL_PREF_MAX_WORKSPACE_BYTES")),
        (of_cublas, "CUBLAS_", ("OP_N", "OP_T", "COMPUTE_32F", "COMPUTE_32I")),
    ):
        for name in names:
            (value,) = re.findall(rf"\b{prefix}{name} = (\d+)", text)
            assert int(value) == getattr(cublaslt, name), name


@installed
def test_the_structures_are_those_of_the_header():
    header = code(HEADER)
    named = {"cublasLtMatmulAlgo_t": cublaslt.Algo, "cublasStatus_t": ctypes.c_int, "float": ctypes.c_float, **C_TYPES}
    for name, structure in (
        ("cublasLtMatmulAlgo_t", cublaslt.Algo),
        ("cublasLtMatmulHeuristicResult_t", cublaslt.HeuristicResult),
    ):
        (body,) = re.findall(rf"typedef struct \{{([^}}]*)\}} {name};", header)
        fields = re.findall(r"(\w+) (\w+)(?:\[(\d+)\])?;", body)
        expected = [(field, named[kind] * int(count) if count else named[kind]) for kind, field, count in fields]
        assert list(structure._fields_) == expected


@installed
def test_the_library_takes_the_descriptors():
    path = wheel("lib/libcublasLt.so.*")
    if sparse_device.why_not() is not None:
        with pytest.raises(RuntimeError, match="cublasLtCreate failed with status"):
            cublaslt.CuBlasLt(path)
    library = cublaslt.CuBlasLt.__new__(cublaslt.CuBlasLt)
    cublaslt.CLibrary.__init__(library, path)
    library.handle = ctypes.c_void_p()
    product = DenseProduct(library, PRODUCT_TYPES["int8"], (48, 32, 64), (1, 2, 3), (4, 1 << 20), 5)
    with contextlib.closing(product), pytest.raises(RuntimeError, match="AlgoGetHeuristic failed"):  # has no handle
        product.algorithms(4)
