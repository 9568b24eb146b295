"""Measuring without a GPU: a model of both libraries computes what they are asked, and the header says how to ask."""

import ctypes
import dataclasses
import importlib.util
import json
import re
import sys
import types

import numpy as np
import pytest

import tfmot_asp
from tests.hardware import fake_gpu
from tfmot_asp.cli import main
from tfmot_asp.hardware import cusparselt, device_values, measure, measurement, sparse_device
from tfmot_asp.hardware.timing_table import SHIPPED, TimedProduct, TimingTable, read_table, sizes_of_shipped

SIZES = [(32 * i, 64, 32 * j) for i in (1, 2) for j in (1, 2, 3, 4)]


def times_of(row):
    return row.dense_default_us, row.dense_us, row.sparse_default_us, row.sparse_us


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    return fake_gpu.install(monkeypatch, tmp_path)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize(("m", "n", "k"), [(16, 32, 64), (48, 64, 32), (1, 32, 32)])
def test_both_libraries_are_asked_for_the_same_product(gpu, precision, m, n, k):
    generator = np.random.default_rng(0)
    weight, x = generator.integers(-9, 10, (n, k)), generator.integers(-9, 10, (m, k))
    weight[:, 1::4] = weight[:, 2::4] = 0
    device = sparse_device.SparseDevice()
    sparse, dense = device.run(precision, weight, x)
    np.testing.assert_array_equal(sparse, x @ weight.T)
    np.testing.assert_array_equal(dense, x @ weight.T)
    assert device._sparse.known == {key: value for key, value in device._sparse.known.items() if len(value) == 4}
    weight[0, :3] = 1
    with pytest.raises(RuntimeError, match="cuSPARSELt says that the weight is not 2:4"):
        device.run(precision, weight, x)


def test_a_table_is_measured_written_and_taken(gpu, tmp_path, monkeypatch):
    path, seen = tmp_path / "mine.json", []
    table = measure(path, products=SIZES, on_product=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 16) for i in range(17)]
    assert read_table(path) == table
    assert [(row.precision, row.M, row.N, row.K) for row in table.rows] == [
        (precision, *size) for precision in ("fp16", "int8") for size in SIZES
    ]
    assert {times_of(row) for row in table.rows} == {(50.0, 50.0, 50.0, 50.0)}
    assert (table.gpu, table.multiprocessors) == ("Fake GPU", 10)
    assert "cuSPARSELt 0.8.1" in table.sparse
    assert "cuBLAS 120000 through CuPy 0" in table.dense
    assert json.loads(path.read_text()).keys() == json.loads(SHIPPED["H100"].read_text()).keys()
    assert tfmot_asp.hardware.estimate(64, 64, 64, gpu=path).speedup == pytest.approx(1, abs=0.05)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        measure(path, products=SIZES)
    measure(path, products=SIZES, precisions=("float16",), overwrite=True)
    assert {row.precision for row in read_table(path).rows} == {"fp16"}


def test_the_median_counts_and_the_better_algorithm(gpu, monkeypatch):
    samples = sparse_device.Samples([5, 1, 3], [2, 9, 0], [9, 7, 8], [10, 2, 30])
    monkeypatch.setattr(sparse_device.SparseDevice, "times", lambda self, *size: samples)
    row = measure(products=SIZES).rows[0]
    assert times_of(row) == (3, 2, 8, 8)


