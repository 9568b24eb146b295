"""The order of an array's axes, applied: to all of it, or to a window of the result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfmot_asp.keras_models.variables import buffer
from tfmot_asp.keras_models.windows import windows

Moves = Sequence[tuple[tuple[int, ...], np.ndarray]]
"""For a variable: an axis, or several that are taken as one, and for each position the one that its new content has."""

AxisMoves = Sequence[tuple[int, np.ndarray]]
"""The same where no axes are taken as one."""


def reordered(value: np.ndarray, moves: Moves) -> np.ndarray:
    """`value` with its axes reordered."""
    together, along = _merged(value.shape, moves)
    return reordered_window(value.reshape(together), along, (slice(None),) * len(together)).reshape(value.shape)


def permuted(value: np.ndarray, moves: Moves) -> np.ndarray:
    """A copy of `value` with its axes reordered, made a window at a time, for TensorFlow to take over."""
    shape = value.shape
    together, along = _merged(shape, moves)
    value = value.reshape(together)
    new = buffer(together, value.dtype)
    for window in windows(together):
        new[window] = reordered_window(value, along, window)
    return new.reshape(shape)


def reordered_window(value: Any, moves: AxisMoves, window: tuple[slice, ...]) -> np.ndarray:
    """A window of `value`, an array in memory or in a file, with its axes reordered; may be a view."""
    if not isinstance(value, np.ndarray):
        found: np.ndarray = value.reordered(moves, window)
        return found
    moved = {axis for axis, _ in moves}
    value = value[tuple(slice(None) if axis in moved else cut for axis, cut in enumerate(window))]
    steps = [(index[window[axis]], axis) for axis, index in moves]
    for index, axis in sorted(steps, key=lambda step: len(step[0]) / value.shape[step[1]]):  # what leaves least, first
        value = value.take(index, axis)
    return value


def inverse(moves: Moves) -> Moves:
    """What undoes them."""
    return [(axes, np.argsort(index)) for axes, index in moves]


def _merged(shape: Sequence[int], moves: Moves) -> tuple[tuple[int, ...], AxisMoves]:
    """A shape in which the axes that move as one are one, and the moves along its axes."""
    runs = {axes[0]: axes for axes, _ in moves}
    inner = {axis for axes, _ in moves for axis in axes[1:]}
    firsts = [axis for axis in range(len(shape)) if axis not in inner]
    together = tuple(math.prod(shape[a] for a in runs.get(axis, (axis,))) for axis in firsts)
    return together, [(firsts.index(axes[0]), index) for axes, index in moves]
