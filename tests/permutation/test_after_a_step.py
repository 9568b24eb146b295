"""A model that was trained in this process is planned as before: gradients change the graphs of called functions."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tf_keras import layers

from tests.permutation.harness import EveryKernel, check
from tfmot_asp.permutation.plan import plan_model


def functional(shape, grow):
    x = layers.Input(shape)
    return tf_keras.Model(x, layers.Dense(3)(grow(x)))


def grouped_convolutions():
    return functional((6, 6, 8), lambda x: layers.Flatten()(layers.Conv2D(16, 3, groups=2)(layers.Conv2D(16, 1)(x))))


def group_normalization():
    return functional((4, 4, 8), lambda x: layers.Flatten()(layers.GroupNormalization(4)(layers.Conv2D(16, 1)(x))))


def recurrent_with_dropout():
    return functional((5, 8), lambda x: layers.Dense(16)(layers.LSTM(16, dropout=0.3, recurrent_dropout=0.2)(x)))


def attention():
    return functional((5, 16), lambda x: layers.Flatten()(layers.MultiHeadAttention(2, 8, dropout=0.1)(x, x)))


class Called(tf_keras.Model):
    """Its `call` is a function of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.second = layers.Dense(16, activation="relu"), layers.Dense(3)

    @tf.function
    def call(self, x):
        return self.second(self.first(x))


def with_a_function():
    model = Called()
    model(tf.zeros((2, 8)))
    return model


MODELS = {
    m.__name__: m
    for m in (grouped_convolutions, group_normalization, recurrent_with_dropout, attention, with_a_function)
}


@pytest.mark.parametrize("name", MODELS)
def test_a_plan_is_the_same_after_a_training_step(name):
    model = MODELS[name]()
    before = plan_model(model, policy=EveryKernel())
    shape = (4, 8) if name == "with_a_function" else (4, *model.input_shape[1:])
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    model.compile("sgd", "mse")
    model.fit(x, np.zeros((4, 3), np.float32), verbose=0)
    after = plan_model(model, policy=EveryKernel())
    assert after.fingerprint() == before.fingerprint()
    assert after.plan.reasons == before.plan.reasons
    check(model, inputs=tf.constant(x[:3]), randomly=False)
