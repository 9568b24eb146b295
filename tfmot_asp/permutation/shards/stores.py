"""Files of weights by name, and where in them each tensor lies: safetensors, Keras' HDF5, TensorFlow checkpoints.

All three hold tensors as plain little-endian bytes, so one way of reading and writing them serves all.
"""

from __future__ import annotations

import json
import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfmot_asp.permutation.shards.checkpoint import read_index
from tfmot_asp.permutation.shards.file_array import FileArray, dtype_of

_LARGEST_HEADER = 100_000_000

_SAFETENSORS_TYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U64": "uint64",
    "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


@dataclass(frozen=True)
class Store:
    """A store of weights.

    Attributes:
        kind: "safetensors", "keras" or "checkpoint".
        path: as it was given.
        folder: that its files lie in.
        files: their names, those of tensors first, then those that say where tensors are.
        arrays: the tensors by name.
    """

    kind: str
    path: Path
    folder: Path
    files: tuple[str, ...]
    arrays: dict[str, FileArray]


def open_store(path: str | os.PathLike[str]) -> Store:
    """Finds the tensors of a store, and reads none.

    Args:
        path: a .safetensors file, its .safetensors.index.json, or a folder of them; a .weights.h5 file of Keras, or the
            .weights.json of several; or the prefix of a TensorFlow checkpoint, as `save_weights` was given it.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is of another kind, or damaged.
    """
    path = Path(path)
    if path.is_dir():
        return _safetensors(path, sorted(found.name for found in path.glob("*.safetensors")), path)
    if path.name.endswith(".safetensors"):
        return _safetensors(path.parent, [path.name], path)
    if path.name.endswith(".safetensors.index.json"):
        return _safetensors(path.parent, _files_of_map(path), path, [path.name])
    if path.name.endswith(".h5"):
        return _hdf5(path, [path.name])
    if path.name.endswith(".weights.json"):
        return _hdf5(path, _files_of_map(path), [path.name])
    if path.with_name(f"{path.name}.index").exists():
        return _checkpoint(path)
    raise FileNotFoundError(
        f"{str(path)!r} is no store of weights: give a .safetensors file or its .safetensors.index.json, a .weights.h5 "
        "file or its .weights.json, or the prefix of a TensorFlow checkpoint (without .index)"
    )


def _files_of_map(path: Path) -> list[str]:
    """The files that an index names; they lie beside it."""
    try:
        found = json.loads(path.read_text("utf-8"))["weight_map"].values()
        names = sorted({name for entry in found for name in (entry if isinstance(entry, list) else [entry])})
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{str(path)!r} is no index of weights: {error!r}") from error
    for name in names:
        if not isinstance(name, str) or os.path.basename(name) != name:
            raise ValueError(f"{str(path)!r} names the file {name!r}, which is not beside it")
    return names


def _safetensors(folder: Path, names: list[str], given: Path, others: list[str] | None = None) -> Store:
    if not names:
        raise FileNotFoundError(f"{str(given)!r} holds no .safetensors file")
    arrays: dict[str, FileArray] = {}
    for name in names:
        arrays.update(_safetensors_file(folder / name))
    if given.is_dir():
        others = sorted(found.name for found in given.glob("*.safetensors.index.json"))
    return Store("safetensors", given, folder, (*names, *(others or ())), arrays)


def _safetensors_file(path: Path) -> dict[str, FileArray]:
    size = path.stat().st_size
    with open(path, "rb") as file:
        prefix = file.read(8)
        (length,) = struct.unpack("<Q", prefix) if len(prefix) == 8 else (size,)
        if length > min(_LARGEST_HEADER, size - 8):
            raise ValueError(f"{str(path)!r} is no safetensors file: its header is longer than it")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            arrays = {}
            for name, entry in header.items():
                start, end = entry["data_offsets"]
                array = FileArray(
                    str(path), 8 + length + start, tuple(entry["shape"]), _SAFETENSORS_TYPES[entry["dtype"]]
                )
                if end - start != array.nbytes or start < 0 or 8 + length + end > size:
                    raise ValueError(f"the bytes of {name!r} do not fit its shape")
                arrays[name] = array
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{str(path)!r} is no safetensors file: {error!r}") from error
    return arrays


def _hdf5(given: Path, names: list[str], others: list[str] | None = None) -> Store:
    import h5py

    arrays: dict[str, FileArray] = {}
    for name in names:
        path = given.with_name(name)

        def add(key: str, item: Any, path: Path = path) -> None:
            if isinstance(item, h5py.Dataset) and math.prod(item.shape):
                offset = item.id.get_offset()
                kind = item.attrs.get("dtype", item.dtype.name)
                if offset is None or item.chunks is not None or item.external or item.dtype.byteorder == ">":
                    raise ValueError(
                        f"{key!r} in {str(path)!r} is stored in chunks: save it as Keras does, in one piece"
                    )
                arrays[key] = FileArray(str(path), offset, tuple(item.shape), dtype_of(kind).name)

        if not path.exists():
            raise FileNotFoundError(f"{str(path)!r} is missing")
        try:
            with h5py.File(path, "r") as file:
                file.visititems(add)
        except OSError as error:
            raise ValueError(f"{str(path)!r} is no HDF5 file: {error}") from error
    return Store("keras", given, given.parent, (*names, *(others or ())), arrays)


def _checkpoint(prefix: Path) -> Store:
    entries, shards = read_index(prefix.with_name(f"{prefix.name}.index"))
    names = [f"{prefix.name}.data-{i:05d}-of-{shards:05d}" for i in range(shards)]
    arrays = {
        key: FileArray(str(prefix.with_name(names[entry.shard])), entry.offset, entry.shape, entry.type)
        for key, entry in entries.items()
    }
    return Store("checkpoint", prefix, prefix.parent, (*names, f"{prefix.name}.index"), arrays)
