"""The CUDA side without a GPU: every source compiles, and on the host it gives the CPU's results, bit for bit."""

import contextlib
import ctypes
import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import tfmot_asp
from tests.permutation.search import host_cupy
from tfmot_asp import search
from tfmot_asp.permutation import pipeline
from tfmot_asp.permutation.search import annealing, api, batches, cpu, cuda, geometry, loader, search_many
from tfmot_asp.permutation.search.effort import Workload

SOURCES = sorted(loader.source_path().parent.glob("*.cu"))
ARCHITECTURES = (80, 86, 89, 90, 100)

needs_compiler = pytest.mark.skipif(host_cupy.COMPILER is None, reason="no C++ compiler")


def nvrtc() -> ctypes.CDLL:
    """NVIDIA's run-time compiler, from its wheel."""
    root = pytest.importorskip("nvidia.cuda_nvrtc", reason="pip install nvidia-cuda-nvrtc-cu12")
    libraries = [path for folder in root.__path__ for path in Path(folder).rglob("libnvrtc.so*")]
    return ctypes.CDLL(str(libraries[0]))


def compile_source(source: str, options: tuple[str, ...]) -> tuple[int, str, int]:
    """Status, log and size of the machine code."""
    library = nvrtc()
    program = ctypes.c_void_p()
    assert library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"search.cu", 0, None, None) == 0
    given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    status = library.nvrtcCompileProgram(program, len(options), given)
    size = ctypes.c_size_t()
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    size.value = 0
    library.nvrtcGetCUBINSize(program, ctypes.byref(size))
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return status, log.value.decode(), size.value


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_every_source_compiles_for_every_chip(source, architecture):
    options = (*loader.options(4, 2), f"--gpu-architecture=sm_{architecture}")
    status, log, size = compile_source(source.read_text(encoding="utf-8"), options)
    assert status == 0, log
    assert log.strip("\0 \n") == ""
    assert size > 1000


@pytest.mark.parametrize(("n", "keep"), [(2, 1), (4, 1), (4, 3), (8, 4), (16, 15)])
def test_every_pattern_compiles(n, keep):
    status, log, _ = compile_source(
        loader.source_path().read_text(encoding="utf-8"), (*loader.options(n, keep), "--gpu-architecture=sm_90")
    )
    assert status == 0, log


def test_a_broken_source_does_not_compile():
    source = loader.source_path().read_text(encoding="utf-8").replace("atomicAdd(", "atomicAdds(")
    status, log, _ = compile_source(source, (*loader.options(4, 2), "--gpu-architecture=sm_90"))
    assert status != 0
    assert "atomicAdds" in log


@pytest.fixture
def host(monkeypatch):
    """CuPy replaced by NumPy, and the device by the host."""
    monkeypatch.setitem(sys.modules, "cupy", host_cupy)
    monkeypatch.setattr(loader, "module", lambda n, keep, device: host_cupy.Module(n, keep))
    monkeypatch.setattr(loader, "why_not", lambda needed=0: None)


PLANS = [
    (64, 48, 4, 2, Workload(chains=2, epochs=1, blocks=1, rounds=8)),
    (70, 32, 4, 2, Workload(chains=1, epochs=3, blocks=2, rounds=2)),
    (33, 64, 8, 4, Workload(chains=1, epochs=1, blocks=1, rounds=5)),
    (24, 16, 2, 1, Workload(chains=2, epochs=1, blocks=1, rounds=10)),
    (83, 16, 16, 9, Workload(chains=1, epochs=1, blocks=1, rounds=5)),
    # more than one tile, more rows than a chunk, and costs that do not all fit the shared memory
    (290, 144, 4, 2, Workload(chains=1, epochs=1, blocks=1, rounds=3)),
    # as many stripes as a block can have
    (512, 16, 2, 1, Workload(chains=1, epochs=1, blocks=1, rounds=2)),
]


@needs_compiler
@pytest.mark.parametrize("ties", [False, True], ids=["", "ties"])
@pytest.mark.parametrize(("columns", "rows", "n", "keep", "work"), PLANS)
def test_rounds_are_those_of_the_cpu(host, columns, rows, n, keep, work, ties):
    most = 2 if ties else 4095
    codes = np.random.default_rng(columns).integers(0, most + 1, (columns, rows)).astype(np.uint16)
    expected, _ = cpu.search_codes(codes, n, keep, work, 7, 2, lambda fraction: False)
    (orders,), stopped = cuda.search_all([cuda.Problem(codes, work)], n, keep, 7, lambda fraction: False)
    assert not stopped
    for order, other in zip(orders, expected, strict=True):
        np.testing.assert_array_equal(order, other)
        assert (order != np.arange(columns)).any()


