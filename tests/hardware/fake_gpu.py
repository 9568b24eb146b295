# ruff: noqa: N802  # functions have the names that the libraries give them
"""What `hardware.sparse_device` uses of CuPy, cuBLAS, cuBLASLt and cuSPARSELt, in NumPy: which product is computed.

The libraries read their operands from the pointers that they are given, by the sizes, strides, orders and transposes
that they are told, as their documentation defines them, so that a wrong one gives a wrong product. A clock goes on by
what each product costs, and the device's memory is counted: what is not allocated, or no longer, cannot be read.
"""

import ctypes
import sys
import types
import weakref

import numpy as np

from tfmot_asp.hardware import cublaslt, cusparselt, sparse_device

TYPES = {2: np.float16, 3: np.int8, 10: np.int32}
ROW = 2
DEFAULT_US = 50.0  # what a product of cuBLAS's and cuSPARSELt's costs


class Memory:
    """The device's: how many bytes are in use, and were at most."""

    def __init__(self):
        self.sizes, self.peak = {}, 0

    def take(self, array):
        while isinstance(array.base, np.ndarray):
            array = array.base
        address = array.ctypes.data
        if address not in self.sizes:
            self.sizes[address] = array.nbytes
            weakref.finalize(array, self.sizes.pop, address, None)
            self.peak = max(self.peak, sum(self.sizes.values()))


class Clock:
    """Microseconds that passed on the device. A graph under capture takes none, and its work each time it runs."""

    def __init__(self):
        self.now, self.captured = 0.0, None

    def work(self, us):
        if self.captured is None:
            self.now += us
        else:
            self.captured += us


MEMORY, CLOCK = Memory(), Clock()


def at(pointer, rows, cols, ld, order, kind):
    """The matrix of a column-major or row-major array in memory, to read and to write."""
    address = getattr(pointer, "value", pointer)
    assert address in MEMORY.sizes, "no memory of the device"
    lines, length = (rows, cols) if order == ROW else (cols, rows)
    kind = np.dtype(TYPES[kind])
    memory = (ctypes.c_uint8 * (((lines - 1) * ld + length) * kind.itemsize)).from_address(address)
    strides = (ld * kind.itemsize, kind.itemsize)
    array = np.ndarray((lines, length), kind, memory, strides=strides)
    return array if order == ROW else array.T


def product(left, right):
    """Of plain arrays, which are no memory of the device."""
    wide = np.float32 if left.dtype == np.float16 else np.int32
    return left.astype(wide) @ right.astype(wide)


class Array(np.ndarray):
    """An array with CuPy's `.data.ptr`."""

    def __array_finalize__(self, source):
        MEMORY.take(self)

    @property
    def data(self):
        return types.SimpleNamespace(ptr=self.ctypes.data)


def array(values):
    return np.ascontiguousarray(values).view(Array)


class Stream:
    ptr = 7

    def __init__(self, non_blocking=False):
        assert non_blocking

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def synchronize(self):
        assert CLOCK.captured is None

    def begin_capture(self):
        assert CLOCK.captured is None
        CLOCK.captured = 0.0

    def end_capture(self):
        us, CLOCK.captured = CLOCK.captured, None
        return types.SimpleNamespace(launch=lambda stream: CLOCK.work(us))


class Event:
    def record(self, stream):
        self.time = CLOCK.now

    def synchronize(self):
        pass


