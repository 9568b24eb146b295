"""Transformers: MLP channels, residual stream and head dimensions move, in every way in which attention is written."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tests.permutation.harness import check
from tfmot_asp.hardware.rule import SUPPORTED_KINDS, SparseTensorCoreRule

BOTH = pytest.mark.parametrize("k", [tf_keras, keras], ids=["tf_keras", "keras3"])
WIDTH, HEADS, DEPTH, TIME, VOCABULARY = 32, 2, 16, 8, 40


def mlp(k, x):
    return k.layers.Dense(WIDTH)(k.layers.Dense(4 * WIDTH, activation="gelu")(x))


def encoder(k, x, pre_norm=True, causal=False, epsilon=1e-6, blocks=2):
    def norm(y):
        return k.layers.LayerNormalization(epsilon=epsilon)(y)

    def attention(y):
        return k.layers.MultiHeadAttention(HEADS, DEPTH)(y, y, use_causal_mask=causal)

    for _ in range(blocks):
        x = x + attention(norm(x)) if pre_norm else norm(x + attention(x))
        x = x + mlp(k, norm(x)) if pre_norm else norm(x + mlp(k, x))
    return x


class Positions(tf_keras.layers.Layer):
    def build(self, shape):
        self.table = self.add_weight("table", shape[1:])

    def call(self, x):
        return x + self.table


class Positions3(keras.layers.Layer):
    def build(self, shape):
        self.table = self.add_weight(shape=shape[1:], name="table")

    def call(self, x):
        return x + self.table


def positions(k, x):
    return (Positions if k is tf_keras else Positions3)()(x)


@pytest.mark.parametrize("epsilon", [1e-6, 1e-3], ids=["plain", "fused"])
@pytest.mark.parametrize("pre_norm", [True, False], ids=["pre-norm", "post-norm"])
@BOTH
def test_bert_like(k, pre_norm, epsilon):
    ids = k.Input((TIME,), dtype="int32")
    x = k.layers.Embedding(VOCABULARY, WIDTH)(ids)
    x = k.layers.LayerNormalization(epsilon=epsilon)(positions(k, x))
    x = encoder(k, x, pre_norm, epsilon=epsilon)
    model = k.Model(ids, k.layers.Dense(3, name="head")(x[:, 0]))
    outcome = check(model, permuted=13)
    # Residual stream, two hidden layers, and per block the channels of each head.
    residual = max(outcome.plan.plan.groups, key=lambda g: len(g.kernels))
    assert residual.size == WIDTH
    assert [g.size for g in outcome.plan.plan.groups].count(4 * WIDTH) == 2
    assert [g.size for g in outcome.plan.plan.groups].count(DEPTH) == 2 * HEADS
    assert outcome.plan.kinds.count("EinsumDense") == 8  # query, key, value and output of two blocks
    assert any("FusedBatchNorm" in op.type for op in outcome.plan.graph.ops) == (k is tf_keras and epsilon == 1e-3)


@BOTH
def test_gpt_like_with_tied_embeddings(k):
    class Language(k.Model):
        def __init__(self):
            super().__init__()
            self.embedding = k.layers.Embedding(VOCABULARY, WIDTH)
            x = k.Input((TIME, WIDTH))
            self.body = k.Model(x, k.layers.LayerNormalization()(encoder(k, x, causal=True)))

        def call(self, ids):
            return tf.matmul(self.body(self.embedding(ids)), self.embedding.embeddings, transpose_b=True)

    model = Language()
    ids = tf.random.stateless_uniform((3, TIME), (1, 2), 0, VOCABULARY, tf.int32)
    model(ids)
    outcome = check(model, inputs=ids, permuted=12, fixed=0)
    residual = max(outcome.plan.plan.groups, key=lambda g: len(g.kernels))
    names = [outcome.plan.graph.variables[s.variable].name for s in residual.places]
    assert any("embeddings" in name for name in names)


@BOTH
def test_vision_transformer(k):
    x = k.Input((16, 16, 3))
    y = k.layers.Conv2D(WIDTH, 4, 4, name="patches")(x)
    y = k.layers.Reshape((16, WIDTH))(y)

    class ClassToken((tf_keras if k is tf_keras else keras).layers.Layer):
        def build(self, shape):
            self.token = self.add_weight(shape=(1, 1, shape[-1]), name="token")

        def call(self, z):
            return tf.concat([tf.tile(self.token, (tf.shape(z)[0], 1, 1)), z], 1)

    y = encoder(k, positions(k, ClassToken()(y)))
    y = k.layers.LayerNormalization()(y)
    check(k.Model(x, k.layers.Dense(10)(y[:, 0])), permuted=13, fixed=1)


@pytest.mark.parametrize("batched", [True, False], ids=["batched products", "einsum"])
@BOTH
def test_dense_based_attention_with_heads_by_reshape(k, batched):
    class Attention((tf_keras if k is tf_keras else keras).layers.Layer):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v, self.o = (k.layers.Dense(WIDTH) for _ in range(4))

        def build(self, shape):
            for layer in (self.q, self.k, self.v, self.o):
                layer.build(shape)

        def heads(self, x):
            x = tf.reshape(x, (-1, TIME, HEADS, DEPTH))
            return tf.transpose(x, (0, 2, 1, 3)) if batched else x

        def call(self, x):
            q, key, v = self.heads(self.q(x)), self.heads(self.k(x)), self.heads(self.v(x))
            mask = tf.linalg.band_part(tf.ones((TIME, TIME)), -1, 0)
            if batched:
                scores = tf.matmul(q, key, transpose_b=True) / 4.0 + (mask - 1.0) * 1e9
                y = tf.transpose(tf.matmul(tf.nn.softmax(scores), v), (0, 2, 1, 3))
            else:
                scores = tf.einsum("bthd,bshd->bhts", q, key) / 4.0 + (mask - 1.0) * 1e9
                y = tf.einsum("bhts,bshd->bthd", tf.nn.softmax(scores), v)
            return self.o(tf.reshape(y, (-1, TIME, WIDTH)))

    x = k.Input((TIME, 8))
    y = k.layers.Dense(WIDTH, name="stem")(x)
    for _ in range(2):
        y = y + Attention()(k.layers.LayerNormalization()(y))
        y = y + mlp(k, k.layers.LayerNormalization()(y))
    outcome = check(k.Model(x, k.layers.Dense(3, name="head")(y)), permuted=13, fixed=1)
    # Value to output: channels within a head, the heads in step or each by itself.
    assert [g.size for g in outcome.plan.plan.groups].count(DEPTH) >= 2


def test_keys_shared_by_groups_of_heads():
    class Grouped(tf_keras.layers.Layer):
        """Four query heads, two key and value heads, each repeated."""

        def __init__(self):
            super().__init__()
            self.q, self.k, self.v = (tf_keras.layers.Dense(n) for n in (64, 32, 32))
            self.o = tf_keras.layers.Dense(WIDTH)

        def call(self, x):
            q = tf.reshape(self.q(x), (-1, TIME, 4, 16))
            k = tf.repeat(tf.reshape(self.k(x), (-1, TIME, 2, 16)), 2, axis=2)
            v = tf.repeat(tf.reshape(self.v(x), (-1, TIME, 2, 16)), 2, axis=2)
            y = tf.einsum("bhts,bshd->bthd", tf.nn.softmax(tf.einsum("bthd,bshd->bhts", q, k)), v)
            return self.o(tf.reshape(y, (-1, TIME, 64)))

    x = tf_keras.Input((TIME, 8))
    y = tf_keras.layers.Dense(WIDTH)(x)
    y = y + Grouped()(y)
    check(tf_keras.Model(x, tf_keras.layers.Dense(3)(y)), permuted=5, fixed=1)


def test_grouped_query_attention_layer():
    x = keras.Input((TIME, 8))
    y = keras.layers.Dense(WIDTH)(x)
    y = y + keras.layers.GroupQueryAttention(16, 4, 2)(y, y)
    check(keras.Model(x, keras.layers.Dense(3)(y)), permuted=5, fixed=1)


@BOTH
def test_encoder_and_decoder_with_cross_attention(k):
    source, target = k.Input((TIME, 8)), k.Input((6, 8))
    memory = encoder(k, k.layers.Dense(WIDTH)(source), blocks=1)
    y = k.layers.Dense(WIDTH)(target)
    y = y + k.layers.MultiHeadAttention(HEADS, DEPTH)(k.layers.LayerNormalization()(y), memory)
    y = y + mlp(k, y)
    outcome = check(k.Model([source, target], k.layers.Dense(3)(y)), permuted=13, fixed=2)
    assert [g.size for g in outcome.plan.plan.groups].count(WIDTH) >= 2


def test_layer_scale_that_silences_a_branch():
    """The plan does not look at the weights, and the proof by running brings its own."""
    x = tf_keras.Input((TIME, 8))
    y = tf_keras.layers.Dense(WIDTH)(x)
    scale = tf.Variable(tf.fill((WIDTH,), 1e-6))

    class Scale(tf_keras.layers.Layer):
        def call(self, z):
            return z * scale

    y = y + Scale()(mlp(tf_keras, tf_keras.layers.LayerNormalization()(y)))
    model = tf_keras.Model(x, tf_keras.layers.Dense(3)(y))
    check(model, permuted=3, fixed=1)


def test_rotary_position_embedding():
    """Pairs of channels, half a head apart, turn by angles of their own: queries and keys stay, values move."""
    angles = np.arange(TIME)[:, None] / 10.0 ** (np.arange(DEPTH // 2) / DEPTH * 8)
    cos, sin = (np.tile(f(angles), (1, 2)).astype(np.float32)[None, :, None] for f in (np.cos, np.sin))

    def rotate(z):
        a, b = tf.split(z, 2, -1)
        return z * cos + tf.concat([-b, a], -1) * sin

    x = tf_keras.Input((TIME, 8))
    y = tf_keras.layers.Dense(WIDTH)(x)
    q, k, v = (tf.reshape(tf_keras.layers.Dense(WIDTH)(y), (-1, TIME, HEADS, DEPTH)) for _ in range(3))
    weights = tf.nn.softmax(tf.einsum("bthd,bshd->bhts", rotate(q), rotate(k)))
    z = tf.reshape(tf.einsum("bhts,bshd->bthd", weights, v), (-1, TIME, WIDTH))
    y = y + tf_keras.layers.Dense(WIDTH)(z)
    check(tf_keras.Model(x, tf_keras.layers.Dense(3)(y)), permuted=5, fixed=1)


def test_swin_like_windows():
    x = tf_keras.Input((8, 8, 3))
    y = tf_keras.layers.Conv2D(WIDTH, 1)(x)
    for shift in (0, 2):
        z = tf.roll(tf_keras.layers.LayerNormalization()(y), (-shift, -shift), (1, 2))
        z = tf.reshape(z, (-1, 2, 4, 2, 4, WIDTH))
        z = tf.reshape(tf.transpose(z, (0, 1, 3, 2, 4, 5)), (-1, 16, WIDTH))
        z = tf_keras.layers.MultiHeadAttention(HEADS, DEPTH)(z, z)
        z = tf.reshape(tf.transpose(tf.reshape(z, (-1, 2, 2, 4, 4, WIDTH)), (0, 1, 3, 2, 4, 5)), (-1, 8, 8, WIDTH))
        y = y + tf.roll(z, (shift, shift), (1, 2))
        y = y + mlp(tf_keras, tf_keras.layers.LayerNormalization()(y))
    # Merging of patches: four neighbours' channels side by side.
    y = tf.concat([y[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], -1)
    y = tf_keras.layers.Dense(WIDTH)(tf_keras.layers.LayerNormalization()(y))
    check(tf_keras.Model(x, tf_keras.layers.Dense(3)(tf.reduce_mean(y, (1, 2)))), permuted=14, fixed=1)


def test_mixture_of_experts_by_einsum():
    class Experts(tf_keras.layers.Layer):
        def build(self, shape):
            self.gate = tf_keras.layers.Dense(4, activation="softmax")
            self.up = self.add_weight("up", (4, WIDTH, 64))
            self.down = self.add_weight("down", (4, 64, WIDTH))

        def call(self, x):
            hidden = tf.nn.gelu(tf.einsum("btc,ech->beth", x, self.up))
            return tf.einsum("bte,beth,ehc->btc", self.gate(x), hidden, self.down)

    x = tf_keras.Input((TIME, 8))
    y = tf_keras.layers.Dense(WIDTH)(x)
    check(tf_keras.Model(x, tf_keras.layers.Dense(3)(y + Experts()(y))), permuted=2)


def test_fourier_mixing_pins_the_residual_stream():
    x = tf_keras.Input((TIME, 8))
    y = tf_keras.layers.Dense(WIDTH, name="stem")(x)
    y = y + tf.math.real(tf.signal.fft2d(tf.cast(y, tf.complex64)))
    outcome = check(tf_keras.Model(x, tf_keras.layers.Dense(3, name="head")(mlp(tf_keras, y))), permuted=2)
    assert "Fourier" in outcome.reason([e.name for e in outcome.report.layers][1])


def test_policy_with_all_kinds_takes_attention_projections():
    ids = tf_keras.Input((TIME,), dtype="int32")
    x = encoder(tf_keras, tf_keras.layers.Embedding(VOCABULARY, WIDTH)(ids))
    model = tf_keras.Model(ids, tf_keras.layers.Dense(8)(x))
    check(model, policy=SparseTensorCoreRule(kinds=SUPPORTED_KINDS), permuted=13, fixed=0)