@needs_compiler
@pytest.mark.parametrize("shared", [16 << 10, 227 << 10], ids=["costs-that-do-not-fit", "costs-that-fit"])
@pytest.mark.parametrize("stripes", [1, 31, 33, 70, 129, 175, 255])
def test_any_number_of_stripes(host, monkeypatch, stripes, shared):
    monkeypatch.setitem(host_cupy.Device.attributes, "MaxSharedMemoryPerBlockOptin", shared)
    codes = np.random.default_rng(stripes).integers(0, 4096, (2 * stripes, 16)).astype(np.uint16)
    work = Workload(chains=1, epochs=1, blocks=1, rounds=2)
    (orders,), _ = cuda.search_all([cuda.Problem(codes, work)], 2, 1, 7, lambda fraction: False)
    expected, _ = cpu.search_codes(codes, 2, 1, work, 7, 2, lambda fraction: False)
    np.testing.assert_array_equal(orders, expected)


@needs_compiler
def test_matrices_that_are_searched_together_do_not_see_each_other(host, monkeypatch):
    """Of several sizes, rows and rounds, with one block and several, with spans of epochs that end in the middle."""
    monkeypatch.setattr(annealing, "DEALT", 40)
    works = [
        Workload(chains=2, epochs=1, blocks=1, rounds=9),
        Workload(chains=1, epochs=5, blocks=3, rounds=2),
        Workload(chains=1, epochs=1, blocks=1, rounds=3),
        Workload(chains=2, epochs=4, blocks=2, rounds=3),
    ]
    shapes = [(41, 64), (70, 16), (300, 144), (36, 80)]
    rng = np.random.default_rng(3)
    codes = [rng.integers(0, 4096, shape).astype(np.uint16) for shape in shapes]
    problems = [cuda.Problem(c, w) for c, w in zip(codes, works, strict=True)]
    fractions = []
    found, stopped = cuda.search_all(problems, 4, 2, 11, lambda fraction: bool(fractions.append(fraction)))
    assert not stopped
    assert fractions[0] == 0.0
    assert fractions[-1] == 1.0
    for problem, orders in zip(problems, found, strict=True):
        expected, _ = cpu.search_codes(*problem[:1], 4, 2, problem.work, 11, 2, lambda fraction: False)
        np.testing.assert_array_equal(orders, expected)


@needs_compiler
def test_steps_that_are_alike_run_as_a_graph(host, monkeypatch):
    monkeypatch.setattr(cuda, "IN_FLIGHT", 2)
    monkeypatch.setattr(annealing, "DEALT", 18 * 7)
    works = [Workload(chains=2, epochs=1, blocks=1, rounds=25), Workload(chains=1, epochs=20, blocks=2, rounds=2)]
    rng = np.random.default_rng(3)
    problems = [cuda.Problem(rng.integers(0, 4096, (70, 16)).astype(np.uint16), work) for work in works]
    launched = host_cupy.Graph.launches
    found, _ = cuda.search_all(problems, 4, 2, 11, lambda fraction: False)
    # 25 of 40 steps are of both, 15 of the second alone, whose stripes are dealt out for 7 epochs, 14 steps, at a time.
    # The first two load the kernels. Then come graphs of two steps: 6 till the 14th, 5 till the 25th, where one step is
    # left; none till the 28th, which is too near for another graph; and 6 till the end.
    assert host_cupy.Graph.launches - launched == 6 + 5 + 6
    assert host_cupy.Stream.current is host_cupy.Stream.captured is None
    for problem, orders in zip(problems, found, strict=True):
        expected, _ = cpu.search_codes(*problem[:1], 4, 2, problem.work, 11, 2, lambda fraction: False)
        np.testing.assert_array_equal(orders, expected)


@needs_compiler
def test_memory_is_given_back_also_when_interrupted(host):
    def interrupt(fraction):
        raise KeyboardInterrupt

    codes = np.random.default_rng(0).integers(0, 4096, (40, 16)).astype(np.uint16)
    problem = cuda.Problem(codes, Workload(chains=1, epochs=1, blocks=1, rounds=4))
    for tick in (lambda fraction: False, interrupt):
        freed = len(host_cupy.Pool.freed)
        with contextlib.suppress(KeyboardInterrupt):
            cuda.search_all([problem], 4, 2, 0, tick)
        assert len(host_cupy.Pool.freed) == freed + 1


@needs_compiler
def test_search_many_is_search(host, monkeypatch):
    monkeypatch.setattr(api, "make_workload", lambda *shape: Workload(chains=2, epochs=1, blocks=1, rounds=8))
    rng = np.random.default_rng(0)
    outliers = rng.normal(size=(40, 30))
    outliers[0] *= 1e6  # two scales
    matrices = [
        rng.normal(size=(30, 50)),
        np.zeros((5, 60)),
        rng.normal(size=(9, 8)),
        outliers,
        rng.normal(size=(7, 3)),
    ]
    for device in ("cpu", "cuda"):
        for matrix, result in zip(matrices, search_many(matrices, device=device), strict=True):
            alone = search(matrix, device="cpu")
            np.testing.assert_array_equal(result.permutation, alone.permutation)
            assert result.retained_after == alone.retained_after
    assert search_many([]) == []