def test_different_results_end_it_and_nothing_is_written(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(fake_gpu.CuSparseLt, "wrong", 1000.0)
    with pytest.raises(
        RuntimeError, match="product 32 x 64 x 32 in fp16: cuSPARSELt's result differs from cuBLAS's by"
    ):
        measure(tmp_path / "mine.json", products=SIZES)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(fake_gpu.CuSparseLt, "wrong", 1)
    with pytest.raises(RuntimeError, match="32 in int8: cuSPARSELt's result differs"):  # to the last bit
        measure(products=SIZES, precisions=["int8"])


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("size", [(512, 32, 64), (64, 512, 256), (32, 64, 1024), (16, 32, 32)])
def test_no_product_takes_more_memory_than_was_said(gpu, monkeypatch, precision, size):
    monkeypatch.setattr(device_values, "BLOCK", 1 << 12)
    device, memory = sparse_device.SparseDevice(), fake_gpu.MEMORY
    before = memory.peak = sum(memory.sizes.values())
    device.times(precision, *size)
    assert sum(memory.sizes.values()) == before
    block = device_values.BLOCK * device_values.BYTES_PER_VALUE
    assert measurement.needed_bytes(precision, size) / 2 - block < memory.peak - before
    assert memory.peak - before <= measurement.needed_bytes(precision, size)


def test_what_does_not_fit_is_left_out(gpu, monkeypatch, caplog):
    most = int(0.8 * (1 << 30))
    for precision in ("fp16", "int8"):
        assert any(measurement.needed_bytes(precision, size) > most for size in sizes_of_shipped(precision))
    samples = sparse_device.Samples([1], [1], [1], [1])
    monkeypatch.setattr(sparse_device.SparseDevice, "times", lambda self, *size: samples)
    table = measure()
    assert len(table.rows) < 166
    assert f"{166 - len(table.rows)} of 166 products do not fit" in caplog.text
    assert all(measurement.needed_bytes(row.precision, (row.M, row.N, row.K)) <= most for row in table.rows)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"path": "mine.txt"}, ValueError, r"a \.json file, got 'mine\.txt'"),
        ({"precisions": ("fp32",)}, ValueError, "precisions must be one of 'fp16', 'int8'"),
        ({"products": SIZES[:3]}, ValueError, "at least 7 products, got 3"),
        ({"products": [(32, 48, 32)] * 7}, ValueError, "in int8 M must be a multiple of 16, and N and K of 32"),
        ({"products": [(0, 32, 32)] * 7}, ValueError, "product 0 x 32 x 32"),
    ],
)
def test_bad_options_come_before_the_device(options, error, match):
    with pytest.raises(error, match=match):
        measure(**options)


