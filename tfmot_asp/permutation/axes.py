"""Axis classes: which positions of which axes must move together, found by one pass over the ops of a graph.

The unit is the *element*: one position of one axis of a variable (or of a tensor that an op makes anew). An axis of a
tensor is an array of element ids, so that a transpose reorders arrays and a ReLU hands them on. A rule per op type
(:mod:`tfmot_asp.permutation.rules`) does three things:

* it *ties* elements: ``a[i]`` and ``b[i]`` are the same channel (an edge between two elements);
* it *pins* elements that must stay: every position of the model's inputs, what an op without a rule touches, ...;
* it says what the axes of the op's outputs are.

An axis along which all slices are equal (size 1, a broadcast, a constant that does not vary) is *uniform*: it stays the
same in any order. It is written as None and ties to nothing.

Connected components of the edges are the axis classes. Which of them may be exchanged is
:mod:`tfmot_asp.permutation.groups`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tfmot_asp.graph.flat_graph import Graph, Op, Tensor
from tfmot_asp.reason import OpName, Reason

Axis = np.ndarray | None
"""One axis of a tensor: the element id of each position (int64), or None if the axis is uniform."""


@dataclasses.dataclass(frozen=True, eq=False)
class Nested:
    """An axis whose order may differ from position to position of other axes, as within each group or head.

    Attributes:
        ids: the element ids, shape (sizes of the axes `over`..., size of this axis).
        over: the axes of the tensor that it depends on, ascending.
    """

    ids: np.ndarray
    over: tuple[int, ...]

    def __len__(self) -> int:
        return self.ids.shape[-1]


AnyAxis = Axis | Nested

Runs = tuple[tuple[int, ...], ...]
"""The axes of a variable, those that are taken as one together: ((0,), (1, 2)). See `merged_axes`."""

Outputs = Sequence[Sequence[Axis]]
"""The axes of every output of an op."""

Rule = Callable[[Op, "Axes"], Outputs]
"""A rule: ties and pins the axes of `op.inputs` and returns the axes of every output."""


@dataclasses.dataclass(eq=False)
class Elements:
    """The tensors in a list, as loops keep them: each of their axes is one for all of them.

    Attributes:
        shape: of every tensor; None as long as none was put in or taken out.
        axes: of every tensor.
        reason: why they stay in place, an index into `Axes.reasons`; None if they may move.
        same: the elements of a list that this one hands its tensors to or has them from.
    """

    shape: tuple[int, ...] | None = None
    axes: tuple[Axis, ...] = ()
    reason: int | None = None
    same: Elements | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class MergedAxis:
    """An axis of a :class:`Regrouping`: its elements, and the parts that it is made of, row-major."""

    ids: Axis
    parts: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Regrouping:
    """A reshape whose axes split or merge: which part of them moves is decided last, by `regrouping.resolve`.

    Attributes:
        op: the Reshape.
        sizes: of the parts, which are the common refinement of input and output axes. `(12, 64) -> (12, 4, 16)` has
            parts of 4 and 16, of which the input axis of 64 holds both, and the output axes one each.
        inputs: the input's axes.
        outputs: the output's axes.
    """

    op: Op
    sizes: tuple[int, ...]
    inputs: tuple[MergedAxis, ...]
    outputs: tuple[MergedAxis, ...]

    @property
    def axes(self) -> tuple[MergedAxis, ...]:
        return self.inputs + self.outputs


class Ties(NamedTuple):
    """Ties as three int64 arrays, an entry per pair of elements. `a` and `b` play different roles in the op."""

    a: np.ndarray
    b: np.ndarray
    label: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Classes:
    """The axis classes: connected components of the ties.

    Attributes:
        of: the class of each element.
        pin: index into `Axes.reasons` of each element's own pin, the first of them; -1 where it has none.
        pinned: for each class whether one of its elements is pinned, and so all must stay.
        level: blocks of at most that size move as wholes, see `Axes.blocks`.
    """

    of: np.ndarray
    pin: np.ndarray
    pinned: np.ndarray
    level: int = 0

    def holding(self, elements: Iterable[np.ndarray]) -> np.ndarray:
        """For each class whether it has one of these elements."""
        found = np.zeros_like(self.pinned)
        for ids in elements:
            found[self.of[ids]] = True
        return found


class Axes:
    """The elements of a graph, with their ties and pins. Rules work on it; `analysis.analyse` makes it."""

    def __init__(self, graph: Graph, merged: Mapping[int, Runs] | None = None):
        """Makes the elements of the variables.

        Args:
            graph: the traced model.
            merged: of which variables some axes are taken as one, see `merged_axes`.
        """
        self.graph = graph
        self.count = 0
        self.merged = dict(merged or {})
        self.variable_axes: dict[tuple[int, int], np.ndarray] = {}
        """By variable and axis of it, or run of axes that are taken as one: the element id of each position."""
        self.reasons: list[Reason] = []
        self.regroupings: list[Regrouping] = []
        self.walk: Callable[[Graph], None] = lambda graph: None
        """Runs the rules of the ops of another graph, such as a loop's body."""
        self.walked: list[Op] = []
        """All ops whose rules have run, those of loops and branches too."""
        self._axis_sizes: list[int] = []
        self._tensors: dict[Tensor, tuple[AnyAxis, ...]] = {}
        self._lists: dict[Tensor, Elements] = {}
        self._edges: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._ties = 0
        self._pins: list[tuple[np.ndarray, int]] = []
        self._blocks: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._marks: list[tuple[np.ndarray, np.ndarray, int]] = []
        self._of_variable: dict[int, tuple[AnyAxis, ...]] = {}
        for i, variable in enumerate(graph.variables):
            shape = [size or 0 for size in variable.shape.as_list() or []]
            for number, run in enumerate(self.runs(i)):
                self.variable_axes[i, number] = self.fresh(math.prod(shape[axis] for axis in run))

    def runs(self, variable: int) -> Runs:
        """The axes of a variable, those that are taken as one together."""
        return self.merged.get(variable) or tuple((axis,) for axis in range(len(self.graph.variables[variable].shape)))

    def of_variable(self, variable: int) -> tuple[AnyAxis, ...]:
        """The axes of the value of a variable. Of those that are taken as one, each is nested over those before it."""
        if variable not in self._of_variable:
            shape = self.graph.variables[variable].shape
            found: list[AnyAxis] = []
            for number, run in enumerate(self.runs(variable)):
                ids = self.variable_axes[variable, number]
                found += self._levels_of(ids, run, [shape[axis] for axis in run]) if len(run) > 1 else [ids]
            self._of_variable[variable] = tuple(found)
        return self._of_variable[variable]

    def _levels_of(self, ids: np.ndarray, run: tuple[int, ...], sizes: list[int]) -> list[AnyAxis]:
        """Axes that are taken as one: blocks, smaller blocks in each, and at last the elements `ids`."""
        found: list[AnyAxis] = []
        above: np.ndarray | None = None
        for k in range(1, len(run) + 1):
            own = ids if k == len(run) else self.fresh(math.prod(sizes[:k]))
            own = own.reshape(sizes[:k])
            if above is not None:
                self.enclose(own, np.broadcast_to(above[..., None], own.shape), math.prod(sizes[k - 1 :]))
            found.append(own if above is None else Nested(own, run[: k - 1]))
            above = own
        return found

    # What rules use

    def __getitem__(self, tensor: Tensor) -> tuple[Axis, ...]:
        """The axes of `tensor`. An axis that depended on others no longer does: its order is the same for all."""
        axes = self.nested(tensor)
        if any(isinstance(axis, Nested) for axis in axes):
            axes = self._tensors[tensor] = tuple(self.alike(axis) for axis in axes)
        return axes  # type: ignore[return-value]

    def nested(self, tensor: Tensor) -> tuple[AnyAxis, ...]:
        """The axes of `tensor`, of which some may depend on others."""
        axes = self._tensors.get(tensor)
        if axes is None:
            if tensor.value is None:
                raise KeyError("no op has made this tensor yet")
            axes = self._tensors[tensor] = self._constant(tensor.value, tensor.op)
        return axes

    def __setitem__(self, tensor: Tensor, axes: Sequence[AnyAxis]) -> None:
        self._tensors[tensor] = tuple(axes)

    def fresh(self, size: int) -> np.ndarray:
        """A new axis: `size` elements that nothing is tied to yet. Returns their ids, int64."""
        ids = np.arange(self.count, self.count + size, dtype=np.int64)
        self.count += size
        self._axis_sizes.append(size)
        return ids

    def tie(self, a: Axis, b: Axis, label: int | np.ndarray = 0) -> Axis:
        """Ties `a[i]` to `b[i]`, element by element, and returns the axis that both are now.

        Args:
            a: element ids; or None for a uniform axis, which ties to nothing.
            b: as many element ids, or None.
            label: what distinguishes these ties from others of the same call: one int for all or one for each pair. An
                exchange of channels must map a tie to a tie with the same label.
        """
        if a is None or b is None:
            return b if a is None else a
        if a is b:
            return a
        if len(a) != len(b):
            raise ValueError(f"cannot tie an axis of {len(a)} positions to one of {len(b)}")
        labels = np.empty(len(a), np.int64)
        labels[:] = label
        self._edges.append((a, b, labels + (self._ties << 32)))
        self._ties += 1
        return a

    def pick(self, axis: Axis, positions: np.ndarray) -> Axis:
        """The axis with only `positions` of it, in their order: a new axis, tied to what it was picked from."""
        if axis is None or (len(positions) == len(axis) and np.array_equal(positions, np.arange(len(axis)))):
            return axis
        picked = self.fresh(len(positions))
        # Equal positions are equal slices: only their number counts, so one label serves.
        self.tie(axis[positions], picked)
        return picked

    def alike(self, axis: AnyAxis) -> Axis:
        """The axis, or if it is nested a new one whose order is that at every position of the axes it depends on."""
        return self.alike_along(axis.ids, range(axis.ids.ndim - 1)) if isinstance(axis, Nested) else axis

    def alike_along(self, ids: np.ndarray, along: Iterable[int]) -> np.ndarray:
        """Element ids that no longer depend on some of the first axes of `ids`: the same order at each of those."""
        along = tuple(along)
        kept = [i for i in range(ids.ndim) if i not in along]
        shape = [ids.shape[i] for i in kept]
        common = self.fresh(int(np.prod(shape))).reshape(shape)
        apart = ids.transpose([*along, *kept]).reshape(-1, common.size)
        label = np.repeat(np.arange(len(apart)), common.size)
        self.tie(apart.ravel(), np.tile(common.ravel(), len(apart)), label)
        return common

    def enclose(self, members: np.ndarray, blocks: np.ndarray, size: int) -> None:
        """Says that each of `members` lies in one of `blocks`, element by element; a block holds `size` channels.

        A member may move within its block; a block may move as a whole, and its members with it.
        """
        self._blocks.append((members.ravel(), blocks.ravel(), np.full(members.size, size, np.int64)))

    def mark(self, axis: Nested, reason: str, op: Op | None = None) -> None:
        """Forbids positions of a nested axis to be exchanged; the blocks that they lie in may be."""
        positions = np.broadcast_to(np.arange(len(axis)), axis.ids.shape)
        self._marks.append((axis.ids.ravel(), positions.ravel(), self._reason(reason, op)))

    def pin(self, axis: Axis, reason: str, op: Op | None = None) -> None:
        """Forbids the elements of `axis` to move, and says why and which op is to blame."""
        if axis is None or not len(axis):
            return
        self._pins.append((axis, self._reason(reason, op)))

    def pin_as(self, axis: np.ndarray, reason: int) -> None:
        """Forbids the elements of `axis` to move, for a reason that is known, by its index in `reasons`."""
        self._pins.append((axis, reason))

    def pinned(self, size: int, reason: str, op: Op | None = None) -> np.ndarray | None:
        """A new axis whose elements must not move; None if `size` is 1."""
        if size == 1:
            return None
        axis = self.fresh(size)
        self.pin(axis, reason, op)
        return axis

    def pin_all(self, op: Op, reason: str) -> Outputs:
        """Pins all that `op` reads, variables too, and returns pinned axes for its outputs."""
        for tensor in op.inputs:
            if tensor.variable is not None:
                for number in range(len(self.runs(tensor.variable))):
                    self.pin(self.variable_axes[tensor.variable, number], reason, op)
            elif tensor.dtype == tf.variant:
                self._hold(self._elements(tensor), self._reason(reason, op))
            elif tensor.value is None:
                for ids in self[tensor] if tensor in self._tensors else ():
                    self.pin(ids, reason, op)
        for tensor in op.outputs:
            if tensor.dtype == tf.variant:
                self._hold(self._elements(tensor), self._reason(reason, op))
        return [[self.pinned(n, reason, op) for n in t.shape] if t.shape is not None else [] for t in op.outputs]

    # Lists of tensors

    def same_list(self, one: Tensor, other: Tensor) -> None:
        """Says that two handles are of one list, or of lists that hold each other's tensors."""
        a, b = self._elements(one), self._elements(other)
        if a is b:
            return
        if a.shape is None:
            a, b = b, a
        b.same = a
        if b.reason is not None:
            self._hold(a, b.reason)
        elif a.reason is not None:
            self._hold(b, a.reason)
        if b.shape is not None:
            for own, same in zip(self.in_list(one, b.shape), b.axes, strict=True):
                self.tie(own, same)

    def in_list(self, handle: Tensor, shape: Sequence[int], op: Op | None = None) -> tuple[Axis, ...]:
        """The axes of the tensors of a list, of which one has this shape."""
        elements = self._elements(handle)
        if elements.shape is None:
            elements.shape = tuple(shape)
            elements.axes = tuple(None if n == 1 else self.fresh(n) for n in shape)
            if elements.reason is not None:
                self._hold(elements, elements.reason)
        if elements.shape != tuple(shape):
            reason = "tensors of several shapes in one list"
            self._hold(elements, self._reason(reason, op))
            return tuple(self.pinned(n, reason, op) for n in shape)
        return elements.axes

    def listed(self, handle: Tensor) -> tuple[Axis, ...]:
        """The axes of the tensors of a list; none while it has none."""
        return self._elements(handle).axes

    def _elements(self, handle: Tensor) -> Elements:
        elements = self._lists.setdefault(handle, Elements())
        while elements.same is not None:
            elements = elements.same
        return elements

    def _hold(self, elements: Elements, reason: int) -> None:
        """Pins what is in a list, and will be."""
        elements.reason = reason
        for axis in elements.axes:
            if axis is not None:
                self.pin_as(axis, reason)

    # The result

    def ties(self, level: int = 0) -> Ties:
        """All ties, in the order in which they were made, then those of members to their blocks up to that size."""
        edges = list(self._edges)
        for number, (member, block, size) in enumerate(self._blocks, start=self._ties):
            if len(size) and size[0] <= level:
                edges.append((member, block, np.full(len(member), number << 32)))
        if not edges:
            return Ties(*np.zeros((3, 0), np.int64))
        return Ties(*map(np.concatenate, zip(*edges, strict=True)))

    def levels(self) -> list[int]:
        """0, then the sizes of blocks, ascending: at each level blocks of at most that size move as wholes."""
        return [0, *sorted({int(size[0]) for _, _, size in self._blocks if len(size)})]

    def constraints(self, level: int) -> Ties:
        """What an exchange at a level must keep of elements (`a`): their blocks and marks (`b`), by kind (`label`)."""
        found = [
            (member, block, np.full(len(member), number, np.int64))
            for number, (member, block, size) in enumerate(self._blocks)
            if len(size) and size[0] > level
        ]
        found += [
            (ids, position, np.full(len(ids), -1 - number, np.int64))
            for number, (ids, position, _) in enumerate(self._marks)
        ]
        return Ties(*map(np.concatenate, zip(*found, strict=True))) if found else Ties(*np.zeros((3, 0), np.int64))

    def classes(self, level: int = 0) -> Classes:
        """The axis classes as the ties and pins are now, where blocks of up to a size move as wholes."""
        a, b, _ = self.ties(level)
        # scipy 1.11.1 labels components wrongly for indices of 64 bits.
        ends = a.astype(np.int32), b.astype(np.int32)
        adjacency = coo_array((np.ones(len(a)), ends), shape=(self.count, self.count))
        component = connected_components(adjacency, directed=False)[1]
        pin = np.full(self.count, -1, np.int64)
        for ids, reason in reversed(self._pins):
            pin[ids] = reason
        pinned = np.zeros(component.max(initial=-1) + 1, bool)
        pinned[component[pin >= 0]] = True
        return Classes(component, pin, pinned, level)

    def held(self, classes: Classes) -> np.ndarray:
        """For each class whether it stays since it has a block that does not move as a whole at this level."""
        return classes.holding(block for _, block, size in self._blocks if len(size) and size[0] > classes.level)

    def whole_blocks(self, classes: Classes) -> np.ndarray:
        """For each class whether it has a block of just the size of its level."""
        return classes.holding(block for _, block, size in self._blocks if len(size) and size[0] == classes.level)

    def mark_reasons(self) -> np.ndarray:
        """For each element the index of the reason of its first mark; -1 where it has none."""
        found = np.full(self.count, -1, np.int64)
        for ids, _, reason in reversed(self._marks):
            found[ids] = reason
        return found

    def causes(self) -> np.ndarray:
        """For each element the first reason for which its class is pinned; len(reasons) where it is not."""
        classes = self.classes()
        first = np.full(len(classes.pinned), len(self.reasons))
        own = classes.pin >= 0
        np.minimum.at(first, classes.of[own], classes.pin[own])
        return first[classes.of]

    def pins(self) -> list[tuple[np.ndarray, Reason]]:
        """All pins, in the order in which they were set: element ids and the reason."""
        return [(ids, self.reasons[reason]) for ids, reason in self._pins]

    def axis_of(self) -> np.ndarray:
        """The number of the axis that each element was made for."""
        return np.repeat(np.arange(len(self._axis_sizes)), self._axis_sizes)

    # Internals

    def _reason(self, reason: str, op: Op | None) -> int:
        entry = Reason("", reason, None if op is None else OpName(op.type, op.name))
        if not self.reasons or self.reasons[-1] != entry:
            self.reasons.append(entry)
        return len(self.reasons) - 1

    def _constant(self, value: np.ndarray, op: Op | None) -> tuple[Axis, ...]:
        axes: list[Axis] = []
        for axis, size in enumerate(value.shape):
            first = value.take([0], axis) if size else value
            if size <= 1 or np.array_equal(np.broadcast_to(first, value.shape), value):
                axes.append(None)
            else:
                axes.append(self.pinned(size, "a constant that differs along this axis", op))
        return tuple(axes)
