"""The index of a TensorFlow checkpoint, read and checked as data.

TensorFlow trusts its index: it ends the process at a negative size, and asks for whatever memory a shape says. The
format is that of LevelDB's tables, uncompressed, with a ``BundleEntryProto`` for each tensor
(``tensorflow/core/util/tensor_bundle/tensor_bundle.h``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tfmot_asp.graph import budget

_FOOTER = 48
_MAGIC = bytes.fromhex("57fb808b247547db")
_TRAILER = 5  # of a block: how it is compressed, and a checksum


def check_checkpoint(prefix: Path) -> None:
    """Makes sure that the tensors of a checkpoint are what its data files can hold.

    Args:
        prefix: what the names of its files begin with.

    Raises:
        ValueError: if not, or if the index cannot be read.
        OverBudgetError: for tensors that are larger than the size of the file that is read explains.
    """
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import tensor_bundle_pb2

    index = prefix.with_name(f"{prefix.name}.index")
    shards = 0
    try:
        for key, value in _entries(index.read_bytes()):
            if not key:
                shards = tensor_bundle_pb2.BundleHeaderProto.FromString(value).num_shards
                continue
            entry = tensor_bundle_pb2.BundleEntryProto.FromString(value)
            shard = prefix.with_name(f"{prefix.name}.data-{entry.shard_id:05d}-of-{shards:05d}")
            _check_entry(key.decode(errors="replace"), entry, shard)
    except (IndexError, DecodeError) as error:
        raise ValueError(f"its {index.name} is cut short or damaged") from error


def _check_entry(name: str, entry: Any, shard: Path) -> None:
    import tensorflow as tf

    dims = [dim.size for dim in entry.shape.dim]
    if entry.shape.unknown_rank or any(size < 0 for size in dims):
        raise ValueError(f"it says that its variable {name!r} has the shape {dims}")
    try:
        dtype = tf.as_dtype(entry.dtype)
        width = dtype.size or budget.TEXT
    except TypeError:
        raise ValueError(f"its variable {name!r} has the dtype {entry.dtype}, which this TensorFlow has not") from None
    budget.spend(math.prod(dims) * width, f"its variable {name!r} of shape {dims}")
    if entry.slices:
        return  # of a variable that is stored in parts: each has an entry of its own
    held = shard.stat().st_size if shard.is_file() else 0
    if entry.offset < 0 or entry.size < 0 or entry.offset + entry.size > held:
        raise ValueError(f"its variable {name!r} would end at byte {entry.offset + entry.size} of {held}")
    if dtype not in (tf.string, tf.variant, tf.resource) and entry.size != math.prod(dims) * width:
        raise ValueError(f"its variable {name!r} of shape {dims} is stored in {entry.size} bytes")


def _entries(table: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a table, in its order."""
    if table[-len(_MAGIC) :] != _MAGIC or len(table) < _FOOTER:
        raise ValueError("its variables.index is no index of a checkpoint")
    footer = table[-_FOOTER:]
    _, at = _number(footer, 0)
    _, at = _number(footer, at)
    for _, handle in _block(table, footer[at:]):
        yield from _block(table, handle)


def _block(table: bytes, handle: bytes) -> Iterator[tuple[bytes, bytes]]:
    """What a block holds, whose offset and size are given: each key follows from the one before."""
    start, at = _number(handle, 0)
    size, _ = _number(handle, at)
    if start + size + _TRAILER > len(table) or table[start + size]:
        raise ValueError("its variables.index has a block that lies outside it, or is compressed")
    block = table[start : start + size]
    end = len(block) - 4 * (1 + int.from_bytes(block[-4:], "little"))  # then come positions to search from
    at, key = 0, b""
    while at < end:
        shared, at = _number(block, at)
        unshared, at = _number(block, at)
        length, at = _number(block, at)
        if at + unshared + length > end or shared > len(key):
            raise ValueError("its variables.index is cut short or damaged")
        key = key[:shared] + block[at : at + unshared]
        at += unshared + length
        yield key, block[at - length : at]


def _number(data: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits in each byte, the lowest first, and where it ends."""
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        shift += 7
        at += 1
        if data[at - 1] < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("its variables.index is cut short or damaged")
