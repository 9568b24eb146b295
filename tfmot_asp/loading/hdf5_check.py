"""Checks an HDF5 file before its values are read: all of them are in the file, and no more than its size explains."""

from __future__ import annotations

import math
import mmap
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from tfmot_asp.graph import budget
from tfmot_asp.loading.formats import ModelFileError, UnsafeModelError
from tfmot_asp.loading.one_line import printable


def check_hdf5(file: Any, path: Path) -> None:
    """Makes sure that all data of an HDF5 file is in that file, and that it has not more of it than its size explains.

    Args:
        file: an open ``h5py.File``.
        path: of the file on disk, for messages.

    Raises:
        UnsafeModelError: if a link, a dataset or a virtual dataset takes its data from another file.
        OverBudgetError: for more data than the file's size explains.
    """
    import h5py

    seen, stack, texts = set(), [file], _Texts(file)
    while stack:
        group = stack.pop()
        if group.id in seen:
            continue
        seen.add(group.id)
        _check_attributes(group, texts)
        for name in group:
            where = f"{group.name.rstrip('/')}/{name}"
            if isinstance(group.get(name, getlink=True), h5py.ExternalLink):
                raise UnsafeModelError(f"{str(path)!r} is not loaded: its {where!r} is a link into another file")
            item = group.get(name)
            if isinstance(item, h5py.Group):
                stack.append(item)
            elif isinstance(item, h5py.Dataset):
                if item.external or item.is_virtual:
                    raise UnsafeModelError(
                        f"{str(path)!r} is not loaded: its {where!r} takes its data from another file"
                    )
                count = math.prod(item.shape or ())
                size = count * item.dtype.itemsize
                if item.dtype.kind == "O":  # references, and all may be to the same text: weights are none
                    size += count * budget.size_in_force()
                budget.spend(size, f"its {printable(where)!r} of shape {item.shape}")
                _check_attributes(item, texts)
    texts.spend(path)


def _check_attributes(item: Any, texts: _Texts) -> None:
    for name in item.attrs:
        stored = item.attrs.get_id(name)
        count = math.prod(stored.shape or ())
        if stored.dtype.kind == "O" and count > 1:
            texts.add(name, stored.dtype)
        budget.spend(
            count * stored.dtype.itemsize, f"the attribute {printable(name)!r} of its {printable(item.name)!r}"
        )


class _Texts:
    """Attributes that are arrays of text of any length, as Keras stores the names of layers.

    Each text is a length and a reference to where it is, and many references may be to the same. HDF5 reads all or
    nothing, so the lengths are looked up in the file: an attribute is stored as its name, a description and its values.
    """

    def __init__(self, file: Any) -> None:
        self._path = file.filename
        self._reference = 8 + file.id.get_create_plist().get_sizes()[0]
        self._found: dict[str, int] = defaultdict(int)  # by name: how many there are
        self._width = 1

    def add(self, name: str, dtype: np.dtype) -> None:
        import h5py

        self._found[name] += 1
        base = h5py.check_vlen_dtype(dtype)
        self._width = max(self._width, getattr(base, "itemsize", 1))

    def spend(self, path: Path) -> None:
        """Asks for the memory of all of them."""
        if not self._found:
            return
        with open(self._path, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for name, expected in self._found.items():
                sizes = [size for size in self._sizes(data, name.encode()) if size is not None]
                if len(sizes) < expected:
                    raise ModelFileError(f"{str(path)!r} has attributes {printable(name)!r} in a way that is not known")
                budget.spend(sum(sizes), f"the texts of its attributes {printable(name)!r}")

    def _sizes(self, data: mmap.mmap, name: bytes) -> list[int | None]:
        sizes, at = [], data.find(name + b"\0")
        while at >= 0:
            sizes.append(self._size(data, at, len(name) + 1))
            at = data.find(name + b"\0", at + 1)
        return sizes

    def _size(self, data: mmap.mmap, at: int, length: int) -> int | None:
        """What an attribute takes whose name is at a place in the file; None if that is no attribute.

        See the HDF5 file format, version 3.0, IV.A.2.m "The Attribute Message".
        """
        for version, start in ((3, at - 9), (1, at - 8), (2, at - 8)):
            if start < 0 or data[start] != version:
                continue
            sizes = np.frombuffer(data[start + 2 : start + 8], "<u2").astype(int)
            if sizes[0] != length:
                continue
            padded = -(-sizes // 8) * 8 if version == 1 else sizes
            space = at + int(padded[0] + padded[1])
            rank, first = data[space + 1], space + (8 if data[space] == 1 else 4)
            count = math.prod(np.frombuffer(data[first : first + 8 * rank], "<u8").tolist())
            values = space + int(padded[2])
            if count * self._reference > len(data) - values:
                continue
            held = np.frombuffer(data[values : values + count * self._reference], np.uint8)
            held = held.reshape(count, self._reference)[:, :4]
            lengths = np.ascontiguousarray(held).view("<u4")
            return int(lengths.sum(dtype=np.int64)) * self._width + count * budget.TEXT
        return None
