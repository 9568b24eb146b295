"""From axis classes to permutation groups: which channels are reordered together, and where each of them lives.

The result is plain data: a :class:`PermutationPlan` owns positions of variable axes and reasons, no model and no graph.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np

from tfmot_asp.permutation.axes import Axes, Classes
from tfmot_asp.permutation.exchange import exchangeable
from tfmot_asp.reason import Reason


@dataclasses.dataclass(frozen=True)
class PlannedKernel:
    """A kernel to be pruned, as the plan sees it: axes that are taken as one (see `merged_axes`) are one here.

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

    @property
    def rows(self) -> int:
        """Weights at each position of the reduction axis."""
        return math.prod(self.shape) // max(self.reduction_size, 1)

    def flat(self, score: np.ndarray) -> np.ndarray:
        """Scores of its weights, the flat reduction axis first: shape (reduction size, everything else)."""
        first = np.moveaxis(score.reshape(self.shape), self.reduction_axes, range(len(self.reduction_axes)))
        return first.reshape(self.reduction_size, -1)


@dataclasses.dataclass(frozen=True, eq=False)
class Place:
    """Where the channels of a group sit in one axis of a variable, or run of axes: channel i at `positions[i]`."""

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
        places: all variable axes that carry them; reordering all of them alike changes no output.
        columns: channels that take part in the search, in the order of the search matrix's columns; consecutive runs of
            n are stripes now. Channels in stripes that straddle the group's edge stay where they are.
        parts: the rows of the search matrix.
        kernels: the kernels with a place on their reduction axis, also those whose stripes are cut otherwise.
        level: 0, or the size of the blocks that are its channels; see `Axes.levels`.
        woven: the kernels of which stripes that are not wholly made of it can gain by its order: see `weave`.
    """

    name: str
    size: int
    places: tuple[Place, ...]
    columns: np.ndarray
    parts: tuple[MatrixPart, ...]
    kernels: tuple[int, ...]
    level: int = 0
    woven: tuple[int, ...] = ()

    def positions_in(self, kernel: int, kernels: Sequence[PlannedKernel]) -> np.ndarray:
        """Where its channels are on the flat reduction axis of a kernel, an int array (copies, channels)."""
        planned = kernels[kernel]
        found = [
            positions
            for place in self.places
            if place.variable == planned.variable and place.axis in planned.reduction_axes
            for positions in _flat_positions(planned, place)
        ]
        return np.stack(found)


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
    reasons: tuple[Reason | None, ...]

    def status(self, kernel: int) -> str:
        """What an order of its groups makes of a kernel: "permuted", "partly permuted" or "fixed"."""
        movable, size = self.movable[kernel], self.kernels[kernel].reduction_size
        return "permuted" if movable == size else "partly permuted" if movable else "fixed"


def plan_groups(axes: Axes, kernels: Sequence[PlannedKernel], n: int = 4) -> PermutationPlan:
    """Groups the axis classes that occur on the reduction axis of a kernel.

    Args:
        axes: the analysed graph.
        kernels: kernels to be pruned; the others move along, but give no rows to the search.
        n: stripe length.

    Returns:
        The plan.
    """
    summed = [axes.variable_axes[kernel.variable, axis] for kernel in kernels for axis in kernel.reduction_axes]
    variables = _VariableAxes(axes)
    by_variable: dict[int, list[int]] = {}
    for index, kernel in enumerate(kernels):
        by_variable.setdefault(kernel.variable, []).append(index)

    groups: list[Group] = []
    movable = [np.zeros(k.reduction_size, bool) for k in kernels]
    for level in axes.levels():
        classes = axes.classes(level)
        wanted = classes.holding(summed) & ~classes.pinned & ~axes.held(classes)
        if level:
            wanted &= axes.whole_blocks(classes)
        for table in exchangeable(axes, classes, np.flatnonzero(wanted[classes.of])):
            group = _group(variables.places(table), kernels, by_variable, n, level)
            if group is None:
                continue
            groups.append(group)
            for part in group.parts:
                movable[part.kernel][part.positions] = True
            for index in group.woven:
                movable[index][group.positions_in(index, kernels)] = True
    groups.sort(
        key=lambda g: (g.level, min(g.kernels), g.places[0].variable, g.places[0].axis, int(g.places[0].positions[0]))
    )
    classes = axes.classes()
    why = _WhyNot(axes, classes, n)
    reasons = tuple(why(kernel, moves) for kernel, moves in zip(kernels, movable, strict=True))
    return PermutationPlan(tuple(kernels), tuple(groups), tuple(int(m.sum()) for m in movable), reasons)


# Where they live


class _VariableAxes:
    """Finds the variable axis that an element belongs to: those of variables are the first elements made."""

    def __init__(self, axes: Axes):
        found = sorted((int(ids[0]), key) for key, ids in axes.variable_axes.items() if len(ids))
        self.keys = [key for _, key in found]
        self.starts = np.array([start for start, _ in found])
        self.end = max((int(ids[-1]) + 1 for ids in axes.variable_axes.values() if len(ids)), default=0)

    def places(self, table: np.ndarray) -> tuple[Place, ...]:
        """Where in variables the channels of a group are: its elements of shape (elements per channel, channels)."""
        places = []
        for row in table[table[:, 0] < self.end]:
            index = int(np.searchsorted(self.starts, row[0], side="right")) - 1
            places.append(Place(*self.keys[index], positions=row - self.starts[index]))
        return tuple(sorted(places, key=lambda p: (p.variable, p.axis, int(p.positions[0]))))


def _group(
    places: tuple[Place, ...], kernels: Sequence[PlannedKernel], by_variable: dict[int, list[int]], n: int, level: int
) -> Group | None:
    """The group of `places`, with its search matrix; None if no order of it changes what shares a stripe."""
    parts = [
        MatrixPart(index, positions)
        for place in places
        for index in by_variable.get(place.variable, ())
        if place.axis in kernels[index].reduction_axes
        for positions in _flat_positions(kernels[index], place)
    ]
    if not parts:
        return None
    # Each part cuts the channels into stripes in its own way. The search serves the cut that most weights share.
    weight: dict[bytes, int] = {}
    cuts = [_stripes(part.positions, kernels[part.kernel].reduction_size, n) for part in parts]
    for part, cut in zip(parts, cuts, strict=True):
        kernel = kernels[part.kernel]
        weight[cut.tobytes()] = weight.get(cut.tobytes(), 0) + kernel.rows * int((cut >= 0).sum())
    best = max(weight, key=lambda key: weight[key])
    reference = next(i for i, cut in enumerate(cuts) if cut.tobytes() == best)
    cut = cuts[reference]
    channels = np.flatnonzero(cut >= 0)
    touched = tuple(sorted({part.kernel for part in parts}))
    used: tuple[MatrixPart, ...] = ()
    columns = channels[:0]
    if len(channels) >= 2 * n:
        columns = channels[np.argsort(parts[reference].positions[channels], kind="stable")]
        used = tuple(
            MatrixPart(part.kernel, part.positions[columns])
            for part, other in zip(parts, cuts, strict=True)
            if np.array_equal(other, cut)
        )
    woven = tuple(
        index
        for index in touched
        if mixes(np.stack([part.positions for part in parts if part.kernel == index]), kernels[index].reduction_size, n)
    )
    if not used and not woven:
        return None
    name = kernels[min((part.kernel for part in used), default=woven[0] if woven else 0)].name
    return Group(name, len(places[0].positions), places, columns, used, touched, level, woven)


def mixes(positions: np.ndarray, size: int, n: int) -> bool:
    """Whether a stripe holds channels of a group beside others, and its order decides which.

    Args:
        positions: (copies, channels), of the group's channels on a kernel's reduction axis.
        size: of that axis.
        n: stripe length.
    """
    stripes = np.sort(positions // n, axis=0)
    if (stripes == stripes[:, :1]).all():
        return False  # all channels are in the same stripes
    copy, owner = np.full(-(-size // n) * n, -1), np.full(-(-size // n) * n, -1)
    copy[positions], owner[positions] = np.arange(len(positions))[:, None], np.arange(positions.shape[1])
    of_stripe = np.stack([copy, owner]).reshape(2, -1, n)
    one_copy, one_owner = (of_stripe == of_stripe[:, :, :1]).all(2)
    return bool((~one_copy & ~one_owner & (of_stripe[1] >= 0).any(1)).any())


def _flat_positions(kernel: PlannedKernel, place: Place) -> list[np.ndarray]:
    """The channels' positions on the flat reduction axis, once for each position of its other axes."""
    sizes = [kernel.shape[a] for a in kernel.reduction_axes]
    where = kernel.reduction_axes.index(place.axis)
    inner = math.prod(sizes[where + 1 :])
    flat = np.arange(math.prod(sizes)).reshape(math.prod(sizes[:where]), sizes[where], inner)
    return [flat[o, place.positions, i] for o in range(flat.shape[0]) for i in range(inner)]