@needs_compiler
def test_the_groups_of_a_model_are_searched_together(host, monkeypatch):
    import tf_keras

    monkeypatch.setattr(api, "make_workload", lambda *shape: Workload(chains=1, epochs=1, blocks=1, rounds=5))

    def build():
        tf_keras.utils.set_random_seed(0)
        dense = [tf_keras.layers.Dense(width, "relu") for width in (48, 32, 64, 16)]
        return tf_keras.Sequential([tf_keras.Input((24,)), *dense])

    alone = tfmot_asp.permute(build(), device="cpu", effort="fast")
    real, sizes = api.search_many, []
    monkeypatch.setattr(pipeline, "search_many", lambda m, **options: sizes.append(len(m)) or real(m, **options))
    monkeypatch.setattr(batches.cuda_device, "free_bytes", lambda: 1 << 30)
    for most in (1 << 26, 4000):
        monkeypatch.setattr(batches, "MOST_TOGETHER", most)
        together = tfmot_asp.permute(build(), device="cuda", effort="fast")
        assert [group.order for group in together.groups] == [group.order for group in alone.groups]
    assert sizes == [3, 2, 1]


@needs_compiler
def test_search_on_cuda_is_search_on_cpu(host, monkeypatch):
    monkeypatch.setattr(api, "make_workload", lambda *shape: Workload(chains=2, epochs=1, blocks=1, rounds=10))
    matrix = np.random.default_rng(0).normal(size=(30, 50))
    expected = search(matrix, device="cpu")
    result = search(matrix, device="cuda")
    np.testing.assert_array_equal(result.permutation, expected.permutation)
    assert (result.device, expected.device) == ("cuda", "cpu")
    assert result.retained_after == expected.retained_after


@needs_compiler
def test_host_kernels_report_what_a_device_would_not_forgive():
    library = host_cupy.build(4, 2)
    assert library.host_kernel(b"no such kernel", None, 1, 0, None) == 3


def test_cuda_by_name_does_it_or_says_why(monkeypatch):
    monkeypatch.setattr(loader, "why_not", lambda needed: "there is no CUDA device")
    with pytest.raises(RuntimeError, match=r"device='cuda' cannot be used: there is no CUDA device.*'auto'"):
        search(np.ones((4, 64)), device="cuda")


def test_auto_falls_back_and_logs_why(monkeypatch, caplog):
    monkeypatch.setattr(loader, "why_not", lambda needed: "there is no CUDA device")
    with caplog.at_level(logging.INFO, logger="tfmot_asp.permutation.search"):
        result = search(np.random.default_rng(0).random((1024, 256)), effort="fast")
        search(np.ones((4, 64)), effort="fast")
    assert result.device == "cpu"
    assert "searching on the CPU: there is no CUDA device" in caplog.text
    assert "searching on the CPU: 4 x 64 is too small" in caplog.text


def test_missing_cupy_names_the_extras(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert "install tfmot-asp[cuda12] or tfmot-asp[cuda13]" in (loader.why_not() or "")


@pytest.mark.parametrize(
    ("count", "capability", "reason"),
    [(0, "90", "no CUDA device"), (1, "75", "capability 75, and 80 or newer"), (1, "90", None), (1, "120", None)],
)
def test_old_or_absent_devices_are_refused(monkeypatch, count, capability, reason):
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy(count, capability))
    found = loader.why_not(1000)
    assert found is None if reason is None else reason in (found or "")


def fake_cupy(count: int, capability: str) -> SimpleNamespace:
    device = SimpleNamespace(compute_capability=capability, mem_info=(2 << 30, 80 << 30))
    runtime = SimpleNamespace(getDeviceCount=lambda: count)
    pool = SimpleNamespace(free_bytes=lambda: 1 << 30)
    return SimpleNamespace(
        cuda=SimpleNamespace(runtime=runtime, Device=lambda: device), get_default_memory_pool=lambda: pool
    )


def test_too_little_device_memory_is_said_in_time(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy(1, "90"))
    assert loader.why_not(3 << 30) is None
    with pytest.raises(RuntimeError, match=r"needs 40\.0 GiB of device memory, and 3\.0 GiB are free"):
        api.choose_device("cuda", 10**10, 40 << 30)
    assert api.choose_device("auto", 10**10, 40 << 30)[0] == "cpu"
    assert api.choose_device("auto", 10**10, 1 << 30) == ("cuda", None)


def test_device_memory_is_counted(host):
    work = Workload(chains=2, epochs=1, blocks=1, rounds=1)
    problems = [cuda.Problem(np.zeros((columns, 48), np.uint16), work) for columns in (700, 1030)]
    batch = cuda._Batch(host_cupy, host_cupy.Module(4, 2), problems, 4, 0, host_cupy.cuda.Device.attributes)
    on_the_host = (batch.host_tasks, batch.chains, batch.sizes, batch.rows, batch.totals)
    arrays = [v for v in vars(batch).values() if isinstance(v, np.ndarray) and not any(v is h for h in on_the_host)]
    counted = sum(geometry.device_bytes(columns, 48, 4, work) for columns in (700, 1030))
    assert counted == pytest.approx(sum(array.nbytes for array in arrays), rel=0.05)


def test_sources_are_found_or_the_error_says_where_it_looked():
    assert loader.source_path().is_file()
    with pytest.raises(FileNotFoundError, match=r"nothing.cu is neither in .*cuda nor in .*cuda: reinstall"):
        loader.source_path("nothing.cu")
