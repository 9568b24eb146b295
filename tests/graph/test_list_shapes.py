"""Sizes of what is taken out of lists, in functions that were traced for any batch size."""

from __future__ import annotations

import pytest
import tensorflow as tf

from tfmot_asp.graph.flatten import trace_function

SHAPE = (3, 5, 4)


def step_by_step(x):
    """Reads a list from its end and writes another, as a recurrent layer does."""
    steps = tf.TensorArray(tf.float32, 5).unstack(tf.transpose(x, (1, 0, 2)))
    out = tf.TensorArray(tf.float32, 5)

    def body(i, state, out):
        state = tf.tanh(state + steps.read(4 - i))
        return i + 1, state, out.write(4 - i, state)

    return tf.while_loop(lambda i, *_: i < 5, body, (0, tf.zeros_like(x[:, 0]), out))[2].stack()


def growing(x):
    """Fills a list of no fixed length, as a gradient's tape, and reads it in another loop."""
    tape = tf.TensorArray(tf.float32, 0, dynamic_size=True, clear_after_read=False)
    last, tape = tf.while_loop(lambda y, t: t.size() < 4, lambda y, t: (y * 2.0, t.write(t.size(), y)), (x, tape))
    return tf.while_loop(lambda i, y: i >= 0, lambda i, y: (i - 1, y + tape.read(i)), (3, last))[1]


def chosen(x):
    out = tf.TensorArray(tf.float32, 3)
    return tf.cond(tf.reduce_sum(x) > 0, lambda: out.unstack(x), lambda: out.unstack(x * 2.0)).stack()


def exchanged(x):
    """Two lists of several shapes trade places."""
    short, long = (tf.TensorArray(tf.float32, 4, infer_shape=False, clear_after_read=False) for _ in range(2))

    def body(i, short, long):
        return i + 1, long.write(i, long.read(i - 1)), short.write(i, short.read(i - 1))

    start = (1, short.write(0, x[:, :2]), long.write(0, x))
    return tf.while_loop(lambda i, *_: i < 3, body, start)[1].read(1)


@pytest.mark.parametrize("function", [step_by_step, growing, chosen, lambda x: tf.map_fn(tf.tanh, x)])
def test_shapes_are_found_again(function):
    concrete = tf.function(function).get_concrete_function(tf.TensorSpec((None, *SHAPE[1:])))
    assert None in concrete.outputs[0].shape
    graph = trace_function(concrete, [SHAPE])
    assert graph.outputs[0].shape == tuple(concrete(tf.ones(SHAPE)).shape)


def test_shapes_that_differ_are_not_claimed():
    concrete = tf.function(exchanged).get_concrete_function(tf.TensorSpec((None, *SHAPE[1:])))
    assert trace_function(concrete, [SHAPE]).outputs[0].shape is None
    assert concrete(tf.ones(SHAPE)).shape == (3, 2, 4)
