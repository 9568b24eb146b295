"""Functions that call each other: against copies that are really made."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfmot_asp.graph.call_sizes import sizes_once_called


def naive(calls, name):
    return 1 + sum(naive(calls, inner) for inner in calls[name])


@given(st.lists(st.lists(st.integers(0, 5), max_size=4), min_size=1, max_size=6))
def test_sizes_are_those_of_copies(wishes):
    calls = {i: [inner for inner in inners if inner < i] for i, inners in enumerate(wishes)}  # none in a circle
    for order in (list(calls), list(calls)[::-1]):
        found = sizes_once_called(order, calls.__getitem__, lambda name: 1, deepest=10)
        assert found == {name: naive(calls, name) for name in calls}


def test_circles_and_depth_are_errors_and_each_function_is_looked_at_once():
    with pytest.raises(ValueError, match="'b' calls itself"):
        sizes_once_called("ab", {"a": ["b"], "b": ["c"], "c": ["b"]}.__getitem__, lambda name: 1, 10)
    chain = {i: [i + 1] if i < 5000 else [] for i in range(5001)}
    with pytest.raises(ValueError, match="more than 100 deep"):
        sizes_once_called(chain, chain.__getitem__, lambda name: 1, 100)
    wide = {0: list(range(1, 5001)), **{i: [] for i in range(1, 5001)}}
    asked = []
    assert sizes_once_called(wide, lambda i: asked.append(i) or wide[i], lambda i: 1, 10)[0] == 5001
    assert sorted(asked) == list(range(5001))
