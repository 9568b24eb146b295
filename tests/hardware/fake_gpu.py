# ruff: noqa: N802  # functions have the names that the libraries give them
"""What `hardware.sparse_device` uses of CuPy, cuBLAS and cuSPARSELt, in NumPy: enough to see which product is computed.

Both libraries read their operands from the pointers that they are given, by the sizes, strides, orders and transposes
that they are told, as their documentation defines them, so that a wrong one gives a wrong product.
"""

import ctypes
import sys
import types

import numpy as np

from tfmot_asp.hardware import cusparselt, sparse_device

TYPES = {2: np.float16, 3: np.int8, 10: np.int32}
ROW = 2
POINTERS = {}  # keeps alive, and finds, what has a pointer


def at(pointer, rows, cols, ld, order, kind):
    """The matrix of a column-major or row-major array in memory, to read and to write."""
    address = getattr(pointer, "value", pointer)
    lines, length = (rows, cols) if order == ROW else (cols, rows)
    kind = np.dtype(TYPES[kind])
    memory = (ctypes.c_uint8 * (((lines - 1) * ld + length) * kind.itemsize)).from_address(address)
    strides = (ld * kind.itemsize, kind.itemsize)
    array = np.ndarray((lines, length), kind, memory, strides=strides)
    return array if order == ROW else array.T


class Array(np.ndarray):
    """An array with CuPy's `.data.ptr`."""

    def __array_finalize__(self, source):
        pass

    @property
    def data(self):
        POINTERS[self.ctypes.data] = self
        return types.SimpleNamespace(ptr=self.ctypes.data)


def array(values):
    return np.ascontiguousarray(values).view(Array)


class Stream:
    ptr = 7

    def __init__(self, non_blocking=False):
        assert non_blocking
        self.capturing = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def synchronize(self):
        assert not self.capturing

    def begin_capture(self):
        self.capturing = True

    def end_capture(self):
        self.capturing = False
        return types.SimpleNamespace(launch=lambda stream: None)


class Event:
    def record(self, stream):
        pass

    def synchronize(self):
        pass


def cupy(devices=1, capability="90"):
    """The module."""
    numpy_names = {"floor": np.floor, "__version__": "0"}
    arrays = {
        "asarray": array,
        "asnumpy": lambda a: np.array(a, subok=False),
        "empty": lambda shape, dtype: array(np.empty(shape, dtype)),
        "zeros": lambda shape, dtype: array(np.zeros(shape, dtype)),
    }

    class RandomState:
        def __init__(self, seed):
            self.generator = np.random.default_rng(seed)

        def random_sample(self, size, dtype):
            return array(self.generator.random(size, dtype))

    device = types.SimpleNamespace(id=0, mem_info=(1 << 30, 1 << 31), cublas_handle=1, compute_capability=capability)
    runtime = types.SimpleNamespace(
        getDeviceCount=lambda: devices,
        runtimeGetVersion=lambda: 12090,
        driverGetVersion=lambda: 13000,
        getDeviceProperties=lambda index: {"name": b"Fake GPU", "multiProcessorCount": 10},
    )
    cuda = types.SimpleNamespace(
        runtime=runtime, Device=lambda: device, Stream=Stream, Event=Event, get_elapsed_time=lambda start, end: 1.0
    )
    pool = types.SimpleNamespace(free_bytes=lambda: 0)
    module = types.ModuleType("cupy")
    vars(module).update(
        **numpy_names,
        **arrays,
        cuda=cuda,
        random=types.SimpleNamespace(RandomState=RandomState),
        get_default_memory_pool=lambda: pool,
    )
    return module


class CuBlas:
    """Its functions; handles and streams are taken without a look."""

    def cublasCreate_v2(self, handle):
        return 0

    def cublasSetStream_v2(self, handle, stream):
        return 0

    def cublasSetWorkspace_v2(self, handle, pointer, size):
        return 0

    def cublasGetVersion_v2(self, handle, version):
        version._obj.value = 120000
        return 0

    def cublasGemmEx(self, handle, ta, tb, m, n, k, alpha, a, ka, lda, b, kb, ldb, beta, c, kc, ldc, sums, algorithm):
        assert (alpha._obj.value, beta._obj.value, algorithm) == (1, 0, -1)
        assert {2: (68, 2), 3: (72, 10)}[ka] == (sums, kc)
        assert isinstance(alpha._obj, ctypes.c_float if sums == 68 else ctypes.c_int32)
        left = at(a, k, m, lda, 1, ka).T if ta else at(a, m, k, lda, 1, ka)
        right = at(b, n, k, ldb, 1, kb).T if tb else at(b, k, n, ldb, 1, kb)
        wide = np.float32 if sums == 68 else np.int32
        at(c, m, n, ldc, 1, kc)[:] = left.astype(wide) @ right.astype(wide)
        return 0


