"""Opens a TFLite file: its subgraphs, ops and tensors, and the numbers that a constant tensor stands for.

A TFLite file is a FlatBuffer of the schema that TensorFlow ships; nothing is handed to TensorFlow's own reader, which
trusts its input, so that a damaged or hostile file can do no more than raise ``ValueError``.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

from tfmot_asp.graph.budget import spend

_IDENTIFIER = b"TFL3"

# What a table and a number of a list take in memory once they are read.
_TABLE = 500
_NUMBER = 16

_DAMAGE = (
    struct.error,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    OverflowError,
    AttributeError,
    MemoryError,
    AssertionError,
)


def _names(enumeration: type) -> dict[int, str]:
    return {value: name for name, value in vars(enumeration).items() if isinstance(value, int)}


_OPS = _names(schema.BuiltinOperator)
_TYPES = _names(schema.TensorType)
_DTYPES: dict[str, np.dtype[Any]] = {
    "FLOAT32": np.dtype("<f4"),
    "FLOAT16": np.dtype("<f2"),
    "FLOAT64": np.dtype("<f8"),
    "INT8": np.dtype("i1"),
    "UINT8": np.dtype("u1"),
    "INT16": np.dtype("<i2"),
    "UINT16": np.dtype("<u2"),
    "INT32": np.dtype("<i4"),
    "UINT32": np.dtype("<u4"),
    "INT64": np.dtype("<i8"),
    "UINT64": np.dtype("<u8"),
    "BOOL": np.dtype("?"),
}
_PACKED_BITS = {"INT4": 4, "UINT4": 4, "INT2": 2}  # several to a byte, the first in its lowest bits


class Unreadable(Exception):  # noqa: N818 (no error: a fact about one tensor, which becomes a note in the report)
    """The values of a tensor cannot be told; the text says why."""


@dataclass(frozen=True, eq=False)
class TfliteTensor:
    """A tensor as the file describes it.

    Attributes:
        name: as written; converters put the names of several fused ops into one, with semicolons.
        shape: static shape; -1 where it is open.
        type: of the stored elements, such as ``"INT8"``.
        buffer: number of its buffer; tensors with equal constants may share one.
        constant: whether it has stored values.
        variable: whether the interpreter writes to it (states of recurrent layers).
        table: the FlatBuffer table.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    buffer: int
    constant: bool
    variable: bool
    table: Any


@dataclass(frozen=True, eq=False)
class TfliteOp:
    """An op: its type (``"CONV_2D"``, or the name of a custom op), and its tensors as numbers; -1 for one left out."""

    type: str
    custom: bool
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    table: Any

    def options(self, kind: str) -> Any:
        """The op's options as the FlatBuffer table class of this name; None if it has none."""
        for second in ("", "2"):
            union = getattr(self.table, f"BuiltinOptions{second}", lambda: None)()
            type_code = getattr(self.table, f"BuiltinOptions{second}Type", lambda: 0)()
            if union is not None and type_code == getattr(getattr(schema, f"BuiltinOptions{second}"), kind, -1):
                options = getattr(schema, kind)()
                options.Init(union.Bytes, union.Pos)
                return options
        return None


