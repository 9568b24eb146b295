"""Walking back to constants: the same walk for any graph that says what its tensors are made of."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfmot_asp.graph.constants import Constants, behind


class Sums(Constants):
    """Tensor i is the sum of others plus one, or a stored number."""

    def __init__(self, made_of):
        super().__init__()
        self.made_of, self.runs = made_of, []

    def inputs(self, tensor):
        return self.made_of[tensor] if isinstance(self.made_of[tensor], list) else []

    def stored(self, tensor):
        return None if isinstance(self.made_of[tensor], list) else np.asarray(self.made_of[tensor])

    def run(self, tensor):
        self.runs.append(tensor)
        return {tensor: np.asarray(1 + sum(self.known[source] for source in self.made_of[tensor]))}

    def rank(self, tensor):
        return None if isinstance(self.made_of[tensor], list) else (self.made_of[tensor],)


def by_recursion(made_of, tensor):
    made = made_of[tensor]
    return 1 + sum(by_recursion(made_of, source) for source in made) if isinstance(made, list) else made


@given(st.data())
def test_values_and_sources_are_those_of_the_recursion(data):
    count = data.draw(st.integers(1, 8))
    made_of = {}
    for i in range(count):
        earlier = st.lists(st.integers(0, max(i - 1, 0)), max_size=3) if i else st.just([])
        made_of[i] = data.draw(st.one_of(st.integers(0, 9), earlier))
    sums = Sums(made_of)
    for tensor in data.draw(st.permutations(range(count))):
        assert sums.value(tensor) == by_recursion(made_of, tensor)
        all_behind = set(behind(tensor, sums.inputs))
        stored = [i for i in all_behind if not isinstance(made_of[i], list)]
        source = sums.source(tensor)
        assert source == tensor if not stored else made_of[source] == max(made_of[i] for i in stored)
    assert len(set(sums.runs)) == len(sums.runs)  # each once


def test_chains_may_be_long_and_circles_raise():
    length = 5000
    sums = Sums({0: 1} | {i: [i - 1] for i in range(1, length)})
    assert sums.value(length - 1) == length
    with pytest.raises(ValueError, match="in a circle"):
        Sums({0: [1], 1: [2], 2: [0]}).value(0)
