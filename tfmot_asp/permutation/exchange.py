"""Which axis classes may be exchanged with each other.

Definition. Two classes may be exchanged if there is a one-to-one map from the elements of the one to those of the other
such that

1. each element and its counterpart lie in the same axis, and
2. there is a tie from a to b with some label exactly if there is one from a's to b's counterpart with that label;
3. each element and its counterpart have the same marks, and lie in the same blocks, but for blocks that move with their
   class: at level s those of at most s channels are ties as in 2, and the others stay where they are.

Then swapping each element with its counterpart reorders every axis and maps the graph of ties onto itself, so by the
promise of the rules no output changes. Being exchangeable is an equivalence: such classes form a permutation group.

Example: a convolution's output of 3 x 3 pixels and 64 channels is flattened into a Dense layer of 576 inputs. Each
channel is a class: one element of the kernel's output axis, one of the bias, and nine of the Dense kernel's input axis,
tied to it with labels 0 to 8, by the pixel. Pixel 5 of channel 7 is the counterpart of pixel 5 of channel 8. Were the
pixels not told apart by the labels, any of nine could be.

To find the map, every element gets a *name*, a hash that is unique within its class and that only its counterparts in
other classes share. The sum of the hashes of a class's names and of its ties, each as (label, name, name), is its
*signature*. Classes with equal signatures may be exchanged.
"""

from __future__ import annotations

import numpy as np

from tfmot_asp.permutation.axes import Axes, Classes, Ties

_MAX_ROUNDS = 64


def exchangeable(axes: Axes, classes: Classes, members: np.ndarray) -> list[np.ndarray]:
    """Groups of two or more exchangeable classes.

    Args:
        axes: with all ties.
        classes: of `axes`.
        members: the elements of the classes to look at, ascending; all of each class.

    Returns:
        For each group an int array of element ids, shape (elements per class, classes): a column for each class, in
        each row elements that are counterparts of each other.
    """
    if not len(members):
        return []
    axis, component = axes.axis_of()[members], classes.of[members]
    ties = _within(axes, members, classes.level)
    name = _names(_first_colours(axes, members, axis, classes.level), component, ties)
    by_class = np.lexsort((np.arange(len(name)), name, component))
    labels, starts, sizes = np.unique(component[by_class], return_index=True, return_counts=True)
    signature = np.stack([_signatures(component, name, ties)[labels], sizes.astype(np.uint64)], 1)
    _, first, group_of = np.unique(signature, axis=0, return_index=True, return_inverse=True)
    tables = []
    for group in np.argsort(first, kind="stable"):
        together = np.flatnonzero(group_of.reshape(-1) == group)
        if len(together) < 2:
            continue
        table = by_class[starts[together][:, None] + np.arange(sizes[together[0]])].T
        if not (axis[table] == axis[table[:, :1]]).all():  # hashes are equal, so it is, but for a collision
            raise AssertionError("signatures of axis classes collide")
        tables.append(members[table[:, np.argsort(table[0], kind="stable")]])
    return tables


def _first_colours(axes: Axes, members: np.ndarray, axis: np.ndarray, level: int) -> np.ndarray:
    """Hashes for each element what its counterparts share by condition 1 and 3: its axis, blocks and marks."""
    colour = _mix(axis.astype(np.uint64))
    kept = axes.constraints(level)
    if len(kept.a):
        seen = np.zeros(axes.count, np.uint64)
        np.add.at(seen, kept.a, _mix(_mix(kept.label.astype(np.uint64)) + kept.b.astype(np.uint64)))
        colour = _mix(colour + seen[members])
    return colour


def _within(axes: Axes, members: np.ndarray, level: int) -> Ties:
    """The ties among `members`, as positions in `members`. A class has all its ties within itself."""
    position = np.full(axes.count, -1, np.int64)
    position[members] = np.arange(len(members))
    a, b, label = axes.ties(level)
    keep = position[a] >= 0
    return Ties(position[a[keep]], position[b[keep]], label[keep].astype(np.uint64))


def _names(colour: np.ndarray, component: np.ndarray, ties: Ties) -> np.ndarray:
    """A uint64 for each element: unique within its class, and equal for the counterparts in an exchangeable class."""
    colour = _colours(colour, component, ties)
    # What has one colour within a class are copies with equal surroundings: they are numbered by position. The
    # signature, which hashes ties with these names, then decides whether that was consistent over two classes; if not,
    # the two are not exchanged.
    order = np.lexsort((np.arange(len(colour)), colour, component))
    new_run = (np.diff(component[order], prepend=-1) != 0) | (np.diff(colour[order], prepend=~colour[order][0]) != 0)
    start = np.maximum.accumulate(np.where(new_run, np.arange(len(order)), 0))
    number = np.empty(len(order), np.uint64)
    number[order] = (np.arange(len(order)) - start).astype(np.uint64)
    return _mix(colour + _mix(number))


def _colours(colour: np.ndarray, component: np.ndarray, ties: Ties) -> np.ndarray:
    """Weisfeiler-Leman refinement: hashes each element's colour with those that it is tied to, and so on."""
    salt = _mix(ties.label)
    distinct = 0
    for _ in range(_MAX_ROUNDS):
        found = len(np.unique(np.stack([component.astype(np.uint64), colour], 1), axis=0))
        if found in (len(colour), distinct):
            break  # told apart as far as they can be
        distinct = found
        seen = np.zeros_like(colour)
        np.add.at(seen, ties.a, _mix(salt + _mix(colour[ties.b]) * np.uint64(3)))
        np.add.at(seen, ties.b, _mix(salt + _mix(colour[ties.a]) * np.uint64(5)))
        colour = _mix(colour * np.uint64(7) + seen)
    return colour


def _signatures(component: np.ndarray, name: np.ndarray, ties: Ties) -> np.ndarray:
    """The signature of each class: sums over its elements and ties, which do not depend on their order."""
    signature = np.zeros(component.max() + 1, np.uint64)
    np.add.at(signature, component, _mix(name))
    # Exchanges know no direction, but `a` and `b` are different inputs of the op: hash them differently.
    tie = _mix(_mix(ties.label) + _mix(name[ties.a] + np.uint64(1)) * np.uint64(3) + _mix(name[ties.b]))
    np.add.at(signature, component[ties.a], tie)
    return signature


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer: a bijection of 64-bit words in which every input bit changes half of the output bits."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
