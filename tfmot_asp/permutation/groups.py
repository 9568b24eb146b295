"""From axis classes to permutation groups: which channels may be exchanged, and where each of them lives.

Two classes may be exchanged exactly if exchanging them maps the graph of ties onto itself: every element of the one
has a counterpart in the other, in the same axis, with the same ties. To find out, each element gets a *colour*, a hash
of its axis, refined by the colours of what it is tied to (Weisfeiler-Leman refinement), so that the copies of a channel
in a flattened axis are told apart by where they come from. The multiset of a class's colours and ties is its
*signature*, and classes with equal signatures form a group.

The result is plain data: a :class:`PermutationPlan` owns positions of variable axes and reasons, no model and no graph.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence

import numpy as np

from tfmot_asp.permutation.axes import Axes

logger = logging.getLogger(__name__)

_MAX_ROUNDS = 64


@dataclasses.dataclass(frozen=True)
class PlannedKernel:
    """A kernel to be pruned, as the plan sees it.

    Attributes:
      name: of its layer, for messages.
      variable: position of the kernel in the graph's variables.
      shape: of the kernel.
      reduction_axes: its axes that are summed, flattened row-major to the reduction axis.
    """

    name: str
    variable: int
    shape: tuple[int, ...]
    reduction_axes: tuple[int, ...]

    @property
    def reduction_size(self) -> int:
        return math.prod(self.shape[a] for a in self.reduction_axes)


@dataclasses.dataclass(frozen=True, eq=False)
class Slot:
    """Where the channels of a group sit in one axis of a variable: channel i at `positions[i]`."""

    variable: int
    axis: int
    positions: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class MatrixPart:
    """Rows of a group's search matrix: column j is position `positions[j]` of the kernel's flat reduction axis."""

    kernel: int
    positions: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """A permutation group: `size` channels that may be exchanged with each other.

    Attributes:
      name: of the first kernel that it orders.
      size: number of channels (axis classes).
      slots: all variable axes that carry them; reordering all of them alike changes no output.
      columns: channels that take part in the search, in the order of the search matrix's columns; consecutive runs of
        n are stripes now. Channels in stripes that straddle the group's edge stay where they are.
      parts: the rows of the search matrix.
      kernels: the kernels with a slot on their reduction axis, also those whose stripes are cut otherwise.
    """

    name: str
    size: int
    slots: tuple[Slot, ...]
    columns: np.ndarray
    parts: tuple[MatrixPart, ...]
    kernels: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class PermutationPlan:
    """What may be permuted and what may not: built without weights, searched without a model.

    Attributes:
      kernels: the kernels to be pruned.
      groups: the permutation groups that order at least two stripes of some kernel.
      movable: for each kernel the number of positions on its reduction axis that some group may reorder.
      reasons: for each kernel why the rest may not move; None if all may.
    """

    kernels: tuple[PlannedKernel, ...]
    groups: tuple[Group, ...]
    movable: tuple[int, ...]
    reasons: tuple[str | None, ...]


def plan_groups(axes: Axes, kernels: Sequence[PlannedKernel], n: int = 4) -> PermutationPlan:
    """Groups the axis classes that occur on the reduction axis of a kernel.

    Args:
      axes: the analysed graph.
      kernels: kernels to be pruned; the others move along, but give no rows to the search.
      n: stripe length.

    Returns:
      The plan.
    """
    component = axes.components()
    pins = axes.pin_of()
    pinned_class = np.zeros(component.max(initial=-1) + 1, bool)
    pinned_class[component[pins >= 0]] = True
    wanted_class = np.zeros_like(pinned_class)
    for kernel in kernels:
        for axis in kernel.reduction_axes:
            wanted_class[component[axes.variable_axes[kernel.variable, axis]]] = True
    wanted_class &= ~pinned_class
    members = np.flatnonzero(wanted_class[component])
    edges = _edges_within(axes, members)
    places = _places(axes)
    by_variable: dict[int, list[int]] = {}
    for index, kernel in enumerate(kernels):
        by_variable.setdefault(kernel.variable, []).append(index)

    groups: list[Group] = []
    movable = [np.zeros(k.reduction_size, bool) for k in kernels]
    for table in _exchangeable(axes.axis_of()[members], component[members], edges):
        slots = tuple(_slots(members[table], places))
        group = _group(slots, kernels, by_variable, n)
        if group is None:
            continue
        groups.append(group)
        for part in group.parts:
            movable[part.kernel][part.positions] = True
    groups.sort(key=lambda g: (min(g.kernels), g.slots[0].variable, g.slots[0].axis, int(g.slots[0].positions[0])))
    reasons = _reasons(axes, kernels, component, pins, pinned_class, movable, n)
    return PermutationPlan(tuple(kernels), tuple(groups), tuple(int(m.sum()) for m in movable), tuple(reasons))


# Which classes may be exchanged


def _edges_within(axes: Axes, members: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The ties among `members`, as positions in `members`. A class has all its ties within itself."""
    position = np.full(axes.count, -1, np.int64)
    position[members] = np.arange(len(members))
    a, b, label = axes.edges()
    keep = position[a] >= 0
    return position[a[keep]], position[b[keep]], label[keep].astype(np.uint64)


