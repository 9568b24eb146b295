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
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tfmot_asp.graph.trace import Graph, Op, Tensor

Axis = np.ndarray | None
"""One axis of a tensor: the element id of each position (int64), or None if the axis is uniform."""

Outputs = Sequence[Sequence[Axis]]
"""The axes of every output of an op."""

Rule = Callable[[Op, "Axes"], Outputs]
"""A rule: ties and pins the axes of `op.inputs` and returns the axes of every output."""


@dataclasses.dataclass(frozen=True)
class Reason:
    """Why elements are pinned: a sentence, and the op (type and scoped name) that did it."""

    text: str
    op_type: str = ""
    op_name: str = ""

    def __str__(self) -> str:
        return self.text


@dataclasses.dataclass
class Block:
    """A reshape whose axes split or merge: which of the merged parts may move is decided when all else is known.

    Attributes:
      op: the Reshape.
      atoms: sizes of the common refinement of input and output axes.
      sides: for the input and the output, each axis as (element ids or None, positions of its atoms).
    """

    op: Op
    atoms: tuple[int, ...]
    sides: tuple[list[tuple[Axis, tuple[int, ...]]], list[tuple[Axis, tuple[int, ...]]]]


class Axes:
    """The elements of a graph, with their ties and pins. Rules work on it; `analysis.analyse` makes it."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.count = 0
        self.variable_axes: dict[tuple[int, int], np.ndarray] = {}
        self.reasons: list[Reason] = []
        self.blocks: list[Block] = []
        self._axis_sizes: list[int] = []
        self._tensors: dict[int, tuple[Axis, ...]] = {}
        self._edges: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._ties = 0
        self._pins: list[tuple[np.ndarray, int]] = []
        for i, variable in enumerate(graph.variables):
            for axis, size in enumerate(variable.shape.as_list() or []):
                self.variable_axes[i, axis] = self.fresh(size or 0)

    # What rules use

    def __getitem__(self, tensor: Tensor) -> tuple[Axis, ...]:
        """The axes of `tensor`."""
        axes = self._tensors.get(id(tensor))
        if axes is None:
            if tensor.value is None:
                raise KeyError("no op has made this tensor yet")
            axes = self._tensors[id(tensor)] = self._constant(tensor.value, tensor.op)
        return axes

    def __setitem__(self, tensor: Tensor, axes: Sequence[Axis]) -> None:
        self._tensors[id(tensor)] = tuple(axes)

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

    def pin(self, axis: Axis, reason: str, op: Op | None = None) -> None:
        """Forbids the elements of `axis` to move. `reason` is completed with the op that is given."""
        if axis is None or not len(axis):
            return
        entry = Reason(reason) if op is None else Reason(f"{reason} ({op})", op.type, op.name)
        if not self.reasons or self.reasons[-1] != entry:
            self.reasons.append(entry)
        self._pins.append((axis, len(self.reasons) - 1))

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
                for axis in range(len(self.graph.variables[tensor.variable].shape)):
                    self.pin(self.variable_axes[tensor.variable, axis], reason, op)
            elif tensor.value is None:
                for ids in self._tensors.get(id(tensor), ()):
                    self.pin(ids, reason, op)
        return [[self.pinned(n, reason, op) for n in t.shape] if t.shape is not None else [] for t in op.outputs]

    # The result

    def edges(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All ties as three int64 arrays: element, element, label."""
        if not self._edges:
            empty = np.zeros(0, np.int64)
            return empty, empty, empty
        a, b, labels = zip(*self._edges, strict=True)
        return np.concatenate(a), np.concatenate(b), np.concatenate(labels)

    def components(self) -> np.ndarray:
        """The axis class of each element, int array of shape (count,)."""
        a, b, _ = self.edges()
        adjacency = coo_array((np.ones(len(a)), (a, b)), shape=(self.count, self.count))
        return connected_components(adjacency, directed=False)[1]

    def pin_of(self) -> np.ndarray:
        """Index into `reasons` of each element's own pin, -1 where it has none. The first pin counts."""
        result = np.full(self.count, -1, np.int64)
        for ids, reason in reversed(self._pins):
            result[ids] = reason
        return result

    def causes(self) -> np.ndarray:
        """For each element the first reason for which its class is pinned; len(reasons) where it is not."""
        component, pin = self.components(), self.pin_of()
        first = np.full(component.max(initial=-1) + 1, len(self.reasons))
        np.minimum.at(first, component[pin >= 0], pin[pin >= 0])
        return first[component]

    def pins(self) -> list[tuple[np.ndarray, Reason]]:
        """All pins, in the order in which they were set: element ids and the reason."""
        return [(ids, self.reasons[reason]) for ids, reason in self._pins]

    def axis_of(self) -> np.ndarray:
        """The number of the axis that each element was made for."""
        return np.repeat(np.arange(len(self._axis_sizes)), self._axis_sizes)

    # Internals

    def _constant(self, value: np.ndarray, op: Op | None) -> tuple[Axis, ...]:
        axes: list[Axis] = []
        for axis, size in enumerate(value.shape):
            first = value.take([0], axis) if size else value
            if size <= 1 or np.array_equal(np.broadcast_to(first, value.shape), value):
                axes.append(None)
            else:
                axes.append(self.pinned(size, "a constant that differs along this axis", op))
        return tuple(axes)

    def resolve(self) -> None:
        """Decides for every split or merge which part may move, and ties accordingly.

        A merged axis can follow one of its parts if the others stay in place. Parts that are pinned for another reason
        leave no choice; where several could move, the innermost does (channels last, features within a head).
        """
        pending = self.blocks
        self.blocks = []
        while pending:
            cause = self.causes()
            is_pinned = cause < len(self.reasons)
            decided: list[tuple[Block, _Choice]] = []
            open_blocks: list[tuple[Block, _Choice]] = []
            for block in pending:
                choice = _movable(block, is_pinned)
                (decided if choice.forced else open_blocks).append((block, choice))
            # Nothing forced: let the first decide, then see what that forces.
            for block, choice in decided or open_blocks[:1]:
                self._connect(block, choice.atoms, cause)
            pending = [b for b, _ in (open_blocks if decided else open_blocks[1:])]

    def _connect(self, block: Block, movable: frozenset[int], cause: np.ndarray) -> None:
        """Ties input to output axes through the movable atoms; what cannot follow one is pinned.

        `cause` has the reason of each element that is pinned already, so that the axes it forces to stay name the same.
        """
        everything = [entry for side in block.sides for entry in side]
        for axis, atoms in everything:
            if axis is None or movable.intersection(atoms):
                continue
            causes = [
                int(cause[other].min())
                for other, others in everything
                if other is not None and set(others) & set(atoms) and (cause[other] < len(self.reasons)).all()
            ]
            if causes:
                self._pins.append((axis, min(causes)))
            else:
                self.pin(axis, "split or merged in a way that lets only another part of it move", block.op)
        for (a, a_atoms), (b, b_atoms) in _pairs(block, movable):
            (atom,) = movable.intersection(a_atoms)
            # One tie for every combination of the other atoms of the two axes, labelled by that combination.
            involved = sorted({*a_atoms, *b_atoms})
            sizes = [block.atoms[t] for t in involved]
            index = dict(zip(involved, np.indices(sizes).reshape(len(sizes), -1), strict=True))
            label = np.zeros(math.prod(sizes), np.int64)
            for t in involved:
                if t != atom:
                    label = label * block.atoms[t] + index[t]
            self.tie(a[_flat(index, a_atoms, block.atoms)], b[_flat(index, b_atoms, block.atoms)], label)


