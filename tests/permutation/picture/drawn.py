"""What is drawn in the tests of the picture: small models of each kind, and random graphs of ops."""

from __future__ import annotations

import tensorflow as tf
import tf_keras
from hypothesis import strategies as st
from tf_keras import layers

from tests.small_models import convnet
from tfmot_asp.permutation import plan_model
from tfmot_asp.permutation.picture.drawn import DrawnOp
from tfmot_asp.permutation.picture.outline import outline


def lrn():
    x = layers.Input((8, 8, 3), name="image")
    y = layers.Conv2D(16, 3, name="conv1")(x)
    y = layers.Lambda(tf.nn.local_response_normalization, name="lrn")(y)
    y = layers.Conv2D(32, 3, activation="relu", name="conv2")(y)
    y = layers.Flatten(name="flatten")(y)
    return tf_keras.Model(x, layers.Dense(8, name="head")(y), name="with_lrn")


def mobile():
    x = layers.Input((8, 8, 3))
    y = layers.Conv2D(32, 1, name="expand")(x)
    y = layers.BatchNormalization(name="bn", fused=False)(y)
    y = layers.DepthwiseConv2D(3, name="depthwise")(y)
    y = layers.Conv2D(32, 3, groups=32, name="grouped")(y)
    y = layers.Conv2D(16, 1, name="project")(y)
    return tf_keras.Model(x, y, name="mobile")


def attention():
    x = layers.Input((6,), dtype="int32", name="tokens")
    y = layers.Embedding(20, 32, name="embedding")(x)
    z = layers.MultiHeadAttention(2, 16, name="attention")(y, y)
    y = layers.LayerNormalization(name="norm")(layers.Add(name="residual")([y, z]))
    z = layers.Dense(64, activation="gelu", name="up")(y)
    y = layers.Add()([y, layers.Dense(32, name="down")(z)])
    return tf_keras.Model(x, layers.Dense(8, name="head")(y[:, 0]), name="encoder")


def concat():
    x = layers.Input((8, 8, 32), name="given")
    y = layers.Conv2D(32, 3, padding="same", name="inner")(x)
    y = layers.Concatenate(name="join")([x, y])
    return tf_keras.Model(x, layers.Conv2D(16, 1, name="outer")(y), name="half")


def features():
    x = layers.Input((8, 8, 3))
    y = layers.Conv2D(16, 3, name="returned")(x)
    z = layers.Conv2D(16, 3, name="inner")(y)
    return tf_keras.Model(x, [y, layers.Conv2D(16, 3, name="last")(z)])


def recurrent():
    x = layers.Input((4, 16), name="series")
    y = layers.Dense(16, name="before")(layers.Dense(16, name="first")(x))
    y = layers.SimpleRNN(16, name="rnn", return_sequences=True)(y)
    return tf_keras.Model(x, layers.Dense(8, name="after")(y))


MODELS = {f.__name__: f for f in (convnet, lrn, mobile, attention, concat, features, recurrent)}


def described(model, policy=None, **options):
    plan = plan_model(model, policy=policy, **options)
    return plan, outline(plan, model)


def of(drawn, layer, op_type=None):
    """The one op of a layer, by type if it has several."""
    found = [op for op in drawn.ops if op.layer.rpartition("/")[2] == layer and op_type in (None, op.type)]
    assert len(found) == 1, found
    return found[0]


def numbers(groups):
    """The set that `ranges` wrote."""
    spans = [span.partition("-") for span in groups.split(",")] if groups else []
    return {n for first, _, last in spans for n in range(int(first), int(last or first) + 1)}


@st.composite
def graphs(draw):
    """Random ops in layers of layers, with branches, joins and every role."""
    count = draw(st.integers(1, 40))
    ops = []
    for i in range(count):
        sources = draw(st.sets(st.integers(max(0, i - 6), i - 1), max_size=3)) if i else set()
        kind = draw(st.sampled_from(["Conv2D", "BiasAdd", "Relu", "Reshape", "AddV2", "MatMul", "Mul"]))
        role = draw(st.sampled_from(["gemm", "applies", "passes", "pins", "still"]))
        layer = draw(st.sampled_from(["", "a", "b", "c", "d/e", "d/f", "d"]))
        name = draw(st.sampled_from(["", "inner/"])) + f"op{i}"
        groups = draw(st.sampled_from(["", "1", "0-4,7"])) if role != "still" else ""
        ops.append(
            DrawnOp(layer, name, kind, role, tuple(sorted(sources)), groups, groups, note="n" * (role == "pins"))
        )
    return ops
