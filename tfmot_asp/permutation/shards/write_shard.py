"""Writes one file of a store anew, its tensors reordered and pruned, window by window."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from tfmot_asp import masks
from tfmot_asp.keras_models.windows import LARGE_WINDOW, windows
from tfmot_asp.pattern import Pattern
from tfmot_asp.permutation.reorder import AxisMoves
from tfmot_asp.permutation.shards.checkpoint import crc32c
from tfmot_asp.permutation.shards.file_array import FileArray

PARTIAL = ".partial"
_BLOCK = 1 << 24  # bytes


@dataclass(frozen=True, eq=False)
class TensorChange:
    """What becomes of a tensor: how its axes are reordered, then along which it is pruned, if it is."""

    array: FileArray
    moves: AxisMoves
    reduction_axes: tuple[int, ...] = ()


class Written(NamedTuple):
    """A file that was written: its SHA-256, and the CRC-32C of the tensors that changed."""

    sha256: str
    checksums: dict[str, int]


def write_file(
    source: str, target: str, changes: Mapping[str, TensorChange], pattern: Pattern, checksums: bool
) -> Written:
    """Copies a file with some of its tensors changed. It has its name only once it is whole and on the disk."""
    partial = f"{target}{PARTIAL}"
    order = sorted(changes, key=lambda name: changes[name].array.offset)
    with open(source, "rb") as old, open(partial, "wb") as new:
        new.truncate(os.fstat(old.fileno()).st_size)
        at = 0
        for name in order:
            array = changes[name].array
            _copy(old, new, at, array.offset)
            at = array.offset + array.nbytes
        _copy(old, new, at, os.fstat(old.fileno()).st_size)
    found = {}
    for name in order:
        written = replace(changes[name].array, path=partial)
        _change(changes[name], written, pattern)
        if checksums:
            found[name] = _checksum(written)
    with open(partial, "rb") as file:
        os.fsync(file.fileno())
    digest = sha256(partial)
    os.replace(partial, target)
    return Written(digest, found)


def _change(change: TensorChange, target: FileArray, pattern: Pattern) -> None:
    for window in windows(target.shape, whole=change.reduction_axes, elements=LARGE_WINDOW):
        part = change.array.reordered(change.moves, window)
        if change.reduction_axes:
            mask = masks.m_by_n_mask(masks.magnitude(part), change.reduction_axes, pattern)
            part = masks.apply_mask(part, mask)
        target[window] = part


def _checksum(array: FileArray) -> int:
    found = 0
    with open(array.path, "rb") as file:
        file.seek(array.offset)
        for start in range(0, array.nbytes, _BLOCK):
            block = file.read(min(_BLOCK, array.nbytes - start))
            found = crc32c(np.frombuffer(block, np.uint8), found)
    return found


def _copy(old: BinaryIO, new: BinaryIO, start: int, end: int) -> None:
    old.seek(start)
    new.seek(start)
    while start < end:
        block = old.read(min(_BLOCK, end - start))
        if not block:
            raise ValueError("a file of weights became shorter while it was read")
        new.write(block)
        start += len(block)


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