def _exchangeable(
    axis: np.ndarray, component: np.ndarray, edges: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> list[np.ndarray]:
    """Groups of exchangeable classes.

    Args:
      axis: the axis of each element, shape (E,).
      component: its class, shape (E,).
      edges: ties between them, as positions, and their labels.

    Returns:
      Per group an int array (elements per class, classes): each column is a class, each row one element of each class,
      all in the same axis and with the same ties.
    """
    if not len(axis):
        return []
    name = _names(axis, component, edges)
    a, b, label = edges
    per_class = np.zeros(component.max() + 1, np.uint64)
    np.add.at(per_class, component, _mix(name))
    # A tie is undirected for the exchange, but `a` and `b` are different inputs of the op: keep the direction.
    np.add.at(per_class, component[a], _mix(_mix(label) + _mix(name[a] + np.uint64(1)) * np.uint64(3) + _mix(name[b])))
    order = np.lexsort((np.arange(len(name)), name, component))
    starts = np.flatnonzero(np.diff(component[order], prepend=-1))
    classes = component[order][starts]
    sizes = np.diff(starts, append=len(order))
    _, first, inverse = np.unique(
        np.stack([per_class[classes], sizes.astype(np.uint64)], 1), axis=0, return_index=True, return_inverse=True
    )
    inverse = inverse.reshape(-1)
    tables = []
    for group in np.argsort(first, kind="stable"):
        rows = np.flatnonzero(inverse == group)
        size = sizes[rows[0]]
        table = order[starts[rows][:, None] + np.arange(size)].T
        if len(rows) > 1:
            # Equal hashes, but say so from the data: every row of the table lies in one axis.
            same = (axis[table] == axis[table[:, :1]]).all()
            if not same:
                raise AssertionError("signatures of axis classes collide")
            tables.append(table[:, np.argsort(table[0], kind="stable")])
    return tables


def _names(axis: np.ndarray, component: np.ndarray, edges: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    """A uint64 for each element: unique within its class, and equal for the counterparts in an exchangeable class."""
    colour = _mix(axis.astype(np.uint64))
    a, b, label = edges
    salt = _mix(label)
    distinct = 0
    for _ in range(_MAX_ROUNDS):
        pair = np.unique(np.stack([component.astype(np.uint64), colour], 1), axis=0)
        if len(pair) == len(colour) or len(pair) == distinct:
            break  # told apart as far as they can be
        distinct = len(pair)
        update = np.zeros_like(colour)
        np.add.at(update, a, _mix(salt + _mix(colour[b]) * np.uint64(3)))
        np.add.at(update, b, _mix(salt + _mix(colour[a]) * np.uint64(5)))
        colour = _mix(colour * np.uint64(7) + update)
    # What is left are copies with equal surroundings: number them by position. The hash of the ties, which contains
    # these names, then decides whether that numbering was consistent; if not, the classes are not exchanged.
    order = np.lexsort((np.arange(len(colour)), colour, component))
    new_run = (np.diff(component[order], prepend=-1) != 0) | (np.diff(colour[order], prepend=~colour[order][0]) != 0)
    start = np.maximum.accumulate(np.where(new_run, np.arange(len(order)), 0))
    rank = np.empty(len(order), np.uint64)
    rank[order] = (np.arange(len(order)) - start).astype(np.uint64)
    return _mix(colour + _mix(rank))


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer: a bijection of 64-bit words in which every input bit changes half of the output bits."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


# Where they live


def _places(axes: Axes) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """First element and (variable, axis) of every axis of every variable. They are the first elements made."""
    items = sorted((int(ids[0]), key) for key, ids in axes.variable_axes.items() if len(ids))
    end = max((int(ids[-1]) + 1 for ids in axes.variable_axes.values() if len(ids)), default=0)
    return np.array([start for start, _ in items] + [end]), [key for _, key in items]


def _slots(table: np.ndarray, places: tuple[np.ndarray, list[tuple[int, int]]]) -> list[Slot]:
    starts, keys = places
    slots = []
    for row in table:
        if row[0] < starts[-1]:
            index = int(np.searchsorted(starts, row[0], side="right")) - 1
            slots.append(Slot(*keys[index], positions=row - starts[index]))
    return sorted(slots, key=lambda s: (s.variable, s.axis, int(s.positions[0])))


def _group(
    slots: tuple[Slot, ...], kernels: Sequence[PlannedKernel], by_variable: dict[int, list[int]], n: int
) -> Group | None:
    """The group of `slots`, with its search matrix; None if it cannot reorder two whole stripes of any kernel."""
    parts = [
        MatrixPart(index, positions)
        for slot in slots
        for index in by_variable.get(slot.variable, ())
        if slot.axis in kernels[index].reduction_axes
        for positions in _flat_positions(kernels[index], slot)
    ]
    if not parts:
        return None
    # Each part cuts the channels into stripes in its own way. The search serves the cut that most weights share.
    weight: dict[bytes, int] = {}
    cuts = [_stripes(part.positions, kernels[part.kernel].reduction_size, n) for part in parts]
    for part, cut in zip(parts, cuts, strict=True):
        kernel = kernels[part.kernel]
        rows = math.prod(kernel.shape) // max(kernel.reduction_size, 1)
        weight[cut.tobytes()] = weight.get(cut.tobytes(), 0) + rows * int((cut >= 0).sum())
    best = max(weight, key=lambda key: weight[key])
    reference = next(i for i, cut in enumerate(cuts) if cut.tobytes() == best)
    cut = cuts[reference]
    channels = np.flatnonzero(cut >= 0)
    if len(channels) < 2 * n:
        return None
    columns = channels[np.argsort(parts[reference].positions[channels], kind="stable")]
    used = tuple(
        MatrixPart(part.kernel, part.positions[columns])
        for part, other in zip(parts, cuts, strict=True)
        if np.array_equal(other, cut)
    )
    touched = tuple(sorted({part.kernel for part in parts}))
    name = kernels[min(part.kernel for part in used)].name
    return Group(name, len(slots[0].positions), slots, columns, used, touched)


def _flat_positions(kernel: PlannedKernel, slot: Slot) -> list[np.ndarray]:
    """The channels' positions on the flat reduction axis, once for each position of its other axes."""
    sizes = [kernel.shape[a] for a in kernel.reduction_axes]
    where = kernel.reduction_axes.index(slot.axis)
    inner = math.prod(sizes[where + 1 :])
    flat = np.arange(math.prod(sizes)).reshape(math.prod(sizes[:where]), sizes[where], inner)
    return [flat[o, slot.positions, i] for o in range(flat.shape[0]) for i in range(inner)]


def _stripes(positions: np.ndarray, size: int, n: int) -> np.ndarray:
    """For each channel the first channel of its stripe; -1 where the stripe is not wholly made of these channels."""
    stripe = positions // n
    _, inverse, counts = np.unique(stripe, return_inverse=True, return_counts=True)
    inverse = inverse.reshape(-1)
    first = np.full(len(counts), len(positions))
    np.minimum.at(first, inverse, np.arange(len(positions)))
    return np.where(counts[inverse] == n, first[inverse], -1)


# Why the rest may not move


def _reasons(
    axes: Axes,
    kernels: Sequence[PlannedKernel],
    component: np.ndarray,
    pins: np.ndarray,
    pinned_class: np.ndarray,
    movable: Sequence[np.ndarray],
    n: int,
) -> list[str | None]:
    nearest: np.ndarray | None = None
    reasons: list[str | None] = []
    for kernel, moves in zip(kernels, movable, strict=True):
        if moves.all():
            reasons.append(None)
            continue
        if nearest is None:
            nearest = _nearest_pin(axes, pins, pinned_class[component])
        elements = [axes.variable_axes[kernel.variable, axis] for axis in kernel.reduction_axes]
        grid = np.stack([g.ravel() for g in np.meshgrid(*elements, indexing="ij")])
        stuck = grid[:, ~moves]
        found = nearest[stuck[-1]]
        if (found >= 0).any():
            reasons.append(str(axes.reasons[int(found[found >= 0][0])]))
        else:
            reasons.append(f"its channels cannot be exchanged in two or more whole stripes of {n}")
    return reasons


def _nearest_pin(axes: Axes, pins: np.ndarray, pinned: np.ndarray) -> np.ndarray:
    """For every pinned element the index of the reason that is the fewest ties away."""
    nearest = pins.copy()
    a, b, _ = axes.edges()
    keep = pinned[a]
    a, b = a[keep], b[keep]
    while True:
        open_ = (nearest[a] < 0) != (nearest[b] < 0)
        if not open_.any():
            return nearest
        source = np.where(nearest[a[open_]] >= 0, a[open_], b[open_])
        target = np.where(nearest[a[open_]] >= 0, b[open_], a[open_])
        nearest[target] = nearest[source]
