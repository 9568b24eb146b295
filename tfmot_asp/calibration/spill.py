"""What a pass holds between two steps: in memory up to a budget, beyond it in temporary files."""

from __future__ import annotations

import contextlib
import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_asp.files import temporary_folder

MEMORY = 1 << 31
"""Bytes of tensors between two steps that are held in memory."""


class Shelf:
    """Puts the states of batches away and takes them out again.

    A state is a dict of pairs of tensors. Batches are put away in turn, so that the first ones of a pass, as many as
    fit, stay in memory, and only the others are written.

    Args:
        memory: how many bytes may be held; what is more goes to files in a temporary folder.
    """

    def __init__(self, memory: int = MEMORY) -> None:
        self.memory = memory
        self.held = 0
        self._folder: Path | None = None
        self._open = contextlib.ExitStack()
        self._numbers = itertools.count()

    def put(self, state: dict[Any, Any]) -> Any:
        """Stores a state; returns what ``take`` takes."""
        tensors = {id(t): t for pair in state.values() for t in (pair.dense, pair.pruned)}
        size = sum(_bytes(t) for t in tensors.values())
        if self.held + size <= self.memory:
            self.held += size
            return state, size
        files = {key: self._write(t) for key, t in tensors.items()}
        entries = {k: (type(p), files[id(p.dense)], files[id(p.pruned)]) for k, p in state.items()}
        return entries, -1

    def take(self, stored: Any) -> dict[Any, Any]:
        """Gives a stored state back, and forgets it."""
        entries, size = stored
        if size >= 0:
            self.held -= size
            return entries
        files = {id(file): file for _, *pair in entries.values() for file in pair}
        tensors = {key: _read(file) for key, file in files.items()}
        return {k: pair(tensors[id(dense)], tensors[id(pruned)]) for k, (pair, dense, pruned) in entries.items()}

    def close(self) -> None:
        """Deletes the files."""
        self._open.close()

    def _write(self, tensor: tf.Tensor) -> Any:
        if _bytes(tensor) < 4096 or tensor.dtype in (tf.variant, tf.resource, tf.string):
            return [tensor]
        self._folder = self._folder or self._open.enter_context(temporary_folder())
        path = os.path.join(self._folder, str(next(self._numbers)))
        array = tensor.numpy()
        array.reshape(-1).view(np.uint8).tofile(path)
        return [path, tensor.dtype, tensor.shape]


def _read(file: Any) -> tf.Tensor:
    if len(file) == 1:
        return file[0]
    path, dtype, shape = file
    array = np.fromfile(path, np.uint8).view(dtype.as_numpy_dtype).reshape(shape)
    os.unlink(path)
    return tf.constant(array)


def _bytes(tensor: tf.Tensor) -> int:
    return tensor.dtype.size * int(np.prod(tensor.shape)) if tensor.dtype.size else 0