@dataclasses.dataclass(frozen=True)
class _Choice:
    atoms: frozenset[int]
    forced: bool


def _movable(block: Block, is_pinned: np.ndarray) -> _Choice:
    """The atoms that may move: at most one of each axis, none of an axis that is pinned."""
    candidates = {t for t, size in enumerate(block.atoms) if size > 1}
    for side in block.sides:
        for axis, atoms in side:
            if axis is None or is_pinned[axis].all():
                candidates.difference_update(atoms)
    forced = True
    chosen: set[int] = set()
    for atom in sorted(candidates, reverse=True):
        rivals = {t for side in block.sides for _, atoms in side if atom in atoms for t in atoms if t != atom}
        if rivals & candidates:
            forced = False
        if not rivals & chosen:
            chosen.add(atom)
    return _Choice(frozenset(chosen), forced)


def _pairs(block: Block, movable: frozenset[int]) -> list[Any]:
    pairs = []
    for a, a_atoms in block.sides[0]:
        for b, b_atoms in block.sides[1]:
            if a is not None and b is not None and movable.intersection(a_atoms) & set(b_atoms):
                pairs.append(((a, a_atoms), (b, b_atoms)))
    return pairs


def _flat(index: dict[int, np.ndarray], atoms: Sequence[int], sizes: Sequence[int]) -> np.ndarray:
    position = np.zeros_like(next(iter(index.values())))
    for t in atoms:
        position = position * sizes[t] + index[t]
    return position
