"""Orders of each group's own: split channels, worked on group by group, merged again; and what must forbid it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from hypothesis import given, settings
from hypothesis import strategies as st
from tf_keras import layers

import tfmot_asp
from tests import dtypes
from tests.permutation.harness import EveryKernel, check, randomise
from tests.permutation.random_models import KINDS, WITHIN_GROUPS, Grower
from tests.permutation.test_random_models import QUIET, TOLERANCE


def grouped_model(draw):
    """Dense layers with splits, inner ops and merges between them, in double precision."""
    with dtypes.floatx("float64"):
        x = tf_keras.Input(draw(st.sampled_from([(3, 8), (8,), (2, 2, 6)])))
        g = Grower(draw, [x])
        y = layers.Dense(g.choose((8, 12)))(x)
        for _ in range(draw(st.integers(1, 3))):
            name = g.choose(["within groups"] * 3 + ["group norm by layer", "fused projections", "channel shuffle"])
            if name == "group norm by layer":
                groups = g.choose([n for n in (2, 4, 6) if y.shape[-1] % n == 0])
                z = layers.GroupNormalization(groups, epsilon=1e-2)(y) if len(y.shape) > 2 else y
            else:
                applies, grow = KINDS[name]
                z = grow(g, y) if applies(y) else y
            y = y + z if z.shape == y.shape and draw(st.booleans()) else z
            if draw(st.booleans()):
                y = layers.Dense(g.choose((8, 12)))(tf.nn.swish(y))
        return tf_keras.Model(x, layers.Dense(3)(y)), g.kinds


def test_outputs_stay_whatever_is_done_within_and_across_groups():
    seen: Counter[str] = Counter()
    levels: Counter[int] = Counter()

    @given(st.data())
    @settings(max_examples=30, derandomize=True, **QUIET)
    def property_(data):
        model, kinds = grouped_model(data.draw)
        seen.update(kinds)
        # Blocks of three straddle stripes of two, those of two or three share stripes of four.
        outcome = check(model, m_by_n=data.draw(st.sampled_from([(1, 2), (2, 4)])), tolerance=TOLERANCE)
        levels.update(group.level > 0 for group in outcome.plan.plan.groups)
        tf_keras.backend.clear_session()

    property_()
    assert len(set(seen) & set(WITHIN_GROUPS)) >= 12
    assert levels[True] >= 3  # groups that move as wholes
    assert levels[False] >= 20


@pytest.mark.parametrize("name", WITHIN_GROUPS)
def test_outputs_stay_whatever_one_op_does(name):
    @given(st.data())
    @settings(max_examples=2, derandomize=True, **QUIET)
    def property_(data):
        g = Grower(data.draw, [])
        groups = g.choose((2, 4))
        inner = WITHIN_GROUPS[name]
        check(split(12, groups, lambda z: centred(inner(g, z))), m_by_n=(1, 2), tolerance=TOLERANCE)

    property_()


@pytest.mark.slow
@given(st.data())
@settings(max_examples=1000, **QUIET)
def test_outputs_stay_in_a_thousand_grouped_models(data):
    check(grouped_model(data.draw)[0], m_by_n=data.draw(st.sampled_from([(1, 2), (2, 4)])), tolerance=TOLERANCE)
    tf_keras.backend.clear_session()


def split(width, groups, inner):
    """Dense, split into groups, `inner`, merge, Dense: the second kernel's inputs move as far as `inner` lets them."""
    x = layers.Input((5, 8))
    z = inner(tf.reshape(layers.Dense(width, name="before")(x), (-1, 5, groups, width // groups)))
    return tf_keras.Model(x, layers.Dense(8, name="after")(tf.reshape(z, (-1, 5, width))))


def centred(z):
    mean, variance = tf.nn.moments(z, [1, 3], keepdims=True)
    return (z - mean) * tf.math.rsqrt(variance + 0.1)


@pytest.mark.parametrize(
    ("inner", "movable"),
    [
        (centred, [8, 8]),  # an order of its own in each group
        (lambda z: tf.nn.softmax(z), [8, 8]),
        (lambda z: z * tf.constant([[2.0], [3.0]]), [8, 8]),  # groups stay, what is in them moves
        (lambda z: z - tf.reduce_mean(z, 2, keepdims=True), [8]),  # one order for both
        (lambda z: tf.nn.softmax(z, axis=2), [8]),
        (lambda z: z * tf.constant(np.linspace(1, 2, 8), tf.float32), []),  # a table tells them apart
        (lambda z: centred(tf.cumsum(z, 3)), []),
        (lambda z: tf.cumsum(z, 2), [8]),
        (lambda z: z + tf.reverse(z, [2]), [8]),  # the other group's channel of that number
        (lambda z: tf.matmul(tf.matmul(z, z, transpose_b=True), z), [8]),  # sums over groups
        (lambda z: tf.einsum("nsgb,nsgc,ntgc->ntgb", z, z, z), [8, 8]),  # mixes channels, group by group ...
        (lambda z: layers.Dense(8)(z) * z, [8]),  # ... and by the same weights in both
    ],
)
def test_an_order_of_its_own_in_each_group_only_where_groups_are_treated_apart(inner, movable):
    outcome = check(split(16, 2, inner))
    kernels = outcome.plan.plan.kernels
    assert [g.size for g in outcome.plan.plan.groups if "after" in [kernels[k].name for k in g.kernels]] == movable


@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize(("channels", "groups", "movable"), [(32, 4, 32), (64, 32, 64), (40, 4, 40), (16, 4, 0)])
def test_group_normalization(channels, groups, movable, by_hand):
    """Channels move within their group, and groups as wholes: of two only the latter gains, of four nothing."""
    x = layers.Input((4, 4, 8))
    y = layers.Conv2D(channels, 3, name="before")(x)
    if by_hand:
        z = tf.reshape(y, (-1, 2, 2, groups, channels // groups))
        mean, variance = tf.nn.moments(z, [1, 2, 4], keepdims=True)
        y = tf.reshape((z - mean) * tf.math.rsqrt(variance + 1e-3), (-1, 2, 2, channels))
        y = layers.DepthwiseConv2D(1)(y)  # gamma and beta
    else:
        y = layers.GroupNormalization(groups)(y)
    model = tf_keras.Model(x, layers.Conv2D(8, 1, name="after")(tf.nn.swish(y)))
    outcome = check(model)
    after = next(entry for entry in outcome.report.layers if entry.name == "after")
    assert after.movable == movable
    randomise(model, 1)
    report = tfmot_asp.permute(model, policy=EveryKernel(), effort="fast")
    after = next(entry for entry in report.layers if entry.name == "after")
    assert (after.retained_after > after.retained_before + 0.005) == bool(movable)


@pytest.mark.parametrize(("channels", "groups"), [(32, 4), (64, 32)])
def test_group_normalization_of_keras_3(channels, groups):
    keras = pytest.importorskip("keras", minversion="3")
    x = keras.Input((4, 4, 8))
    y = keras.layers.GroupNormalization(groups)(keras.layers.Conv2D(channels, 3)(x))
    model = keras.Model(x, keras.layers.Conv2D(8, 1)(keras.ops.swish(y)))
    assert check(model).report.layers[-1].movable == channels


def test_interleaved_sets_after_a_channel_shuffle_share_stripes():
    x = layers.Input((4, 4, 8))
    y = layers.Conv2D(16, 1, groups=2, name="first")(x)
    z = tf.transpose(tf.reshape(y, (-1, 4, 4, 2, 8)), (0, 1, 2, 4, 3))
    model = tf_keras.Model(x, layers.Conv2D(8, 1, name="after")(tf.reshape(z, (-1, 4, 4, 16))))
    outcome = check(model)
    assert outcome.sizes == [8, 8]
    assert outcome.report.layers[1].movable == 16
    randomise(model, 1)
    after = tfmot_asp.permute(model, policy=EveryKernel(), effort="fast").layers[1]
    assert after.retained_after > after.retained_before + 0.005


def attention(fused, rotary, heads=2, width=16):
    x, n, size = layers.Input((6, 8)), 6, width // heads
    if fused:
        y = tf.reshape(layers.Dense(3 * width, name="qkv")(x), (-1, n, 3, heads, size))
        q, k, v = tf.unstack(tf.transpose(y, (2, 0, 3, 1, 4)))
    else:
        q, k, v = (
            tf.transpose(tf.reshape(layers.Dense(width, name=name)(x), (-1, n, heads, size)), (0, 2, 1, 3))
            for name in "qkv"
        )
    if rotary:
        table = tf.constant(np.random.default_rng(0).normal(size=(n, size)), tf.float32)
        q, k = (t * table + tf.concat([-t[..., size // 2 :], t[..., : size // 2]], -1) for t in (q, k))
    y = tf.matmul(tf.nn.softmax(tf.matmul(q, k, transpose_b=True)), v)
    y = tf.reshape(tf.transpose(y, (0, 2, 1, 3)), (-1, n, width))
    return tf_keras.Model(x, layers.Dense(8, name="out")(y))


@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_value_channels_of_each_head_have_an_order_of_their_own(fused, rotary):
    outcome = check(attention(fused, rotary))
    assert outcome.sizes == [8, 8]
    assert outcome.status("out") == "permuted"


def test_weaving_keeps_no_less_and_is_reproducible():
    orders = []
    for _ in range(2):
        x = layers.Input((4, 8))
        y = layers.GroupNormalization(6)(layers.Dense(36)(x))
        model = tf_keras.Model(x, layers.Dense(8, name="after")(y))
        randomise(model, 3)
        report = tfmot_asp.permute(model, policy=EveryKernel(), effort="balanced")
        after = next(entry for entry in report.layers if entry.name == "after")
        assert after.movable == 36
        assert after.retained_after > after.retained_before
        orders.append([group.order for group in report.groups])
        again = tf_keras.models.clone_model(model)
        randomise(again, 3)
        assert report.apply_to(again, policy=EveryKernel()).layers[1].retained_after == after.retained_after
    assert orders[0] == orders[1]
