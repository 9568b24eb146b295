"""The index of a TensorFlow checkpoint: where tensors lie in its data files, and their checksums.

It is a table in LevelDB's format, of protocol buffers (`tensor_bundle.proto`). TensorFlow's own reader gives whole
tensors only.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfmot_asp.permutation.search._jit import jit

_MAGIC = 0xDB4775248B80FB57
_FOOTER = 48
_TRAILER = 5  # of a block: its compression, then its checksum
_CRC = b"\x35"  # tag of BundleEntryProto.crc32c, a fixed32, which comes last but for slices


@dataclass(frozen=True)
class IndexEntry:
    """Where a tensor lies."""

    shard: int
    offset: int
    shape: tuple[int, ...]
    type: str


def read_index(path: Path) -> tuple[dict[str, IndexEntry], int]:
    """The tensors of an index file by name, and the number of data files. Strings and partitioned ones are left out.

    Raises ValueError if it is none.
    """
    import tensorflow as tf
    from tensorflow.core.protobuf import tensor_bundle_pb2

    found: dict[str, IndexEntry] = {}
    try:
        values = {key: value for key, value, _, _ in _entries(path.read_bytes())}
        header = tensor_bundle_pb2.BundleHeaderProto.FromString(values.pop(b""))
        for key, value in values.items():
            entry = tensor_bundle_pb2.BundleEntryProto.FromString(value)
            dtype = tf.as_dtype(entry.dtype)
            if not entry.slices and (dtype.is_floating or dtype.is_integer or dtype.is_bool):
                shape = tuple(dim.size for dim in entry.shape.dim)
                found[key.decode()] = IndexEntry(entry.shard_id, entry.offset, shape, dtype.name)
    except (KeyError, IndexError, struct.error, TypeError, ValueError) as error:
        raise ValueError(f"{str(path)!r} is no index of a TensorFlow checkpoint: {error!r}") from error
    except Exception as error:  # protobuf's DecodeError
        raise ValueError(f"{str(path)!r} is no index of a TensorFlow checkpoint: {error}") from error
    if header.endianness:
        raise ValueError(f"{str(path)!r} is of a big-endian machine")
    return found, int(header.num_shards)


def with_checksums(index: bytes, checksums: Mapping[str, int]) -> bytes:
    """An index file with other checksums of some of its tensors."""
    patched = bytearray(index)
    blocks = set()
    for key, value, start, block in _entries(index):
        crc = checksums.get(key.decode())
        if crc is None:
            continue
        at = value.rindex(_CRC)
        if at + 5 != len(value):
            raise ValueError(f"the entry of {key.decode()!r} has no checksum at its end")
        patched[start + at + 1 : start + at + 5] = struct.pack("<I", masked(crc))
        blocks.add(block)
    for first, size in blocks:
        crc = masked(crc32c(np.frombuffer(patched, np.uint8, size + 1, first)))
        patched[first + size + 1 : first + size + _TRAILER] = struct.pack("<I", crc)
    return bytes(patched)


def _entries(data: bytes) -> Iterator[tuple[bytes, bytes, int, tuple[int, int]]]:
    """Keys and values of a table, where each value begins in the file, and the place of its block."""
    if len(data) < _FOOTER or struct.unpack("<Q", data[-8:])[0] != _MAGIC:
        raise ValueError("it does not end as one")
    at = len(data) - _FOOTER
    _, at = _varint(data, at)
    _, at = _varint(data, at)
    index, at = _varint(data, at)
    size, _ = _varint(data, at)
    for _, handle, _, _ in _block(data, index, size):
        first, at = _varint(handle, 0)
        length, _ = _varint(handle, at)
        yield from _block(data, first, length)


def _block(data: bytes, first: int, size: int) -> Iterator[tuple[bytes, bytes, int, tuple[int, int]]]:
    if first + size + _TRAILER > len(data) or size < 4 or data[first + size]:
        raise ValueError("a block is compressed or cut off")
    (restarts,) = struct.unpack_from("<I", data, first + size - 4)
    at, end, key = first, first + size - 4 - 4 * restarts, b""
    while at < end:
        shared, at = _varint(data, at)
        own, at = _varint(data, at)
        length, at = _varint(data, at)
        key = key[:shared] + data[at : at + own]
        at += own
        yield key, data[at : at + length], at, (first, size)
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def masked(crc: int) -> int:
    """A CRC-32C as TensorFlow stores it."""
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(data: Any, before: int = 0) -> int:
    """The CRC-32C (Castagnoli) of bytes that follow others of that CRC."""
    return int(_crc(data, np.uint32(before), _tables()))


def _tables() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(0x82F63B78), table >> 1).astype(np.uint32)
    tables = [table]
    for _ in range(7):
        tables.append((tables[-1] >> 8) ^ table[tables[-1] & 255])
    return np.stack(tables)


@jit
def _crc(data, before, tables):
    """Eight bytes at a time: Kounavis & Berry, 2005."""
    crc = np.uint32(before ^ np.uint32(0xFFFFFFFF))
    whole = len(data) // 8 * 8
    for i in range(0, whole, 8):
        a = crc ^ (
            np.uint32(data[i])
            | (np.uint32(data[i + 1]) << np.uint32(8))
            | (np.uint32(data[i + 2]) << np.uint32(16))
            | (np.uint32(data[i + 3]) << np.uint32(24))
        )
        crc = (
            tables[7, a & np.uint32(255)]
            ^ tables[6, (a >> np.uint32(8)) & np.uint32(255)]
            ^ tables[5, (a >> np.uint32(16)) & np.uint32(255)]
            ^ tables[4, a >> np.uint32(24)]
            ^ tables[3, data[i + 4]]
            ^ tables[2, data[i + 5]]
            ^ tables[1, data[i + 6]]
            ^ tables[0, data[i + 7]]
        )
    for i in range(whole, len(data)):
        crc = tables[0, (crc ^ np.uint32(data[i])) & np.uint32(255)] ^ (crc >> np.uint32(8))
    return crc ^ np.uint32(0xFFFFFFFF)
