"""Reshapes of axes that are, or become, nested: a split makes blocks and members, a merge puts them back together.

An axis of 12 that is split into (3, 4) becomes 3 blocks, elements of their own, and an axis of 4 that is nested over
them: its members are the 12 elements that were there, each enclosed in its block. Merging (3, 4) back gives the 12.

Axes that merge without being nested, such as (height, width, channels) in a flatten, are left to `regrouping`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from tfmot_asp.graph.flat_graph import Op
from tfmot_asp.permutation.axes import AnyAxis, Axes, Axis, MergedAxis, Nested, Outputs, Regrouping
from tfmot_asp.permutation.rules.nesting import nested
from tfmot_asp.permutation.rules.registry import register_rule
from tfmot_asp.permutation.rules.reshaping import refined, runs

_MOST_COPIES = 16
"""How many times an axis may be repeated along others that it does not depend on, for one that those merge with."""


_Part: TypeAlias = tuple[int, int]
"""A run by its number, and a part of it by its position."""


class _RunOfAxes(NamedTuple):
    """Input axes that become output axes: both are products of the same parts."""

    ins: list[int]
    outs: list[int]
    sizes: tuple[int, ...]
    in_parts: list[tuple[int, ...]]
    out_parts: list[tuple[int, ...]]


class _IdsByPart(NamedTuple):
    """Element ids with one axis for each part: (run, part) names it."""

    ids: np.ndarray
    parts: tuple[_Part, ...]


@register_rule("Reshape", "Squeeze", "ExpandDims")
def reshape(op: Op, axes: Axes) -> Outputs:
    """Axes that keep their size are handed on; one that splits becomes blocks and a nested axis; merges may wait.

    Pins axes whose sizes have no common refinement, as in (2, 3) -> (3, 2).
    """
    in_shape, out_shape = op.inputs[0].shape or (), op.outputs[0].shape or ()
    if 0 in in_shape:
        return axes.pin_all(op, "reshapes an empty tensor")
    x: list[AnyAxis] = list(axes.nested(op.inputs[0]))
    found: list[_RunOfAxes | None] = []
    result: list[AnyAxis] = [None] * len(out_shape)
    pairs = runs(in_shape, out_shape)
    if any(refined([in_shape[i] for i in ins], [out_shape[i] for i in outs]) is None for ins, outs in pairs):
        x = list(axes[op.inputs[0]])
    for ins, outs in pairs:
        parts = refined([in_shape[i] for i in ins], [out_shape[i] for i in outs])
        if parts is None:
            for i in ins:
                axes.pin(x[i], "split and merged in incommensurable parts", op)  # type: ignore[arg-type]
            for i in outs:
                result[i] = axes.pinned(out_shape[i], "split and merged in incommensurable parts", op)
        found.append(None if parts is None else _RunOfAxes(ins, outs, *parts))
    reshaped = _OneReshape(op, axes, x, out_shape, found)
    for number, run in enumerate(found):
        if run is not None:
            for out, axis in zip(run.outs, reshaped.outputs(number, run), strict=True):
                result[out] = axis
    return [result]  # type: ignore[list-item]


class _OneReshape:
    """One reshape: what its axes are made of."""

    def __init__(self, op: Op, axes: Axes, x: list[AnyAxis], out_shape: Sequence[int], found: list[_RunOfAxes | None]):
        self.op, self.axes, self.x, self.out_shape = op, axes, x, out_shape
        self.parts_of_in: dict[int, tuple[_Part, ...]] = {}
        self.out_of: dict[_Part, tuple[int, tuple[_Part, ...]]] = {}
        self.size: dict[_Part, int] = {}
        for number, run in enumerate(found):
            if run is None:
                continue
            self.size.update({(number, part): size for part, size in enumerate(run.sizes)})
            for i, own in zip(run.ins, run.in_parts, strict=True):
                self.parts_of_in[i] = tuple((number, part) for part in own)
            for i, own in zip(run.outs, run.out_parts, strict=True):
                named = tuple((number, part) for part in own)
                self.out_of.update(dict.fromkeys(named, (i, named)))

    def outputs(self, number: int, run: _RunOfAxes) -> list[AnyAxis]:
        """The axes that a run becomes."""
        varying = [i for i in run.ins if self.x[i] is not None]
        if len(run.ins) == len(run.outs) == 1:
            axis = self.x[run.ins[0]]
            nests = isinstance(axis, Nested)
            return [self._assembled(self._by_parts(run.ins[0]), self.parts_of_in[run.ins[0]]) if nests else axis]
        last = self.x[run.ins[-1]]
        whole = len(varying) == len(run.ins) and (
            len(varying) == 1 or (isinstance(last, Nested) and set(last.over) >= set(run.ins[:-1]))
        )
        return self._split(number, run) if whole else self._wait(run)

    def _by_parts(self, i: int) -> _IdsByPart:
        """An input axis with an axis for each part, of what it depends on first."""
        axis = self.x[i]
        over = axis.over if isinstance(axis, Nested) else ()
        ids = axis.ids if isinstance(axis, Nested) else axis
        parts = tuple(part for j in (*over, i) for part in self.parts_of_in[j])
        assert ids is not None
        return _IdsByPart(ids.reshape([self.size[part] for part in parts]), parts)

    def _assembled(self, found: _IdsByPart, own: tuple[_Part, ...]) -> AnyAxis:
        """The output axis of the parts `own`, nested over the output axes that the other parts belong to.

        An axis of the output that only some parts of are depended on is depended on as a whole: the order is repeated.
        Where that would take many copies, the order is made the same along it instead.
        """
        over = list(dict.fromkeys(self.out_of[part] for part in found.parts if part not in own))
        ids, parts = found
        for out in list(over):
            copies = math.prod(self.size[part] for part in out[1] if part not in parts)
            if copies > _MOST_COPIES:
                lost = [i for i, part in enumerate(parts) if part in out[1]]
                ids, parts = self.axes.alike_along(ids, lost), tuple(p for p in parts if p not in out[1])
                over.remove(out)
        wanted = [part for _, named in over for part in named] + list(own)
        have = [part for part in wanted if part in parts]
        ids = ids.transpose([parts.index(part) for part in have])
        ids = ids.reshape([self.size[part] if part in parts else 1 for part in wanted])
        ids = np.broadcast_to(ids, [self.size[part] for part in wanted])
        shape = [math.prod(self.size[part] for part in named) for _, named in over]
        return nested(ids.reshape([*shape, -1]), [i for i, _ in over])

    def _split(self, number: int, run: _RunOfAxes) -> list[AnyAxis]:
        """The output axes where each position of the run is an element: blocks, and the last axis nested over them."""
        leaf = self._by_parts(run.ins[-1])
        named = [tuple((number, part) for part in own) for own in run.out_parts]
        outside = tuple(part for part in leaf.parts if part[0] != number)
        result = []
        above: _IdsByPart | None = None
        for k, own in enumerate(named):
            parts = (*outside, *(part for other in named[: k + 1] for part in other))
            if k == len(named) - 1:
                ids = leaf.ids.transpose([leaf.parts.index(part) for part in parts])
            else:
                ids = self._blocks(own, parts)
            if above is not None:
                blocks = above.ids.reshape([*above.ids.shape, *[1] * (ids.ndim - above.ids.ndim)])
                channels = math.prod(run.sizes) // math.prod(self.size[p] for p in above.parts if p not in outside)
                self.axes.enclose(ids, np.broadcast_to(blocks, ids.shape), channels)
            above = _IdsByPart(ids, parts)
            result.append(self._assembled(above, own))
        return result

    def _blocks(self, own: tuple[_Part, ...], parts: tuple[_Part, ...]) -> np.ndarray:
        """New elements, or those of an input axis that is made of `own` and depends on the rest of `parts` at most."""
        for i, made_of in self.parts_of_in.items():
            if made_of == own:
                found = self._by_parts(i)
                if set(found.parts) <= set(parts):
                    have = [part for part in parts if part in found.parts]
                    ids = found.ids.transpose([found.parts.index(part) for part in have])
                    ids = ids.reshape([self.size[part] if part in found.parts else 1 for part in parts])
                    return np.broadcast_to(ids, [self.size[part] for part in parts])
        shape = [self.size[part] for part in parts]
        return self.axes.fresh(math.prod(shape)).reshape(shape)

    def _wait(self, run: _RunOfAxes) -> list[AnyAxis]:
        """New output axes, tied when it is known which part of them moves."""
        own: list[Axis] = [self.axes.alike(self.x[i]) for i in run.ins]
        uniform = {t for axis, part in zip(own, run.in_parts, strict=True) if axis is None for t in part}
        result: list[Axis] = [
            None if uniform.issuperset(part) else self.axes.fresh(self.out_shape[i])
            for i, part in zip(run.outs, run.out_parts, strict=True)
        ]
        inputs = tuple(MergedAxis(axis, part) for axis, part in zip(own, run.in_parts, strict=True))
        outputs = tuple(MergedAxis(axis, part) for axis, part in zip(result, run.out_parts, strict=True))
        self.axes.regroupings.append(Regrouping(self.op, run.sizes, inputs, outputs))
        return list(result)
