"""Which classes may be exchanged, against the definition: a one-to-one map that keeps axes and ties."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tfmot_asp.graph.flat_graph import Graph
from tfmot_asp.permutation.axes import Axes
from tfmot_asp.permutation.exchange import exchangeable


@st.composite
def tied(draw):
    """Two or three axes of few positions with random ties, some of them alike so that something can be exchanged."""
    axes = Axes(Graph([], [], [], []))
    channels = draw(st.integers(2, 4))
    wide = axes.fresh(channels)
    for _ in range(draw(st.integers(1, 3))):
        copies = draw(st.integers(1, 2))
        other = axes.fresh(channels * copies)
        by_pair = np.array(draw(st.lists(st.integers(0, 1), min_size=len(other), max_size=len(other))))
        label = draw(st.sampled_from([0, np.repeat(np.arange(copies), channels), by_pair]))
        axes.tie(np.tile(wide, copies), draw(st.sampled_from([other, other[::-1]])), label)
        if draw(st.booleans()):  # two pairs of any axes, by one tie
            some = draw(st.permutations(range(axes.count)))[:4]
            axes.tie(np.array(some[:2]), np.array(some[2:]), draw(st.sampled_from([0, np.arange(2)])))
    for _ in range(draw(st.integers(0, 2))):
        axes.fresh(2)  # alike in all but the axis that they are in
    return axes


def may_be_exchanged(axes: Axes, one: np.ndarray, other: np.ndarray) -> bool:
    """By trying every map from the elements of `one` to those of `other`."""
    axis = axes.axis_of()

    def ties_within(elements: np.ndarray) -> list[tuple[int, int, int]]:
        return sorted((a, b, label) for a, b, label in zip(*axes.ties(), strict=True) if a in elements)

    if len(one) != len(other):
        return False
    wanted = ties_within(other)
    for images in itertools.permutations(other):
        counterpart = dict(zip(one, images, strict=True))
        if all(axis[e] == axis[f] for e, f in counterpart.items()) and wanted == sorted(
            (counterpart[a], counterpart[b], label) for a, b, label in ties_within(one)
        ):
            return True
    return False


@given(tied())
def test_what_is_exchanged_may_be(axes):
    classes = axes.classes()
    for table in exchangeable(axes, classes, np.arange(axes.count)):
        assert (np.diff(np.sort(table, None)) > 0).all()
        for column in table.T:
            assert len(column) == (classes.of == classes.of[column[0]]).sum()
            assert (axes.axis_of()[column] == axes.axis_of()[table[:, 0]]).all()
            counterpart = dict(zip(table[:, 0], column, strict=True))
            ties = sorted(zip(*axes.ties(), strict=True))
            moved = [(counterpart[a], counterpart[b], label) for a, b, label in ties if a in counterpart]
            assert sorted(moved) == [tie for tie in ties if tie[0] in column]


@given(tied())
def test_what_may_be_exchanged_by_axes_and_labels_alone_is(axes):
    """Where no class holds two elements alike, names are unique and nothing that may be exchanged is missed."""
    classes = axes.classes()
    members = [np.flatnonzero(classes.of == c) for c in range(len(classes.pinned))]
    if any(len(m) > 6 or len(np.unique(axes.axis_of()[m])) < len(m) for m in members):
        return
    group_of = {}
    for number, table in enumerate(exchangeable(axes, classes, np.arange(axes.count))):
        group_of.update(dict.fromkeys(classes.of[table[0]].tolist(), number))
    for one, other in itertools.combinations(range(len(members)), 2):
        found = one in group_of and group_of.get(one) == group_of.get(other)
        assert found == may_be_exchanged(axes, members[one], members[other])
