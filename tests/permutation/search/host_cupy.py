"""The few names of CuPy that the search uses, on NumPy, with kernels run on the host: for tests without a GPU.

Kernels are the ones of ``cuda/search.cu``, compiled as C++ (``host_cuda.h``). What this cannot show: speed, and races
between threads that only run at the same time on a device.
"""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np

from tfmot_asp.permutation.search import loader

COMPILER = shutil.which("g++") or shutil.which("c++")

asarray = np.ascontiguousarray
asnumpy = np.asarray
arange, empty, zeros, tile = np.arange, np.empty, np.zeros, np.tile

_FAILURES = {1: "deadlock: some threads wait at a barrier that others never reach", 2: "shared memory overrun"}


@functools.cache
def build(n: int, keep: int) -> ctypes.CDLL:
    """Compiles the kernels for the host."""
    here = Path(__file__).parent
    assert COMPILER is not None
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "search.so"
        subprocess.run(
            [COMPILER, "-std=c++14", "-O1", "-g", "-shared", "-fPIC", "-Wall", "-Werror", "-Wno-unknown-pragmas",
             "-fsanitize=undefined", "-fno-sanitize-recover=undefined", "-static-libubsan", f"-I{here}",
             f"-I{loader.source_path().parent}", f"-DSTRIPE={n}", f"-DKEEP={keep}",
             str(here / "host_launch.cpp"), "-o", str(library)],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        return ctypes.CDLL(str(library))


class Kernel:
    """Called like a ``cupy.RawKernel``."""

    max_dynamic_shared_size_bytes = 48 << 10

    def __init__(self, library: ctypes.CDLL, name: str) -> None:
        self.library = library
        self.name = name.encode()

    def __call__(
        self, grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...], shared_mem: int = 0
    ) -> None:
        assert shared_mem <= self.max_dynamic_shared_size_bytes
        words = []
        for value in args:
            if isinstance(value, np.ndarray):
                assert value.flags.c_contiguous
                words.append(value.ctypes.data)
            else:
                words.append(int(value) & (1 << 64) - 1)
        sizes = (ctypes.c_int * 3)(*(*grid, 1, 1)[:3])
        given = (ctypes.c_uint64 * len(words))(*words)
        launch = functools.partial(self._launch, sizes, int(np.prod(block)), int(shared_mem), given)
        if Stream.captured is None:
            launch()
        else:
            Stream.captured.append(launch)

    def _launch(self, *arguments: Any) -> None:
        failed = self.library.host_kernel(self.name, *arguments)
        assert not failed, f"{self.name.decode()}: {_FAILURES.get(failed, failed)}"


class Module:
    """Called like a ``cupy.RawModule``."""

    def __init__(self, n: int, keep: int) -> None:
        self.library = build(n, keep)

    def get_function(self, name: str) -> Kernel:
        return Kernel(self.library, name)


class Stream:
    """Runs what is launched at once, or, while it captures, when the graph is launched."""

    current: Stream | None = None
    captured: list[Callable[[], None]] | None = None

    def __init__(self, non_blocking: bool) -> None:
        assert non_blocking

    def __enter__(self) -> Stream:
        Stream.current = self
        return self

    def __exit__(self, *_: object) -> None:
        Stream.current = None

    def begin_capture(self) -> None:
        assert Stream.captured is None
        Stream.captured = []

    def end_capture(self) -> Graph:
        captured, Stream.captured = Stream.captured, None
        assert captured
        return Graph(captured)


class Graph:
    launches = 0

    def __init__(self, captured: list[Callable[[], None]]) -> None:
        self.captured = captured

    def launch(self) -> None:
        Graph.launches += 1
        for launch in self.captured:
            launch()


class Pool:
    freed: ClassVar[list[Stream]] = []

    def free_all_blocks(self, stream: Stream) -> None:
        Pool.freed.append(stream)


get_default_memory_pool = Pool


class _Event:
    def __init__(self, disable_timing: bool = False) -> None:
        pass

    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        pass


class Device:
    id = 0
    compute_capability = "90"
    attributes = {"MultiProcessorCount": 3, "MaxSharedMemoryPerBlockOptin": 16 << 10}  # noqa: RUF012


cuda = SimpleNamespace(Device=Device, Event=_Event, Stream=Stream, get_current_stream=lambda: Stream.current)