def test_what_is_missing_is_named(gpu, monkeypatch, tmp_path, capsys):
    assert sparse_device.why_not() is None
    for module, words in (
        (fake_gpu.cupy(devices=0), "there is no CUDA device"),
        (fake_gpu.cupy(capability="75"), "compute capability 75, and sparse Tensor Cores came with 80"),
        (None, r"install tfmot-asp\[cuda12\] or tfmot-asp\[cuda13\]"),
    ):
        monkeypatch.setitem(sys.modules, "cupy", module)
        with pytest.raises(RuntimeError, match=words):
            measure()
    monkeypatch.setitem(sys.modules, "cupy", gpu)
    monkeypatch.setattr(gpu.cuda.runtime, "getDeviceCount", lambda: 1 // 0)
    assert "CuPy finds no usable CUDA driver" in sparse_device.why_not()
    monkeypatch.setattr(cusparselt, "find_library", lambda cuda=None: None)
    assert main(["measure", "-o", str(tmp_path / "mine.json")]) == 2
    assert "install nvidia-cusparselt-cu12 or nvidia-cusparselt-cu13" in capsys.readouterr().err


def test_the_command(gpu, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(measurement, "sizes_of_shipped", lambda precision: SIZES)
    path = tmp_path / "mine.json"
    assert main(["measure", "-o", str(path), "--precision", "int8", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) == len(SIZES) == len(read_table(path).rows)
    assert main(["measure", "-o", str(path), "--force"]) == 0
    out = capsys.readouterr().out
    assert "int8       64  64  128  50.0      50.0    1.00" in out
    assert f"Wrote {path}: give it to --gpu" in out


def test_a_table_from_before_the_search_among_dense_algorithms_is_read(tmp_path):
    table = read_table(SHIPPED["H100"])
    table.save(tmp_path / "again.json")
    written, shipped = (json.loads(path.read_text()) for path in (tmp_path / "again.json", SHIPPED["H100"]))
    for row in shipped["rows"]:
        row.setdefault("dense_default_us", row["dense_us"])
    assert written == shipped
    assert read_table(tmp_path / "again.json") == table
    assert len(sizes_of_shipped("fp16")) + len(sizes_of_shipped("int8")) == 166


@pytest.mark.parametrize("sizes", [{"M": 0}, {"dense_us": float("nan")}, {"sparse_us": -1.0}])
def test_a_table_with_impossible_numbers_is_refused(tmp_path, sizes):
    row = dataclasses.replace(TimedProduct("fp16", 1, 1, 1, 1, 1, 1, 1), **sizes)
    TimingTable("A", 1, "", "", "", "", (row,)).save(tmp_path / "bad.json")
    with pytest.raises(ValueError, match="must be positive"):
        read_table(tmp_path / "bad.json")


# The library


def test_the_wheel_for_this_cuda_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cusparselt.find_library() is None
    spec = types.SimpleNamespace(submodule_search_locations=[str(tmp_path / "a"), str(tmp_path / "b")])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert cusparselt.find_library() is None
    paths = {}
    for root, folder in (("b", "cu13"), ("a", "cusparselt")):
        paths[folder] = tmp_path / root / folder / "lib" / "libcusparseLt.so.0"
        paths[folder].parent.mkdir(parents=True)
        paths[folder].touch()
        assert cusparselt.find_library(12) == cusparselt.find_library() == paths.get("cusparselt", paths["cu13"])
        assert cusparselt.find_library(13) == paths["cu13"]


def test_an_older_library_is_refused_and_errors_are_in_its_words(monkeypatch):
    def get_property(which, value):
        value._obj.value = (0, 7, 1)[which]
        return 0

    def fails(*arguments):
        return 3

    def text(status):
        return b"no good"

    library = types.SimpleNamespace(
        cusparseLtGetProperty=get_property, cusparseLtGetErrorString=text, cusparseLtInit=fails
    )
    monkeypatch.setattr(cusparselt.ctypes, "CDLL", lambda path: library)
    with pytest.raises(RuntimeError, match=r"cuSPARSELt 0\.7\.1 is too old, 0\.8 or newer is needed"):
        cusparselt.CuSparseLt("x")
    monkeypatch.setattr(cusparselt, "OLDEST", (0, 7))
    with pytest.raises(RuntimeError, match="cusparseLtInit failed with status 3: no good"):
        cusparselt.CuSparseLt("x")("Init", cusparselt.Opaque())


WHEEL = cusparselt.find_library()
installed = pytest.mark.skipif(WHEEL is None, reason="the wheel nvidia-cusparselt-cu12 or -cu13 is not installed")
C_TYPES = {
    "int": ctypes.c_int,
    "int32_t": ctypes.c_int32,
    "int64_t": ctypes.c_int64,
    "uint32_t": ctypes.c_uint32,
    "size_t": ctypes.c_size_t,
    "cudaStream_t": ctypes.c_void_p,
}


@installed
def test_what_is_written_here_is_what_the_header_says():
    header = (WHEEL.parent.parent / "include" / "cusparseLt.h").read_text()
    header = re.sub(r"//.*", "", header)
    for name, types_here in cusparselt.SIGNATURES.items():
        (given,) = re.findall(rf"{name}\(([^)]*)\)", header)
        kinds = [" ".join(argument.split()[:-1]) for argument in given.replace("*", "* ").split(",")]
        assert len(kinds) == len(types_here), name
        for kind, here in zip(kinds, types_here, strict=True):
            expected = ctypes.c_void_p if "*" in kind else C_TYPES.get(kind, ctypes.c_int)  # the rest are enumerations
            assert here is expected, (name, kind)
    for size in re.findall(r"uint8_t data\[(\d+)\]", header):
        assert int(size) <= cusparselt.OPAQUE_BYTES
    assert set(re.findall(r"alignas\((\d+)\) uint8_t", header)) == {str(cusparselt.OPAQUE_ALIGNMENT)}
    (sums,) = re.findall(r"typedef enum \{([^}]*)\} cusparseComputeType", header)
    order = [word.strip() for word in sums.split(",")]
    assert order.index("CUSPARSE_COMPUTE_32I") == cusparselt.COMPUTE_32I
    assert order.index("CUSPARSE_COMPUTE_32F") == cusparselt.COMPUTE_32F
    for name, value in (
        ("Sparsity_t", "CUSPARSELT_SPARSITY_50_PERCENT"),
        ("MatmulAlg_t", "CUSPARSELT_MATMUL_ALG_DEFAULT"),
    ):
        (values,) = re.findall(rf"typedef enum \{{([^}}]*)\}} cusparseLt{name}", header)
        assert values.split(",")[0].strip() == value  # the first is 0
    assert (cusparselt.SPARSITY_50_PERCENT, cusparselt.ALG_DEFAULT) == (0, 0)


@installed
def test_the_library_loads_and_tells_its_version():
    library = cusparselt.CuSparseLt(WHEEL)
    assert library.version >= cusparselt.OLDEST
    if sparse_device.why_not() is not None:
        with pytest.raises(RuntimeError, match="cusparseLtInit failed"):
            library("Init", cusparselt.Opaque())
