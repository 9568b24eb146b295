"""Chains of reshapes and transposes as one reordering, against NumPy."""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from tfmot_asp.graph.flatten import trace_function
from tfmot_asp.permutation.rearrange import find_rearrangements


@st.composite
def chains(draw):
    """A shape, and steps that split an axis in two, transpose, or merge two neighbours, with the shapes between."""
    shape = start = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 4, 6, 8]), min_size=1, max_size=3)))
    steps = []
    for _ in range(draw(st.integers(2, 6))):
        kind = draw(st.sampled_from(["split", "transpose", "merge", "back"]))
        axis = draw(st.integers(0, len(shape) - 1))
        if kind == "split":
            part = draw(st.sampled_from([n for n in range(1, shape[axis] + 1) if shape[axis] % n == 0]))
            shape = (*shape[:axis], part, shape[axis] // part, *shape[axis + 1 :])
        elif kind == "transpose":
            order = draw(st.permutations(range(len(shape))))
            steps.append(("transpose", order))
            shape = tuple(shape[i] for i in order)
            continue
        elif kind == "back" and math.prod(shape) == math.prod(start):
            shape = start
        elif axis:
            shape = (*shape[: axis - 1], shape[axis - 1] * shape[axis], *shape[axis + 1 :])
        steps.append(("reshape", shape))
    return start, steps


def run(x, steps, reshape, transpose):
    for kind, value in steps:
        x = reshape(x, value) if kind == "reshape" else transpose(x, value)
    return x


@given(chains())
def test_rearrangements_do_what_the_chain_does(chain):
    shape, steps = chain
    function = tf.function(lambda x: run(x + 1.0, steps, tf.reshape, tf.transpose) + 1.0, autograph=False)
    graph = trace_function(function.get_concrete_function(tf.TensorSpec(shape)))
    for index, found in find_rearrangements(graph).items():
        source = np.arange(math.prod(found.source.shape)).reshape(found.source.shape)
        position = {op.index: i for i, op in enumerate(graph.ops)}
        links = [*found.inner, graph.ops[position[index]]]
        value = source
        for op in links:
            value = (
                value.transpose(op.inputs[1].value) if op.type == "Transpose" else value.reshape(op.outputs[0].shape)
            )
        expected = source
        kept = [item for item in found.axes if item is not None]
        for axis, positions in kept:
            expected = expected.take(positions, axis)
        order = [axis for axis, _ in kept]
        rest = [axis for axis in range(source.ndim) if axis not in order]
        np.testing.assert_array_equal(expected.transpose(order + rest).reshape(value.shape), value)


def shuffled(x):
    return tf.reshape(tf.transpose(tf.nn.relu(tf.reshape(x, (2, 5, 3, 4))), (0, 1, 3, 2)), (2, 5, 12))


def test_a_channel_shuffle_is_one_reordering():
    function = tf.function(shuffled, autograph=False).get_concrete_function(tf.TensorSpec((2, 5, 12)))
    (found,) = find_rearrangements(trace_function(function)).values()
    assert [axis for axis, _ in found.axes] == [0, 1, 2]
    np.testing.assert_array_equal(found.axes[2][1], np.arange(12).reshape(3, 4).T.ravel())


def test_a_split_that_stays_one_is_none():
    def split(x):
        return tf.transpose(tf.reshape(x, (2, 3, 4)), (0, 2, 1))

    function = tf.function(split, autograph=False).get_concrete_function(tf.TensorSpec((2, 12)))
    assert not find_rearrangements(trace_function(function))
