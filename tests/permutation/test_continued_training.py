"""A model that is permuted amid its training goes on as it would have: optimizer slots move with their weights."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tests.permutation.harness import EveryKernel, random_orders
from tfmot_asp.keras_models.slots import optimizers_of, slots_of
from tfmot_asp.permutation.plan import plan_model
from tfmot_asp.permutation.report import finish

NEW, OLD, THREE = tf_keras.optimizers, tf_keras.optimizers.legacy, keras.optimizers
RATE = 1e-2


OPTIMIZERS = {
    "tf_keras SGD": (tf_keras, lambda: NEW.SGD(RATE, jit_compile=False)),
    "tf_keras momentum": (tf_keras, lambda: NEW.SGD(RATE, jit_compile=False, momentum=0.9, nesterov=True)),
    "tf_keras Adam": (tf_keras, lambda: NEW.Adam(RATE, jit_compile=False, amsgrad=True)),
    "tf_keras AdamW with EMA": (tf_keras, lambda: NEW.AdamW(RATE, jit_compile=False, use_ema=True)),
    "tf_keras RMSprop": (tf_keras, lambda: NEW.RMSprop(RATE, jit_compile=False, momentum=0.9, centered=True)),
    "tf_keras Adagrad": (tf_keras, lambda: NEW.Adagrad(RATE, jit_compile=False)),
    "tf_keras Adadelta": (tf_keras, lambda: NEW.Adadelta(RATE, jit_compile=False)),
    "tf_keras Adamax": (tf_keras, lambda: NEW.Adamax(RATE, jit_compile=False)),
    "tf_keras Nadam": (tf_keras, lambda: NEW.Nadam(RATE, jit_compile=False)),
    "tf_keras Ftrl": (tf_keras, lambda: NEW.Ftrl(RATE, jit_compile=False)),
    "tf_keras Lion": (tf_keras, lambda: NEW.Lion(RATE, jit_compile=False)),
    "tf_keras loss scaling": (
        tf_keras,
        lambda: tf_keras.mixed_precision.LossScaleOptimizer(NEW.Adam(RATE, jit_compile=False)),
    ),
    "legacy momentum": (tf_keras, lambda: OLD.SGD(RATE, momentum=0.9)),
    "legacy Adam": (tf_keras, lambda: OLD.Adam(RATE, amsgrad=True)),
    "legacy RMSprop": (tf_keras, lambda: OLD.RMSprop(RATE, momentum=0.9, centered=True)),
    "legacy Ftrl": (tf_keras, lambda: OLD.Ftrl(RATE)),
    "legacy loss scaling": (tf_keras, lambda: tf_keras.mixed_precision.LossScaleOptimizer(OLD.Adam(RATE))),
    "Keras 3 momentum": (keras, lambda: THREE.SGD(RATE, momentum=0.9)),
    "Keras 3 Adam": (keras, lambda: THREE.Adam(RATE, amsgrad=True, use_ema=True, ema_momentum=0.9)),
    "Keras 3 accumulation": (keras, lambda: THREE.Adam(RATE, gradient_accumulation_steps=2)),
    "Keras 3 Adafactor": (keras, lambda: THREE.Adafactor(RATE)),
    "Keras 3 RMSprop": (keras, lambda: THREE.RMSprop(RATE, momentum=0.9, centered=True)),
    "Keras 3 Lamb": (keras, lambda: THREE.Lamb(RATE)),
    "Keras 3 ScheduleFreeAdamW": (keras, lambda: THREE.ScheduleFreeAdamW(RATE)),
    "Keras 3 loss scaling": (keras, lambda: THREE.LossScaleOptimizer(THREE.Adam(RATE))),
}


def build(k, optimizer):
    # In double precision, so that what is left of a difference is no rounding.
    layers, kind = k.layers, {"dtype": "float64"}
    x = k.Input((4, 4, 2), dtype="float64")
    y = layers.Conv2D(16, 3, padding="same", activation="relu", **kind)(x)
    y = layers.BatchNormalization(**kind)(y)
    y = layers.Flatten(**kind)(layers.Conv2D(16, 3, activation="relu", **kind)(y))
    y = layers.Dense(3, **kind)(layers.Dense(16, activation="relu", **kind)(y))
    model = k.Model(x, y)
    model.compile(optimizer, "mse", jit_compile=False)
    return model


def data(steps, seed):
    rng = np.random.default_rng(seed)
    return [(rng.normal(size=(8, 4, 4, 2)), rng.normal(size=(8, 3))) for _ in range(steps)]


def train(model, batches):
    for x, y in batches:
        model.train_on_batch(x, y)


QUICK = ("tf_keras Adam", "tf_keras loss scaling", "legacy Adam", "Keras 3 Adam", "Keras 3 Adafactor")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in OPTIMIZERS])
def test_training_goes_on(name):
    k, make = OPTIMIZERS[name]
    plain, permuted = build(k, make()), build(k, make())
    permuted.set_weights(plain.get_weights())
    for model in (plain, permuted):
        train(model, data(3, seed=1))
    plan = plan_model(permuted, policy=EveryKernel())
    report = finish(plan, permuted, random_orders(plan), verify=False)
    assert report.permuted == 3
    for model in (plain, permuted):
        train(model, data(5, seed=2))
    x = data(1, seed=3)[0][0]
    expected, found = np.asarray(plain(x)), np.asarray(permuted(x))
    assert np.abs(expected - found).max() / np.abs(expected).max() < 1e-9
    # The test would see slots that stayed behind: the last steps changed the outputs by more than that.
    before = build(k, make())
    before.set_weights(permuted.get_weights())
    train(before, data(1, seed=4)), train(permuted, data(1, seed=4))
    stateless = ("tf_keras SGD", "Keras 3 accumulation")
    assert name in stateless or np.abs(np.asarray(before(x)) - np.asarray(permuted(x))).max() > 1e-7


def test_a_state_that_cannot_move_is_refused_before_anything_is_written():
    model = build(tf_keras, NEW.Adam(RATE, jit_compile=False))
    train(model, data(1, seed=1))
    model.optimizer._velocities[0] = tf.Variable(tf.zeros((7,)))
    weights = model.get_weights()
    plan = plan_model(model, policy=EveryKernel())
    with pytest.raises(ValueError, match=r"optimizer Adam keeps '_velocities' of shape \(7,\).*compile the model anew"):
        finish(plan, model, random_orders(plan))
    for a, b in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_part_of_the_weights_frozen():
    plain, permuted = build(tf_keras, "sgd"), build(tf_keras, "sgd")
    permuted.set_weights(plain.get_weights())
    for model in (plain, permuted):
        model.layers[1].trainable = False
        model.layers[2].trainable = False
        model.compile(NEW.Adam(RATE, jit_compile=False), "mse")
        train(model, data(3, seed=1))
    plan = plan_model(permuted, policy=EveryKernel())
    finish(plan, permuted, random_orders(plan), verify=False)
    for model in (plain, permuted):
        train(model, data(3, seed=2))
    x = data(1, seed=3)[0][0]
    np.testing.assert_allclose(plain(x), permuted(x), rtol=1e-9, atol=1e-12)


def test_fit_after_a_permutation_as_before():
    """`fit` holds on to its compiled step: the permuted weights must be the same variables."""
    plain, permuted = (
        build(tf_keras, NEW.Adam(RATE, jit_compile=False)),
        build(tf_keras, NEW.Adam(RATE, jit_compile=False)),
    )
    permuted.set_weights(plain.get_weights())
    (x, y) = data(1, seed=1)[0]
    for model in (plain, permuted):
        model.fit(x, y, batch_size=4, epochs=2, shuffle=False, verbose=0)
    plan = plan_model(permuted, policy=EveryKernel())
    finish(plan, permuted, random_orders(plan))
    for model in (plain, permuted):
        model.fit(x, y, batch_size=4, epochs=2, shuffle=False, verbose=0)
    np.testing.assert_allclose(plain(x), permuted(x), rtol=1e-9, atol=1e-12)


def test_a_model_that_was_never_compiled_has_no_slots():
    model = tf_keras.Sequential([tf_keras.Input((8,)), tf_keras.layers.Dense(16)])
    assert list(slots_of(optimizers_of(model), model.layers[0].kernel)) == []
