"""Loops and branches: what their bodies do to channels is followed, in recurrent layers and around kernels in loops."""

from __future__ import annotations

import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tests.permutation.harness import EveryKernel, check, random_orders, randomise
from tfmot_asp.permutation.apply import apply
from tfmot_asp.permutation.plan import plan_model
from tfmot_asp.permutation.proof import Verifier

BOTH = pytest.mark.parametrize("k", [tf_keras, keras], ids=["tf_keras", "keras3"])
C = 16


def around(k, grow, **options):
    """A model of `grow` between Dense layers, of which all but the first, which reads the input, can move."""
    x = k.Input(name="features", **(options or {"shape": (5, C)}))
    y = k.layers.Dense(C, name="before", activation="relu")(k.layers.Dense(C, name="first")(x))
    y = k.layers.Dense(C, name="after")(grow(y))
    return k.Model(x, k.layers.Dense(3, name="head")(y))


def own(k, function):
    """A layer that is a function of its input and of two Dense layers."""

    class Own(k.layers.Layer):
        def __init__(self):
            super().__init__()
            self.one, self.two = k.layers.Dense(C, activation="tanh"), k.layers.Dense(C)

        def build(self, shape):
            self.one.build((None, C))
            self.two.build((None, C))
            super().build(shape)

        def call(self, x):
            return function(x, self.one, self.two)

    return Own()


@BOTH
def test_recurrent_layers(k):
    layers, more = k.layers, {"return_sequences": True}

    def grow(y):
        y = layers.Bidirectional(layers.SimpleRNN(C, **more))(layers.Masking()(y))
        y, *state = layers.LSTM(C, return_state=True, go_backwards=True, **more)(layers.Dense(C)(y))
        y = layers.RNN([layers.LSTMCell(C), layers.GRUCell(C, reset_after=False)], **more)(layers.Dense(C)(y))
        y = layers.TimeDistributed(layers.Dense(C))(y)
        return layers.GRU(C, dropout=0.1, recurrent_dropout=0.2)(y, initial_state=state[0])

    outcome = check(around(k, grow), permuted=6, fixed=1)
    assert outcome.reason("first") == "fed by input 0 'features' of the model"


@BOTH
def test_a_convolution_in_a_loop(k):
    def grow(y):
        y = k.layers.Conv2D(C, 1)(k.layers.Reshape((5, 4, 4))(y))
        y = k.layers.ConvLSTM2D(8, 3, padding="same")(k.layers.Reshape((5, 4, 1, C))(y))
        return k.layers.GlobalAveragePooling2D()(y)

    assert check(around(k, grow), fixed=2).status("after") == "permuted"


def test_time_major():
    def grow(y):
        return tf_keras.layers.LSTM(C, time_major=True, return_sequences=True)(y)

    check(around(tf_keras, grow), permuted=3, fixed=1)


@BOTH
def test_the_state_of_a_stateful_layer_moves_along(k):
    model, twin = (around(k, lambda y: k.layers.LSTM(C, stateful=True)(y), batch_shape=(3, 5, C)) for _ in range(2))
    randomise(model)
    twin.set_weights(model.get_weights())
    x = tf.random.stateless_normal((3, 3, 5, C), (1, 2))
    model(x[0]), twin(x[0])
    plan = plan_model(model, policy=EveryKernel())
    apply(plan, random_orders(plan), model)
    for batch in x[1:]:
        np.testing.assert_allclose(model(batch), twin(batch), rtol=1e-4, atol=1e-5)
    assert plan.plan.movable == (0, C, C, C)


def scan(x, one, two):
    steps = tf.transpose(x, (1, 0, 2))
    return tf.transpose(tf.scan(lambda h, y: one(h + y), steps, tf.zeros_like(steps[0])), (1, 0, 2)) + two(x)


@tf.function
def with_python_loops(x, one, two):
    for _ in tf.range(3):
        for _ in tf.range(2):
            x = x + 0.3 * two(one(x))
        if tf.reduce_sum(x) > 1.0:  # noqa: SIM108
            x = two(x)
        else:
            x = tf.nn.relu(x)
    return x