class CuSparseLt:
    """The library, called by the name of a function: descriptors are found by their address."""

    version = (0, 8, 1)
    wrong = 0.0  # what is added to every result

    def __init__(self, path):
        self.known = {}
        self.searched = []

    def __call__(self, name, *arguments):
        key = [getattr(argument, "_as_parameter_", argument) for argument in arguments]
        getattr(self, name)(*(value.value if isinstance(value, ctypes.c_void_p) else value for value in key))

    def Init(self, handle):
        assert handle % 16 == 0

    def StructuredDescriptorInit(self, handle, matrix, rows, cols, ld, alignment, kind, order, sparsity):
        assert sparsity == 0
        self.DenseDescriptorInit(handle, matrix, rows, cols, ld, alignment, kind, order)

    def DenseDescriptorInit(self, handle, matrix, rows, cols, ld, alignment, kind, order):
        assert alignment == 16
        assert ld >= (cols if order == ROW else rows)
        self.known[matrix] = (rows, cols, ld, order, kind)

    def MatmulDescriptorInit(self, handle, product, op_a, op_b, a, b, c, d, sums):
        assert (c, op_a) == (d, 0)
        assert sums == {2: 2, 3: 0}[self.known[a][-1]]
        self.known[product] = (op_b, self.known[a], self.known[b], self.known[d])

    def MatmulAlgSelectionInit(self, handle, choice, product, algorithm):
        assert algorithm == 0
        self.known[choice] = self.known[product]

    def MatmulPlanInit(self, handle, plan, product, choice):
        assert self.known[choice] == self.known[product]
        self.known[plan] = self.known[product]

    def SpMMAPruneCheck(self, handle, product, weight, wrong, stream):
        stripes = at(weight, *self.known[product][1]).reshape(-1, 4)
        at(wrong, 1, 1, 1, ROW, 10)[:] = bool(np.any(np.count_nonzero(stripes, axis=1) > 2))

    def SpMMACompressedSize(self, handle, plan, size, scratch):
        rows, cols, *_, kind = self.known[plan][1]
        size._obj.value, scratch._obj.value = rows * cols * np.dtype(TYPES[kind]).itemsize, 0

    def SpMMACompress(self, handle, plan, weight, compressed, scratch, stream):
        rows, cols, _, _, kind = self.known[plan][1]
        at(compressed, rows, cols, cols, ROW, kind)[:] = at(weight, *self.known[plan][1])

    def MatmulGetWorkspace(self, handle, plan, size):
        size._obj.value = 64

    def Matmul(self, handle, plan, alpha, compressed, x, beta, c, d, workspace, streams, count):
        assert (alpha._obj.value, beta._obj.value, c, count, streams._obj.value) == (1, 0, d, 1, Stream.ptr)
        op_b, (rows, cols, _, _, kind), dense, result = self.known[plan]
        left = at(compressed, rows, cols, cols, ROW, kind)
        right = at(x, *dense)
        right = right.T if op_b else right
        wide = np.float32 if kind == 2 else np.int32
        at(d, *result)[:] = left.astype(wide) @ right.astype(wide) + wide(self.wrong)

    def MatmulSearch(self, handle, plan, *arguments):
        self.Matmul(handle, plan, *arguments)
        self.searched.append(plan)

    def MatmulPlanDestroy(self, plan):
        del self.known[plan]

    def MatmulAlgSelectionDestroy(self, choice):
        del self.known[choice]

    def MatDescriptorDestroy(self, matrix):
        del self.known[matrix]


def install(monkeypatch, folder):
    """Makes a machine with a GPU of this one, as far as `sparse_device` can see; gives its CuPy."""
    module = cupy()
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr(cusparselt, "find_library", lambda cuda=None: folder / "libcusparseLt.so.0")
    monkeypatch.setattr(sparse_device, "CuSparseLt", CuSparseLt)
    monkeypatch.setattr(sparse_device, "_loaded", lambda name: name)
    monkeypatch.setattr(sparse_device.ctypes, "CDLL", lambda path: CuBlas())
    return module
