"""Reshapes that split or merge axes: which of the merged parts may move, and what that ties.

A merged axis can follow one of its parts, if the others stay in place. Heads of an attention are split off by
`(12, 64) -> (12, 4, 16)`: 64 channels are 4 heads of 16 features. Let feature j be what moves. It is position j of the
output axis of 16, and of the input axis positions j, 16 + j, 32 + j and 48 + j. So the first is tied to each of the
four, and the ties are labelled 0 to 3, by the head, since an exchange of two features must leave each in its head. The
output axis of 4 is pinned. Let a head be what moves, and it is the other way round: head i is 16 neighbouring channels,
the ties are labelled by the feature, and the axis of 16 is pinned.

Which part it is depends on what else is tied to the axes, so it is decided after all other rules have run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tfmot_asp.permutation.axes import Axes, Regrouping


class _Choice(NamedTuple):
    """Which parts of a regrouping may move, and whether other pins and uniform axes left no choice."""

    regrouping: Regrouping
    parts: frozenset[int]
    forced: bool


def resolve(axes: Axes) -> None:
    """Decides for every split or merge which part may move, and ties accordingly.

    Parts that are pinned for another reason leave no choice; where several could move, the innermost does (channels
    last, features within a head).

    Args:
        axes: what the rules have tied and pinned so far; their regroupings are used up.
    """
    pending, axes.regroupings = axes.regroupings, []
    while pending:
        cause = axes.causes()
        choices = [_choice(regrouping, cause < len(axes.reasons)) for regrouping in pending]
        # Where nothing is forced the first decides, and what that forces is seen in the next round.
        decided = [choice for choice in choices if choice.forced] or choices[:1]
        for choice in decided:
            _pin_the_rest(axes, choice, cause)
            _tie(axes, choice)
        done = {id(choice.regrouping) for choice in decided}
        pending = [regrouping for regrouping in pending if id(regrouping) not in done]


def _choice(regrouping: Regrouping, is_pinned: np.ndarray) -> _Choice:
    """The parts that may move: at most one of each axis, none of an axis that is pinned, those that differ first."""
    free = {part for part, size in enumerate(regrouping.sizes) if size > 1}
    uniform: set[int] = set()
    for axis in regrouping.axes:
        if axis.ids is None:
            uniform.update(axis.parts)
        elif is_pinned[axis.ids].all():
            free.difference_update(axis.parts)
    differing = free - uniform
    forced = True
    chosen: set[int] = set()
    for part in [*sorted(differing, reverse=True), *sorted(free & uniform, reverse=True)]:
        rivals = {other for axis in regrouping.axes if part in axis.parts for other in axis.parts if other != part}
        if part in differing and rivals & differing:
            forced = False
        if not rivals & chosen:
            chosen.add(part)
    return _Choice(regrouping, frozenset(chosen), forced)


def _pin_the_rest(axes: Axes, choice: _Choice, cause: np.ndarray) -> None:
    """Pins the axes that follow no part that moves.

    Args:
        axes: to pin in.
        choice: what moves.
        cause: the reason of each element that is pinned already, so that the axes it forces to stay name the same.
    """
    regrouping = choice.regrouping
    for axis in regrouping.axes:
        if axis.ids is None or choice.parts.intersection(axis.parts):
            continue
        causes = [
            int(cause[other.ids].min())
            for other in regrouping.axes
            if other.ids is not None
            and set(other.parts) & set(axis.parts)
            and (cause[other.ids] < len(axes.reasons)).all()
        ]
        if causes:
            axes.pin_as(axis.ids, min(causes))
        else:
            axes.pin(axis.ids, "split or merged in a way that lets only another part of it move", regrouping.op)


def _tie(axes: Axes, choice: _Choice) -> None:
    """Ties input to output axes through the parts that move.

    There is one tie for every combination of all parts of the two axes, labelled by that of the parts that stay. An
    input axis that is uniform counts as new elements: in which order equal slices are merged, nobody sees.
    """
    sizes = choice.regrouping.sizes
    for a in choice.regrouping.inputs:
        for b in choice.regrouping.outputs:
            moving = choice.parts.intersection(a.parts, b.parts)
            if b.ids is None or not moving:
                continue
            own = axes.fresh(math.prod(sizes[part] for part in a.parts)) if a.ids is None else a.ids
            involved = sorted({*a.parts, *b.parts})
            grid = np.indices([sizes[part] for part in involved]).reshape(len(involved), -1)
            index = dict(zip(involved, grid, strict=True))
            label = _position(index, [part for part in involved if part not in moving], sizes)
            axes.tie(own[_position(index, a.parts, sizes)], b.ids[_position(index, b.parts, sizes)], label)


def _position(index: dict[int, np.ndarray], parts: Sequence[int], sizes: Sequence[int]) -> np.ndarray:
    """The row-major position on an axis made of `parts`, from the position on each part."""
    position = np.zeros_like(next(iter(index.values())))
    for part in parts:
        position = position * sizes[part] + index[part]
    return position