@dataclass(frozen=True, eq=False)
class Subgraph:
    """One subgraph: the main one of a signature, or the body of a loop, a branch or a composite."""

    name: str
    tensors: tuple[TfliteTensor, ...]
    ops: tuple[TfliteOp, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


class TfliteFile:
    """A TFLite file, read and checked for consistency.

    Args:
        path: of the file.

    Attributes:
        subgraphs: in the order of the file.

    Raises:
        ValueError: if it is no TFLite file, or a truncated or damaged one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._data = path.read_bytes()
        if self._data[4:8] != _IDENTIFIER:
            raise ValueError(
                f"{str(path)!r} is no TFLite file: it lacks the mark 'TFL3' in its first 8 bytes "
                f"({len(self._data)} bytes in all)"
            )
        with damage_reported(path):
            model = schema.Model.GetRootAs(self._data, 0)
            if model.Version() != 3:
                raise ValueError(f"its schema version is {model.Version()}, not 3")
            self._buffers = [model.Buffers(i) for i in range(self._count(model.BuffersLength()))]
            for buffer in self._buffers:
                self._bytes_of(buffer)
            codes = [model.OperatorCodes(i) for i in range(self._count(model.OperatorCodesLength()))]
            self.subgraphs = tuple(
                self._subgraph(model.Subgraphs(i), i, codes) for i in range(self._count(model.SubgraphsLength()))
            )
            _check_the_rest(model, self._count)

    def value(self, tensor: TfliteTensor) -> np.ndarray:
        """The numbers that a constant tensor stands for, in the tensor's shape.

        Quantized values are scaled back to float32, ``scale × (stored - zero point)``, per tensor or per channel, so
        that a zero weight is 0 whatever its zero point is. Sparse tensors are written out.

        Raises:
            Unreadable: for a form of storage that is not understood, or one that contradicts itself.
        """
        if tensor.type not in _DTYPES and tensor.type not in _PACKED_BITS and tensor.type != "BFLOAT16":
            raise Unreadable(f"its type {tensor.type} is no number")
        if getattr(tensor.table, "ExternalBuffer", lambda: 0)():
            raise Unreadable("its values are in another file")
        if any(size < 0 for size in tensor.shape):
            raise Unreadable(f"its shape {tensor.shape} is open")
        try:
            data = self._bytes_of(self._buffers[tensor.buffer])
            sparsity = tensor.table.Sparsity()
            if sparsity is not None or tensor.table.Quantization() is not None or tensor.type in _PACKED_BITS:
                spend(4 * math.prod(tensor.shape), f"the values of {tensor.name!r}, of shape {tensor.shape}")
            if sparsity is not None:
                stored = _densify(tensor, sparsity, lambda count: _elements(data, tensor.type, count))
            else:
                stored = _elements(data, tensor.type, math.prod(tensor.shape)).reshape(tensor.shape)
            return _dequantized(stored, tensor)
        except _DAMAGE as error:
            raise Unreadable(f"its stored values contradict its description: {error}") from error

    def compressed_sizes(self) -> tuple[int, int]:
        """Size of the file in bytes after deflate, and what it would be without the zeros of its weights.

        For the latter each zero weight is replaced by some other weight of the same tensor; nothing else changes.
        """
        dense = bytearray(self._data)
        generator = np.random.default_rng(0)
        base = np.frombuffer(self._data, np.uint8).__array_interface__["data"][0]
        for tensor in {tensor.buffer: tensor for graph in self.subgraphs for tensor in graph.tensors}.values():
            if not tensor.constant or len(tensor.shape) < 2 or tensor.type not in ("FLOAT32", "FLOAT16", "INT8"):
                continue
            data = self._bytes_of(self._buffers[tensor.buffer])
            offset = data.__array_interface__["data"][0] - base
            values = np.frombuffer(dense, _DTYPES[tensor.type], data.size // _DTYPES[tensor.type].itemsize, offset)
            others = values[values != 0]
            if others.size:
                values[values == 0] = generator.choice(others, values.size - others.size)
        return len(zlib.compress(self._data, 9)), len(zlib.compress(bytes(dense), 9))

    def _count(self, length: int) -> int:
        """A vector's length, unless the file is too short to hold it: a damaged length must not keep us busy."""
        if not 0 <= length <= len(self._data):
            raise ValueError(f"it claims a list of {length} entries")
        return length

    def _bytes_of(self, buffer: Any) -> np.ndarray:
        """The bytes of a buffer: inside the FlatBuffer, or behind it where that would exceed 2 GB."""
        offset = getattr(buffer, "Offset", lambda: 0)()
        if offset > 1:
            end = offset + buffer.Size()
            if end > len(self._data):
                raise ValueError(f"a buffer ends at byte {end} of {len(self._data)}")
            return np.frombuffer(self._data, np.uint8, buffer.Size(), offset)
        return buffer.DataAsNumpy() if self._count(buffer.DataLength()) else np.empty(0, np.uint8)

    def _subgraph(self, graph: Any, index: int, codes: list[Any]) -> Subgraph:
        tensors = tuple(self._tensor(graph.Tensors(i)) for i in range(self._count(graph.TensorsLength())))

        def numbers(length: int, read: Callable[[], Any]) -> tuple[int, ...]:
            spend(_NUMBER * self._count(length), "the inputs and outputs of its ops")
            found = tuple(int(number) for number in read()) if length else ()
            if any(not -1 <= number < len(tensors) for number in found):
                raise ValueError(f"subgraph {index} refers to a tensor that it does not have")
            return found

        ops = []
        for i in range(self._count(graph.OperatorsLength())):
            op = graph.Operators(i)
            if not op.OpcodeIndex() < len(codes):
                raise ValueError(f"op {i} of subgraph {index} has no type")
            code = codes[op.OpcodeIndex()]
            spend(_TABLE, "its ops")
            kind = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())  # the older field ends at 127
            custom = kind == schema.BuiltinOperator.CUSTOM
            name = _text(code.CustomCode()) if custom else _OPS.get(kind, f"op {kind}")
            inputs = numbers(op.InputsLength(), op.InputsAsNumpy)
            ops.append(TfliteOp(name, custom, inputs, numbers(op.OutputsLength(), op.OutputsAsNumpy), op))
        inputs = numbers(graph.InputsLength(), graph.InputsAsNumpy)
        outputs = numbers(graph.OutputsLength(), graph.OutputsAsNumpy)
        return Subgraph(_text(graph.Name()) or str(index), tensors, tuple(ops), inputs, outputs)

    def _tensor(self, tensor: Any) -> TfliteTensor:
        # A list may name the same tensor many times, and it is no longer for that.
        name = _text(tensor.Name())
        spend(_TABLE + len(name) + _NUMBER * self._count(tensor.ShapeLength()), "its tensors")
        shape = tuple(int(size) for size in tensor.ShapeAsNumpy()) if tensor.ShapeLength() else ()
        if any(size < 0 for size in shape):
            raise ValueError(f"it says that its tensor {name!r} has the shape {shape}")
        signature = tensor.ShapeSignatureAsNumpy() if self._count(tensor.ShapeSignatureLength()) else ()
        if len(signature) == len(shape):
            shape = tuple(-1 if open_ < 0 else size for open_, size in zip(signature, shape, strict=True))
        if not tensor.Buffer() < len(self._buffers):
            raise ValueError("a tensor refers to a buffer that the file does not have")
        external = bool(getattr(tensor, "ExternalBuffer", lambda: 0)())
        stored = bool(self._bytes_of(self._buffers[tensor.Buffer()]).size) or external
        kind = _TYPES.get(tensor.Type(), f"number {tensor.Type()}")
        variable = bool(tensor.IsVariable())
        constant = stored and not variable
        return TfliteTensor(name, shape, kind, tensor.Buffer(), constant, variable, tensor)