IN_TENSORFLOW = {
    "map": lambda x, one, two: tf.map_fn(lambda y: two(one(y)), x),
    "scan": scan,
    "loops in a function": with_python_loops,
    "branches": lambda x, one, two: tf.switch_case(
        tf.cast(tf.reduce_sum(x) > 0, tf.int32), [lambda: one(x), lambda: two(x)]
    ),
    "until it is large": lambda x, one, two: tf.while_loop(
        lambda y: tf.reduce_max(tf.abs(y)) < 9.0, lambda y: (y * 1.5 + two(one(y)),), (x,), maximum_iterations=4
    )[0],
}
IN_KERAS = {
    "map": lambda x, one, two: keras.ops.map(lambda y: two(one(y)), x),
    "scan": lambda x, one, two: keras.ops.scan(lambda h, y: (one(h + y), two(y)), x[:, 0], keras.ops.moveaxis(x, 1, 0))[
        1
    ],
    "while_loop": lambda x, one, two: keras.ops.while_loop(
        lambda i, y: i < 3, lambda i, y: (i + 1, y + 0.2 * two(one(y))), (0, x)
    )[1],
    "cond": lambda x, one, two: keras.ops.cond(keras.ops.sum(x) > 0, lambda: one(x), lambda: two(x)),
}


@pytest.mark.parametrize("name", IN_TENSORFLOW)
def test_kernels_in_loops_of_tensorflow(name):
    check(around(tf_keras, own(tf_keras, IN_TENSORFLOW[name])), permuted=5, fixed=1)


@pytest.mark.parametrize("name", IN_KERAS)
def test_kernels_in_loops_of_keras(name):
    check(around(keras, own(keras, IN_KERAS[name])), permuted=5, fixed=1)


def test_a_recurrent_layer_in_a_function_of_any_batch_size():
    """Sizes that the function leaves open are found again from what is put into the lists."""

    class Model(tf_keras.Model):
        def __init__(self):
            super().__init__()
            self.parts = [tf_keras.layers.Dense(C), tf_keras.layers.LSTM(C, return_sequences=True)]
            self.parts += [tf_keras.layers.Dense(C), tf_keras.layers.Dense(C)]

        @tf.function(input_signature=[tf.TensorSpec((None, 5, C))])
        def call(self, x):
            for part in self.parts:
                x = part(x)
            return x

    model = Model()
    x = tf.random.stateless_normal((3, 5, C), (1, 2))
    model(x)
    check(model, inputs=x, permuted=2, fixed=1)


def test_what_pins_within_a_loop_is_named():
    table = tf.constant(np.linspace(1, 2, C), tf.float32)
    outcome = check(
        around(tf_keras, own(tf_keras, lambda x, one, two: tf.map_fn(lambda y: one(y) + two(y) * table, x))),
        permuted=4,
        fixed=2,
    )
    reason = next(reason for reason in outcome.plan.plan.reasons[1:] if reason is not None)
    assert reason.why == "a constant that differs along this axis"
    assert "a constant that differs" in outcome.reason("after")


def test_a_loop_that_draws_numbers_is_not_mistaken_for_a_wrong_permutation():
    def noisy(x, one, two):
        return tf.map_fn(lambda y: two(one(y)) + tf.reduce_mean(tf.random.normal((3,))), x)

    model = around(tf_keras, own(tf_keras, noisy))
    plan = plan_model(model, policy=EveryKernel())
    assert Verifier(plan)._random
    apply(plan, random_orders(plan), model)
    assert sum(movable > 0 for movable in plan.plan.movable) == 5


@pytest.mark.parametrize("layer", [keras.layers.LSTM, keras.layers.GRU])
def test_a_recurrent_layer_is_planned_alike_with_a_gpu(layer, monkeypatch):
    model = around(keras, layer(C))
    expected = plan_model(model, policy=EveryKernel())
    monkeypatch.setattr(sys.modules["keras.src.backend.tensorflow.rnn"], "_is_gpu_available", lambda: True)
    found = plan_model(model, policy=EveryKernel())
    assert found.fingerprint() == expected.fingerprint()
    assert found.plan.movable == (0, C, C, C)
    assert [part.use_cudnn for part in model.layers if isinstance(part, layer)] == ["auto"]