def cupy(devices=1, capability="90"):
    """The module."""
    numpy_names = {name: getattr(np, name) for name in ("clip", "maximum", "minimum", "rint")}
    arrays = {
        "asarray": array,
        "asnumpy": lambda a: np.array(a, subok=False),
        "empty": lambda shape, dtype: array(np.empty(shape, dtype)),
        "zeros": lambda shape, dtype: array(np.zeros(shape, dtype)),
    }

    class RandomState:
        def __init__(self, seed):
            self.generator = np.random.default_rng(seed)

        def standard_normal(self, size, dtype):
            return array(self.generator.standard_normal(size, dtype))

    device = types.SimpleNamespace(id=0, mem_info=(1 << 30, 1 << 31), cublas_handle=1, compute_capability=capability)
    runtime = types.SimpleNamespace(
        getDeviceCount=lambda: devices,
        runtimeGetVersion=lambda: 12090,
        driverGetVersion=lambda: 13000,
        getDeviceProperties=lambda index: {"name": b"Fake GPU", "multiProcessorCount": 10},
    )
    cuda = types.SimpleNamespace(
        runtime=runtime,
        Device=lambda: device,
        Stream=Stream,
        Event=Event,
        get_elapsed_time=lambda start, end: (end.time - start.time) / 1000,
    )
    pool = types.SimpleNamespace(free_bytes=lambda: 0)
    module = types.ModuleType("cupy")
    vars(module).update(
        __version__="0",
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
        at(c, m, n, ldc, 1, kc)[:] = product(left, right)
        CLOCK.work(DEFAULT_US)
        return 0


class CuBlasLt:
    """A model of it, called as C calls it: through pointers, with the types that `cublaslt.SIGNATURES` has.

    Attributes:
        algorithms: microseconds of each that it offers; None for one that it offers and then cannot run.
        wrong: is added to every result.
        ran: how often each ran.
    """

    algorithms = (DEFAULT_US,)
    wrong = 0
    live = None

    def __init__(self):
        self.known, self.ran = {}, {}
        CuBlasLt.live = self
        self.cublasLtGetStatusString = lambda status: b"no good"
        for name, signature in cublaslt.SIGNATURES.items():
            setattr(
                self, name, ctypes.CFUNCTYPE(ctypes.c_int, *signature)(getattr(self, name.removeprefix("cublasLt")))
            )

    def made(self, out, *facts):
        key = 1000 + max(self.known, default=0)
        self.known[key] = list(facts)
        ctypes.c_void_p.from_address(out).value = key
        return 0

    def destroy(self, key):
        del self.known[key]
        return 0

    MatmulDescDestroy = MatrixLayoutDestroy = MatmulPreferenceDestroy = destroy

    def Create(self, out):
        ctypes.c_void_p.from_address(out).value = 11
        return 0

    def MatmulDescCreate(self, out, sums, scalar):
        return self.made(out, sums, scalar, 0, 0)

    def MatmulDescSetAttribute(self, key, attribute, value, size):
        if attribute not in (3, 4) or size != 4:
            return 7
        self.known[key][attribute - 1] = ctypes.c_int32.from_address(value).value
        return 0

    def MatrixLayoutCreate(self, out, kind, rows, cols, ld):
        return self.made(out, rows, cols, ld, 1, kind)

    def MatmulPreferenceCreate(self, out):
        return self.made(out, 0)

    def MatmulPreferenceSetAttribute(self, key, attribute, value, size):
        if (attribute, size) != (1, 8):
            return 7
        self.known[key][0] = ctypes.c_uint64.from_address(value).value
        return 0

    def MatmulAlgoGetHeuristic(self, handle, product, a, b, c, d, preference, most, results, count):
        if handle != 11 or c != d or self.known[preference][0] != 32 << 20:
            return 7
        for i, _ in enumerate(self.algorithms[:most]):
            # as the header has it: uint64_t algo[8], size_t workspaceSize, int state, float wavesCount, int reserved[4]
            ctypes.c_uint64.from_address(results + 96 * i).value = 100 + i
            ctypes.c_uint64.from_address(results + 96 * i + 64).value = 1 << 20
            ctypes.c_int.from_address(results + 96 * i + 72).value = 0
        ctypes.c_int.from_address(count).value = min(most, len(self.algorithms))
        return 0 if self.algorithms else 15

    def Matmul(self, handle, key, alpha, a, a_is, b, b_is, beta, c, c_is, d, d_is, algo, workspace, size, stream):
        sums, scalar, op_a, op_b = self.known[key]
        kinds = {2: (68, 0, 2), 3: (72, 10, 10)}[self.known[a_is][-1]]
        number = ctypes.c_int32 if scalar == 10 else ctypes.c_float
        values = number.from_address(alpha).value, number.from_address(beta).value
        on_device = workspace in MEMORY.sizes and size == 32 << 20
        if (handle, stream, (c, c_is), values, on_device) != (11, Stream.ptr, (d, d_is), (1, 0), True):
            return 7
        if (sums, scalar, self.known[d_is][-1]) != kinds:
            return 7
        algorithm = ctypes.c_uint64.from_address(algo).value - 100
        if self.algorithms[algorithm] is None:
            return 15
        left, right = (
            at(pointer, *self.known[layout]).T if op else at(pointer, *self.known[layout])
            for pointer, layout, op in ((a, a_is, op_a), (b, b_is, op_b))
        )
        at(d, *self.known[d_is])[:] = product(left, right) + self.wrong
        self.ran[algorithm] = self.ran.get(algorithm, 0) + 1
        CLOCK.work(self.algorithms[algorithm])
        return 0


class CuSparseLt:
    """The library, called by the name of a function: descriptors are found by their address."""

    version = (0, 8, 1)
    wrong = 0  # what is added to every result

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
        at(d, *result)[:] = product(left, right) + self.wrong
        CLOCK.work(DEFAULT_US)

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
    monkeypatch.setattr(sparse_device.ctypes, "CDLL", lambda path: CuBlasLt() if "Lt" in path else CuBlas())
    monkeypatch.setattr(CuBlasLt, "live", None)
    CLOCK.__init__()
    return module