@contextmanager
def damage_reported(path: Path) -> Iterator[None]:
    """Turns whatever a damaged FlatBuffer raises while it is read into a ``ValueError`` that names the file."""
    try:
        yield
    except _DAMAGE as error:
        raise ValueError(
            f"{str(path)!r} cannot be read as a TFLite model, it is truncated or damaged: {error}"
        ) from error


def requantized(values: np.ndarray, tensor: TfliteTensor) -> np.ndarray:
    """What is left of real values once they are stored in a quantized tensor and read back."""
    scale, zero_point = quantization(tensor)
    if scale is None or tensor.type not in ("INT8", "UINT8", "INT16", "INT32"):
        raise Unreadable(f"it is quantized to {tensor.type} in a way that is not understood")
    limits = np.iinfo(_DTYPES[tensor.type])
    with np.errstate(all="ignore"):
        stored = np.clip(np.round(values / scale) + zero_point, limits.min, limits.max)
        return ((stored - zero_point) * scale).astype(np.float32)


def _text(value: bytes | None) -> str:
    return value.decode("utf-8", "replace") if value else ""


def _check_the_rest(model: Any, count: Callable[[int], int]) -> None:
    """Visits what is not used here, so that a file that was cut off there is not taken for a whole one."""
    model.Description()
    for i in range(count(model.MetadataLength())):
        model.Metadata(i).Name()
    for i in range(count(model.SignatureDefsLength())):
        signature = model.SignatureDefs(i)
        signature.SignatureKey()
        for j in range(count(signature.InputsLength())):
            signature.Inputs(j).Name()
        for j in range(count(signature.OutputsLength())):
            signature.Outputs(j).Name()


