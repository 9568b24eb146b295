"""Weights of (heads, channels): an order of its own for each head, as far as all that reads them allows it."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tf_keras import layers

import tfmot_asp
from tests.permutation.harness import EveryKernel, check, randomise
from tfmot_asp.permutation.pipeline import search_groups
from tfmot_asp.permutation.plan import plan_model
from tfmot_asp.permutation.report import PermutationReport, finish

BOTH = pytest.mark.parametrize("k", [tf_keras, keras], ids=["tf_keras", "keras3"])


def heads_by_layer(k, **options):
    """Attention as Keras' own layer keeps it, in kernels of (features, heads, channels), with biases."""
    x = k.Input((6, 8))
    y = k.layers.MultiHeadAttention(3, 8, name="attention", **options)(x, k.layers.Dense(12)(x))
    return k.Model(x, k.layers.Dense(8)(y))


@pytest.mark.parametrize("options", [{}, {"value_dim": 16}, {"use_bias": False}, {"attention_axes": 1}], ids=str)
@BOTH
def test_heads_of_the_attention_layer_have_an_order_of_their_own(k, options):
    model = heads_by_layer(k, **options)
    outcome = check(model)
    size = options.get("value_dim", 8)
    assert outcome.sizes == sorted([size] * 3 + [8, 12])  # values by head, what the layer gives, the memory
    assert [entry.status for entry in outcome.report.layers if "output" in entry.name] == ["permuted"]
    own, alike = (merged_or_not(model, merged) for merged in (None, {}))
    assert own > alike


def repeated(repeat):
    """Grouped-query attention by hand: two heads of values for four of queries."""
    x = layers.Input((6, 8))
    y = layers.Dense(12)(x)
    q = layers.EinsumDense("btc,chd->bthd", (6, 4, 8), bias_axes="hd")(y)
    k, v = (layers.EinsumDense("btc,chd->bthd", (6, 2, 8), bias_axes="hd")(y) for _ in range(2))
    a = tf.nn.softmax(tf.einsum("bthd,bshd->bhts", q, repeat(k)))
    y = tf.einsum("bhts,bshd->bthd", a, repeat(v))
    return tf_keras.Model(x, layers.EinsumDense("bthd,hdc->btc", (6, 8), name="out")(y))


@pytest.mark.parametrize(
    "repeat",
    [
        lambda t: tf.repeat(t, 2, axis=2),
        lambda t: tf.gather(t, [0, 0, 1, 1], axis=2),
        lambda t: tf.reshape(tf.broadcast_to(t[:, :, :, None], (tf.shape(t)[0], 6, 2, 2, 8)), (-1, 6, 4, 8)),
    ],
)
def test_heads_that_share_values_share_an_order(repeat):
    outcome = check(repeated(repeat))
    assert outcome.sizes == [8, 8, 12]
    assert outcome.status("out") == "permuted"


def test_grouped_query_attention_of_keras_3():
    x = keras.Input((6, 8))
    y = keras.layers.Dense(12)(x)
    y = keras.layers.GroupQueryAttention(8, 4, 2, name="attention")(y, y)
    outcome = check(keras.Model(x, keras.layers.Dense(8)(y)))
    assert outcome.sizes.count(8) == 2


def merged_or_not(model, merged):
    """What attention's last kernel keeps after a search, with an order for each head or with one for all."""
    randomise(model, 1)
    plan = plan_model(model, policy=EveryKernel(), merged=merged)
    options = {"m_by_n": plan.pattern, "device": "cpu", "effort": "thorough", "seed": 0}
    orders, _ = search_groups(plan, options, progress=False)
    report = finish(plan, model, orders)
    return next(entry.retained_after for entry in report.layers if "attention_output" in entry.name)


HEADS = tf.constant([[0.5], [1.5]])