def _stripes(positions: np.ndarray, size: int, n: int) -> np.ndarray:
    """For each channel the first channel of its stripe; -1 where the stripe is not wholly made of these channels."""
    stripe = positions // n
    _, inverse, counts = np.unique(stripe, return_inverse=True, return_counts=True)
    inverse = inverse.reshape(-1)
    first = np.full(len(counts), len(positions))
    np.minimum.at(first, inverse, np.arange(len(positions)))
    return np.where(counts[inverse] == n, first[inverse], -1)


# Why the rest may not move


class _WhyNot:
    """Says why positions on the reduction axis of a kernel stay: the pin that is the fewest ties away."""

    def __init__(self, axes: Axes, classes: Classes, n: int):
        self.axes = axes
        self.classes = classes
        self.n = n

    def __call__(self, kernel: PlannedKernel, moves: np.ndarray) -> Reason | None:
        """The reason, from whether each position moves; None if all do."""
        if moves.all():
            return None
        elements = [self.axes.variable_axes[kernel.variable, axis] for axis in kernel.reduction_axes]
        innermost = np.broadcast_to(elements[-1], [len(ids) for ids in elements]).ravel()
        for reasons in (self.nearest_pin, self.axes.mark_reasons()):
            found = reasons[innermost[~moves]]
            if (found >= 0).any():
                return self.axes.reasons[int(found[found >= 0][0])]
        return Reason("", f"no exchange of its channels changes what shares a stripe of {self.n}")

    @functools.cached_property
    def nearest_pin(self) -> np.ndarray:
        """For every pinned element the index of the reason that is the fewest ties away."""
        nearest = self.classes.pin.copy()
        a, b, _ = self.axes.ties()
        keep = self.classes.pinned[self.classes.of[a]]
        a, b = a[keep], b[keep]
        while True:
            known = nearest >= 0
            frontier = known[a] != known[b]
            if not frontier.any():
                return nearest
            a_is_known = known[a[frontier]]
            source = np.where(a_is_known, a[frontier], b[frontier])
            target = np.where(a_is_known, b[frontier], a[frontier])
            nearest[target] = nearest[source]