def _elements(data: np.ndarray, kind: str, count: int) -> np.ndarray:
    """The first ``count`` stored elements, flat."""
    if kind in _PACKED_BITS:
        bits = _PACKED_BITS[kind]
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        elements = ((data[:, None] >> shifts) & ((1 << bits) - 1)).reshape(-1).astype(np.int8)
        if not kind.startswith("U"):
            elements = np.where(elements >= 1 << (bits - 1), elements - (1 << bits), elements).astype(np.int8)
    elif kind == "BFLOAT16":
        elements = (data[: data.size // 2 * 2].view("<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        dtype = _DTYPES[kind]
        elements = data[: data.size // dtype.itemsize * dtype.itemsize].view(dtype)
    if elements.size < count:
        raise ValueError(f"{elements.size} values are stored, {count} belong to it")
    return elements[:count]


def quantization(tensor: TfliteTensor) -> tuple[np.ndarray | None, Any]:
    """Scale and zero point, shaped to broadcast with the tensor; (None, 0) if it is not quantized."""
    parameters = tensor.table.Quantization()
    if parameters is None:
        return None, 0
    details = getattr(schema, "QuantizationDetails", None)
    if parameters.DetailsType() not in (0, getattr(details, "NONE", 0)):
        raise Unreadable("it is quantized in blocks or in a custom way")
    if not parameters.ScaleLength():
        return None, 0
    scale = np.asarray(parameters.ScaleAsNumpy(), np.float32)
    zero_point = (
        np.asarray(parameters.ZeroPointAsNumpy(), np.int64) if parameters.ZeroPointLength() else np.zeros(1, int)
    )
    axis = int(parameters.QuantizedDimension())
    if scale.size > 1:
        if not 0 <= axis < len(tensor.shape) or scale.size != tensor.shape[axis]:
            raise Unreadable(f"it has {scale.size} scales for axis {axis} of shape {tensor.shape}")
        per_channel = [1] * len(tensor.shape)
        per_channel[axis] = scale.size
        scale = scale.reshape(per_channel)
        zero_point = zero_point.reshape(per_channel) if zero_point.size > 1 else zero_point[0]
    else:
        scale, zero_point = scale[0], zero_point[0]
    return scale, zero_point


def _dequantized(stored: np.ndarray, tensor: TfliteTensor) -> np.ndarray:
    scale, zero_point = quantization(tensor)
    if scale is None or stored.dtype.kind not in "iu":
        return stored
    with np.errstate(all="ignore"):  # a damaged scale may be anything
        return ((stored.astype(np.int64) - zero_point).astype(np.float32) * scale).astype(np.float32)


def _densify(tensor: TfliteTensor, sparsity: Any, stored: Callable[[int], np.ndarray]) -> np.ndarray:
    """Writes out a sparse tensor: dimensions, and blocks of them, traversed in a stored order, dense or as CSR.

    See ``SparsityParameters`` in TensorFlow's ``tensorflow/lite/schema/schema.fbs``.
    """
    rank = len(tensor.shape)
    order = [int(axis) for axis in sparsity.TraversalOrderAsNumpy()]
    blocked = [int(axis) for axis in sparsity.BlockMapAsNumpy()] if sparsity.BlockMapLength() else []
    if sorted(order) != list(range(rank + len(blocked))) or sparsity.DimMetadataLength() != len(order):
        raise ValueError(f"its traversal order {order} does not fit shape {tensor.shape}")
    coordinates = np.zeros((1, len(order)), np.int64)  # one row per position that is visited
    sizes = dict.fromkeys(order, 1)
    for level, axis in enumerate(order):
        metadata = sparsity.DimMetadata(level)
        parents = len(coordinates)
        if metadata.Format() == schema.DimensionType.DENSE:
            size = int(metadata.DenseSize())
            sizes[axis] = size
            if not 0 <= parents * size <= math.prod(tensor.shape):
                raise ValueError(f"its dimension {axis} has {size} positions")
            spend(16 * parents * size * len(order), "the positions of a sparse tensor", kept=False)
            repeats = np.full(parents, size)
            indices = np.tile(np.arange(size), parents)
        elif axis >= rank:
            raise ValueError("its blocks are compressed inside")  # then nothing says how large they are
        else:
            segments = _index_vector(metadata.ArraySegments(), metadata.ArraySegmentsType())
            indices = _index_vector(metadata.ArrayIndices(), metadata.ArrayIndicesType())
            repeats = np.diff(segments)
            if len(repeats) != parents or np.any(repeats < 0) or segments[0] != 0 or segments[-1] != len(indices):
                raise ValueError(f"the segments of its dimension {axis} are inconsistent")
        coordinates = np.repeat(coordinates, repeats, axis=0)
        coordinates[:, axis] = indices
    dense = np.zeros(tensor.shape, stored(0).dtype)
    position = coordinates[:, :rank]
    for number, axis in enumerate(blocked):
        position[:, axis] = position[:, axis] * sizes[rank + number] + coordinates[:, rank + number]
    if tensor.table.Quantization() is not None and quantization(tensor)[0] is not None:
        dense += np.broadcast_to(quantization(tensor)[1], dense.shape).astype(dense.dtype)  # what is not stored is zero
    if np.any(position < 0):
        raise ValueError("it has a negative index")
    dense[tuple(position.T)] = stored(len(position))
    return dense


def _index_vector(union: Any, kind: int) -> np.ndarray:
    names = {value: name for name, value in vars(schema.SparseIndexVector).items() if isinstance(value, int)}
    vector = getattr(schema, names[kind])()
    vector.Init(union.Bytes, union.Pos)
    return np.asarray(vector.ValuesAsNumpy(), np.int64) if vector.ValuesLength() else np.empty(0, np.int64)