@pytest.mark.parametrize(
    ("inner", "movable"),
    [
        (lambda y, own, shared: y, [8, 8]),
        (lambda y, own, shared: tf.nn.swish(y) * 2.0 + own, [8, 8]),
        (lambda y, own, shared: tf.nn.swish(y * HEADS) * own, [8, 8]),  # a table that is not the same for all heads
        (lambda y, own, shared: y + shared, [8]),  # a weight that is
        (lambda y, own, shared: y * tf.reduce_mean(y, 2, keepdims=True), [8]),
        (lambda y, own, shared: y + tf.reverse(y, [2]), [8]),
        (lambda y, own, shared: y + tf.cumsum(own, 1), []),
        (lambda y, own, shared: tf.nn.softmax(y * own, 2), [8]),
        (lambda y, own, shared: tf.einsum("bthd,bshd,bshe->bthe", y, y, y), [8, 8]),
    ],
)
@pytest.mark.parametrize("first", ["einsum", "reshape"])
def test_weights_of_heads_and_channels(inner, movable, first):
    class Heads(layers.Layer):
        def build(self, shape):
            self.kernel = self.add_weight("kernel", (shape[-1], 2, 8))
            self.own = self.add_weight("own", (2, 8))
            self.shared = self.add_weight("shared", (8,))

        def call(self, x):
            if first == "einsum":
                y = tf.einsum("btc,chd->bthd", x, self.kernel)
            else:
                y = tf.reshape(x @ tf.reshape(self.kernel, (-1, 16)), (-1, 6, 2, 8))
            return inner(y, self.own, self.shared)

    x = layers.Input((6, 8))
    y = Heads()(layers.Dense(12)(x))
    model = tf_keras.Model(x, layers.EinsumDense("bthd,hdc->btc", (6, 8), name="out")(y))
    outcome = check(model)
    kernels = outcome.plan.plan.kernels
    assert [g.size for g in outcome.plan.plan.groups if "out" in [kernels[k].name for k in g.kernels]] == movable


def trained(k, optimizer, steps=2):
    k.utils.set_random_seed(0)
    model = heads_by_layer(k)
    model.compile(optimizer, "mse", jit_compile=False)
    train(model, steps)
    return model


def train(model, steps, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        model.train_on_batch(rng.normal(size=(4, 6, 8)), rng.normal(size=(4, 6, 8)))


@pytest.mark.parametrize("optimizer", ["Adam", "Adafactor"])
@BOTH
def test_training_goes_on(k, optimizer):
    """Adafactor keeps sums over heads and sums over channels of heads: with its state, heads share one order."""
    plain, moved = (trained(k, getattr(k.optimizers, optimizer)(1e-2)) for _ in range(2))
    report = tfmot_asp.permute(moved, policy=EveryKernel(), effort="fast")
    assert [g.size for g in report.groups].count(8) == (1 if optimizer == "Adafactor" else 3) + 1
    for model in (plain, moved):
        train(model, 3, seed=1)
    x = np.random.default_rng(2).normal(size=(2, 6, 8)).astype("float32")
    np.testing.assert_allclose(plain(x), moved(x), atol=1e-4)


def test_a_report_is_applied_as_its_axes_were_taken(tmp_path):
    """Made with an optimizer that heads must share one order for, applied to a model without, and the other way."""
    path = tmp_path / "report.json"
    for optimizer, heads in (("Adafactor", 1), ("SGD", 3)):
        model = trained(tf_keras, getattr(tf_keras.optimizers, optimizer)(1e-2))
        other = heads_by_layer(tf_keras)
        other.set_weights(model.get_weights())
        report = tfmot_asp.permute(model, policy=EveryKernel(), effort="fast")
        report.save(path)
        again = PermutationReport.load(path).apply_to(other, policy=EveryKernel())
        assert [g.size for g in again.groups].count(8) == heads + 1
        for a, b in zip(model.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
    stored = json.loads(path.read_text())
    fresh, late = heads_by_layer(tf_keras), trained(tf_keras, tf_keras.optimizers.Adafactor(1e-2))
    before = late.get_weights()
    with pytest.raises(ValueError, match=r"Adafactor keeps '_[rc]'.*permute before training"):
        PermutationReport.load(path).apply_to(late, policy=EveryKernel())
    for a, b in zip(before, late.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    del stored["fingerprint"]["merged"]  # as earlier versions wrote it: every axis for itself
    path.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="the report does not fit this model"):
        PermutationReport.load(path).apply_to(fresh, policy=EveryKernel())
