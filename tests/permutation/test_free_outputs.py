"""Outputs whose channels may move: an encoder's residual stream goes along, and its order is in the report."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfmot_asp
from tests.permutation.harness import randomise
from tfmot_asp.permutation.plan import plan_model

BOTH = pytest.mark.parametrize("k", [tf_keras, keras], ids=["tf_keras", "keras3"])


def encoder(k):
    x = k.Input((5, 8))
    y = k.layers.Dense(32, name="embed")(x)
    for i in range(2):
        z = k.layers.Dense(32, name=f"out{i}")(k.layers.Dense(64, activation="gelu", name=f"in{i}")(y))
        y = k.layers.LayerNormalization()(k.layers.Add()([y, z]))
    pooled = k.layers.Dense(16, name="pool")(k.layers.GlobalAveragePooling1D()(y))
    return k.Model(x, [y, pooled])


def undone(outputs, report):
    return [
        t.numpy() if order is None else tf.gather(t, np.argsort(order), axis=-1).numpy()
        for t, order in zip(outputs, report.output_orders, strict=True)
    ]


@BOTH
def test_the_residual_stream_moves_and_its_order_undoes_it(k, tmp_path):
    model = encoder(k)
    randomise(model)
    weights = model.get_weights()
    x = np.random.default_rng(0).normal(size=(3, 5, 8)).astype("float32")
    expected = [t.numpy() for t in model(x)]
    pinned = tfmot_asp.permute(model, effort="fast")
    assert pinned.output_orders == ()
    model.set_weights(weights)
    report = tfmot_asp.permute(model, effort="fast", outputs="free")
    assert report.permuted > pinned.permuted
    first, second = report.output_orders
    assert sorted(first) == list(range(32))
    assert first != tuple(range(32))
    assert second is None  # nothing reads the pooled features, so nothing is gained by moving them
    found = model(x)
    assert not np.allclose(found[0], expected[0], atol=1e-3)
    for one, other in zip(undone(found, report), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    report.save(tmp_path / "report.json")
    loaded = tfmot_asp.PermutationReport.load(tmp_path / "report.json")
    assert loaded.output_orders == report.output_orders
    moved = model.get_weights()
    model.set_weights(weights)
    assert loaded.apply_to(model).output_orders == report.output_orders
    for one, other in zip(moved, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_channel_that_is_returned_twice_moves_in_both_places():
    x = tf_keras.Input((8,))
    y = tf_keras.layers.Dense(32)(x)
    z = tf_keras.layers.Dense(16)(y)
    model = tf_keras.Model(x, [tf_keras.layers.Concatenate()([y, tf_keras.layers.ReLU()(y)]), z])
    randomise(model)
    data = np.random.default_rng(0).normal(size=(3, 8)).astype("float32")
    expected = [t.numpy() for t in model(data)]
    report = tfmot_asp.permute(model, effort="fast", outputs="free")
    order = np.array(report.output_orders[0])
    np.testing.assert_array_equal(order[32:], order[:32] + 32)
    for one, other in zip(undone(model(data), report), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_another_value_is_refused():
    with pytest.raises(ValueError, match="outputs must be one of 'pinned', 'free'; got 'moving'"):
        tfmot_asp.permute(encoder(tf_keras), outputs="moving")


def test_outputs_are_free_in_the_training_step_too():
    """What only that reads, such as the vector of a spectral normalization, is traced beside inference."""
    x = keras.Input((5, 8))
    y = keras.layers.Dense(32)(x)
    z = keras.layers.SpectralNormalization(keras.layers.Dense(32))(keras.layers.Dense(64, activation="relu")(y))
    model = keras.Model(x, keras.layers.Add()([y, z]))
    assert [movable > 0 for movable in plan_model(model).plan.movable] == [False, True]
    assert [movable > 0 for movable in plan_model(model, outputs="free").plan.movable] == [True, True]
