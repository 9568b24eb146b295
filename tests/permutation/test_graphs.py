"""Graphs that broke other implementations, one test each: the outputs stay, and so does the freedom."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tf_keras import layers

from tests.permutation.harness import EveryKernel, check

C = 16


def conv(filters=C, size=3, name=None, **kwargs):
    return layers.Conv2D(filters, size, padding="same", name=name, **kwargs)


def image(channels=3, size=8):
    return tf_keras.Input((size, size, channels))


def model(inputs, outputs):
    return tf_keras.Model(inputs, outputs)


def head(x, units=10):
    return layers.Dense(units, name="head")(layers.GlobalAveragePooling2D()(x))


# A second consumer that is not prunable


def test_second_consumer_is_a_ten_class_convolution():
    x = image()
    y = conv(name="stem")(x)
    side = layers.Conv2D(10, 1, name="classes")(y)
    main = conv(name="main")(y)
    policy = EveryKernel(skip=lambda layer: layer.name == "classes")
    check(model(x, [side, head(main)]), policy=policy, permuted=2, fixed=1)


def test_second_consumer_is_depthwise():
    x = image()
    y = conv()(x)
    side = layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise")(y)
    main = conv()(y)
    # Behind the depthwise layer each channel has two neighbouring outputs: a stripe of four holds two channels.
    check(model(x, [head(main), layers.GlobalMaxPooling2D()(layers.Conv2D(8, 1)(side))]), permuted=3, fixed=1)


def test_second_consumer_is_a_global_max_pool_head():
    x = image()
    y = conv(name="stem")(x)
    pooled = layers.GlobalMaxPooling2D()(y)
    main = conv(name="main")(y)
    check(model(x, [head(main), layers.Dense(4, name="side")(pooled)]), permuted=3, fixed=1)


def test_a_pooled_feature_that_is_returned_pins_its_channels():
    x = image()
    y = conv(name="stem")(x)
    result = check(
        model(x, [head(conv(name="main")(y)), layers.GlobalMaxPooling2D(name="pool")(y)]), permuted=1, fixed=2
    )
    assert "output 1" in result.reason("main")


def test_tail_of_a_residual_stage_feeds_the_classifier():
    x = image()
    y = conv()(x)
    for _ in range(3):
        z = layers.BatchNormalization()(conv()(y))
        y = layers.ReLU()(layers.Add()([y, z]))
    check(model(x, head(y)), permuted=4, fixed=1, groups=1)


# Residuals and concatenation with what cannot move


def test_residual_from_the_graph_input():
    x = image(C)
    y = layers.Add()([x, conv(name="a")(x)])
    y = conv(name="b")(y)
    result = check(model(x, head(conv(name="c")(y))), permuted=2, fixed=2)
    assert "input" in result.reason("a")
    assert "input" in result.reason("b")


def test_concat_with_the_graph_input():
    x = image(4)
    y = conv(12, name="a")(x)
    z = layers.Concatenate()([x, y])
    result = check(model(x, head(conv(name="b")(z))), permuted=1)
    assert result.status("b") == "partly permuted"
    assert result.sizes == [12, 16]


def test_pieces_of_a_concat_share_the_stripe_that_straddles_them():
    x = image()
    y = layers.Concatenate()([conv(18, name="a")(x), conv(14, name="b")(x)])
    result = check(model(x, head(conv(name="c")(y))))
    assert result.sizes == [14, 16, 18]
    assert result.status("c") == "permuted"


def test_dense_blocks_give_one_group_per_piece():
    x = image()
    y = conv()(x)
    for _ in range(3):
        y = layers.Concatenate()([y, conv(8)(layers.ReLU()(layers.BatchNormalization()(y)))])
    check(model(x, head(y)), permuted=4, fixed=1, groups=4)


def test_concat_of_a_tensor_with_itself():
    x = image()
    y = conv()(x)
    check(model(x, head(conv()(layers.Concatenate()([y, y])))), permuted=2, fixed=1)


def test_feature_both_returned_and_consumed():
    x = image()
    feature = conv(name="stem")(x)
    y = conv(name="main")(feature)
    result = check(model(x, [feature, head(y)]), permuted=1, fixed=2)
    assert "output 0" in result.reason("main")


# Sharing


def test_one_convolution_called_twice():
    x = image()
    shared = conv(name="shared")
    y = conv(name="stem")(x)
    check(model(x, head(shared(layers.ReLU()(shared(y))))), permuted=2, fixed=1, groups=1)


def test_shared_layers_on_two_inputs():
    a, b = image(), image()
    first, second = conv(name="first"), conv(name="second")
    joined = layers.Subtract()([second(first(a)), second(first(b))])
    check(model([a, b], head(joined)), permuted=2, fixed=1)


def test_siamese_on_the_input_and_on_a_feature():
    x = image(C)
    shared = conv(name="shared")
    result = check(model(x, head(conv(name="last")(shared(shared(x))))), permuted=1, fixed=2)
    assert "input" in result.reason("shared")


def test_name_collisions():
    inner = tf_keras.Sequential([tf_keras.Input((8, 8, C)), conv(name="c")], name="a/b")
    outer = tf_keras.Sequential([tf_keras.Input((8, 8, C)), conv(name="b/c")], name="a")
    third = tf_keras.Sequential([tf_keras.Input((8, 8, C)), conv(name="c")], name="b")
    x = image()
    y = conv(name="stem")(x)
    result = check(model(x, head(third(outer(inner(y))))), permuted=4, fixed=1)
    names = [entry.name for entry in result.report.layers]
    assert len(set(names)) == len(names)


def test_equal_names_everywhere():
    class Same(tf.Module):
        def __init__(self):
            self.layers_ = [layers.Dense(C, name="dense", activation="relu") for _ in range(4)]
            for layer in self.layers_:
                layer.build((None, C))

        def __call__(self, x):
            for layer in self.layers_:
                x = layer(x)
            return x

    module = Same()
    result = check(
        module, inputs=tf.random.stateless_normal((3, C), (1, 2)), input_shapes=(None, C), permuted=3, fixed=1
    )
    names = [entry.name for entry in result.report.layers]
    assert len(set(names)) == 4


# Channels that ops move


def test_channel_shuffle():
    x = image()
    y = conv()(x)
    y = layers.Reshape((8, 8, 2, C // 2))(y)
    y = layers.Permute((1, 2, 4, 3))(y)
    y = layers.Reshape((8, 8, C))(y)
    check(model(x, head(conv()(y))), permuted=2, fixed=1)


def test_grouped_convolutions_with_channel_shuffle():
    x = image()
    y = conv(32)(x)
    y = conv(32, groups=2, name="grouped1")(y)
    y = tf.reshape(y, (-1, 8, 8, 2, 16))
    y = tf.reshape(tf.transpose(y, (0, 1, 2, 4, 3)), (-1, 8, 8, 32))
    y = conv(32, groups=2, name="grouped2")(y)
    result = check(model(x, head(conv()(y))))
    assert result.status("grouped1") == "permuted"


def test_flip_of_channels():
    x = image()
    y = conv()(x)
    check(model(x, head(conv()(tf.reverse(y, [-1])))), permuted=2, fixed=1)


def test_sum_of_a_feature_and_its_flip():
    x = image()
    y = conv()(x)
    # Channels i and C - 1 - i move as a pair: their stripes are the group's, position by position.
    result = check(model(x, head(conv()(y + tf.reverse(y, [-1])))))
    assert result.groups >= 1


def test_roll_of_channels():
    x = image()
    y = conv()(x)
    check(model(x, head(conv()(tf.roll(y, 3, -1)))), permuted=2, fixed=1)


def test_gather_of_channels():
    x = image()
    y = conv()(x)
    order = np.random.default_rng(0).permutation(C)
    check(model(x, head(conv()(tf.gather(y, order, axis=-1)))), permuted=2, fixed=1)


def test_gather_of_half_the_channels():
    x = image()
    y = conv()(x)
    result = check(model(x, head(conv()(tf.gather(y, np.arange(0, C, 2), axis=-1)))), permuted=2, fixed=1)
    assert 8 in result.sizes


@pytest.mark.parametrize("axis", [1, -1])
def test_take_along_axis(axis):
    """Keras merges batch and channels before it gathers: the indices are the same for all channels, so these move."""
    import keras

    class Take(keras.layers.Layer):
        def call(self, x, index):
            return keras.ops.take_along_axis(x, index, axis=axis)

    rng = np.random.default_rng(0)
    x, index = keras.Input((12, C)), keras.Input((5, 1) if axis == 1 else (1, 5), dtype="int32")
    y = Take()(keras.layers.Dense(C)(x), index)
    y = keras.layers.Dense(8, name="last")(keras.layers.Dense(C, name="taken")(y))
    inputs = [rng.normal(size=(3, 12, C)).astype(np.float32), rng.integers(0, 12, (3, *index.shape[1:]))]
    result = check(keras.Model([x, index], y), inputs=inputs)
    assert result.status("last") == "permuted"
    assert result.status("taken") == ("permuted" if axis == 1 else "fixed")  # picked from by index


def test_gather_that_repeats_channels():
    x = image()
    y = conv()(x)
    check(model(x, head(conv()(tf.gather(y, np.repeat(np.arange(C), 2), axis=-1)))))


def test_split_and_swap():
    x = image()
    y = conv(32)(x)
    a, b = tf.split(y, 2, axis=-1)
    check(model(x, head(conv()(tf.concat([b, tf.nn.relu(a)], -1)))), permuted=2, fixed=1)


def test_one_channel_picked_out_stays():
    x = image()
    y = conv()(x)
    gate = y[..., :1]
    result = check(model(x, head(conv(name="main")(y * tf.sigmoid(gate)))))
    assert result.status("main") == "partly permuted"


def test_space_to_depth_and_back():
    x = image()
    y = conv()(x)
    y = conv(64, name="wide")(tf.nn.space_to_depth(y, 2))
    y = tf.nn.depth_to_space(y, 2)
    check(model(x, head(conv(name="last")(y))), permuted=3, fixed=1)


def test_stack_and_unstack_of_features():
    x = image()
    parts = tf.stack([conv()(x), conv()(x)], axis=-1)
    a, b = tf.unstack(parts * 2.0, axis=-1)
    check(model(x, head(conv()(a - b))), permuted=2)


def test_interleaving_by_stack_and_reshape():
    x = image()
    y = tf.reshape(tf.stack([conv()(x), conv()(x)], axis=-1), (-1, 8, 8, 2 * C))
    check(model(x, head(conv()(y))))


def test_tile_of_channels():
    x = image()
    y = tf.tile(conv()(x), (1, 1, 1, 2))
    check(model(x, head(conv()(y))), permuted=2, fixed=1)


# Normalization and neighbours


def test_group_normalization():
    x = image()
    y = conv(32)(x)
    y = layers.GroupNormalization(2)(y)
    check(model(x, head(conv()(y))), permuted=2, fixed=1)


def test_group_normalization_with_a_residual():
    x = image()
    y = conv(32)(x)
    for _ in range(3):
        y = y + conv(32)(tf.nn.relu(layers.GroupNormalization(2)(y)))
    check(model(x, head(y)), permuted=4, fixed=1)


def test_instance_normalization():
    x = image()
    y = layers.GroupNormalization(-1)(conv(C)(x))
    check(model(x, head(conv()(y))), permuted=2, fixed=1)


@pytest.mark.parametrize("axis", [-1, (1, 2, 3), (2, 3)])
def test_layer_normalization_over(axis):
    x = image()
    y = layers.LayerNormalization(axis=axis)(conv(C)(x))
    check(model(x, head(conv()(y))), permuted=2, fixed=1)


def test_fused_layer_normalization():
    x = tf_keras.Input((6, C))
    y = layers.Dense(32)(x)
    y = layers.LayerNormalization(epsilon=1e-3)(y)
    assert any(
        "FusedBatchNorm" in op.type
        for op in check(model(x, layers.Dense(4)(layers.Dense(C)(y))), permuted=2).plan.graph.ops
    )


def test_unit_normalization():
    x = image()
    check(model(x, head(conv()(layers.UnitNormalization()(conv()(x))))), permuted=2, fixed=1)


def test_local_response_normalization_pins():
    x = image()
    y = tf.nn.local_response_normalization(conv(name="a")(x))
    result = check(model(x, head(conv(name="b")(y))), permuted=1, fixed=2)
    assert "LRN" in result.reason("b")
    assert "neighbouring" in result.reason("b")


@pytest.mark.parametrize("shared_axes", [None, [1, 2], [1, 2, 3]])
def test_prelu(shared_axes):
    x = image()
    y = layers.PReLU(shared_axes=shared_axes)(conv()(x))
    check(model(x, head(conv()(y))), permuted=2, fixed=1)


@pytest.mark.parametrize(("scale", "center"), [(False, True), (True, False), (False, False)])
def test_batch_normalization_without(scale, center):
    x = image()
    y = layers.BatchNormalization(scale=scale, center=center)(conv()(x))
    check(model(x, head(conv()(y))), permuted=2, fixed=1)


def test_synchronized_batch_normalization():
    x = image()
    y = layers.BatchNormalization(synchronized=True)(conv()(x))
    check(model(x, head(conv()(y))), permuted=2, fixed=1)


def test_batch_normalization_on_another_axis():
    x = image()
    y = layers.BatchNormalization(axis=1)(conv()(x))
    check(model(x, head(conv()(y))), permuted=2, fixed=1)


def test_batch_normalization_over_two_axes():
    x = image()
    y = layers.BatchNormalization(axis=(1, 3))(conv()(x))
    check(model(x, head(conv()(y))), permuted=2, fixed=1)


# Shapes


def test_dense_transpose_dense():
    x = tf_keras.Input((C, C))
    y = layers.Dense(32, name="a")(x)
    y = tf.transpose(y, (0, 2, 1))
    y = layers.Dense(24, name="b")(y)
    y = tf.transpose(y, (0, 2, 1))
    # `b` sums over the positions of the input, which cannot move; its outputs and those of `a` can.
    result = check(model(x, layers.Dense(5, name="d")(layers.Flatten()(y))))
    assert "input" in result.reason("b")
    assert result.status("d") == "permuted"


def test_mlp_mixer():
    x = tf_keras.Input((8, 8, 3))
    y = layers.Reshape((16, C))(layers.Conv2D(C, 2, 2)(x))
    for _ in range(2):
        z = layers.Permute((2, 1))(layers.LayerNormalization()(y))
        z = layers.Dense(16)(layers.Dense(32, activation="gelu")(z))
        y = y + layers.Permute((2, 1))(z)
        z = layers.Dense(C)(layers.Dense(32, activation="gelu")(layers.LayerNormalization()(y)))
        y = y + z
    # Token mixing sums over positions of the image: 2 of 4 Dense per block; the hidden layers all move.
    check(model(x, layers.Dense(10)(layers.GlobalAveragePooling1D()(y))), permuted=7)


def test_flatten_moves_every_copy():
    x = image()
    y = layers.Flatten()(conv()(x))
    check(model(x, layers.Dense(10)(layers.Dense(C)(y))), permuted=2, fixed=1)


def test_flatten_of_a_residual_stream():
    x = image()
    y = conv()(x)
    y = y + conv()(y)
    check(model(x, layers.Dense(10)(layers.Flatten()(y))), permuted=2, fixed=1, groups=1)


def test_flatten_of_two_concatenated_branches():
    x = image()
    y = layers.Concatenate()([layers.Flatten()(conv()(x)), layers.Flatten()(conv()(x))])
    check(model(x, layers.Dense(10)(y)), permuted=1)


def test_squeeze_and_excite():
    x = image()
    y = conv(32)(x)
    s = layers.GlobalAveragePooling2D(keepdims=True)(y)
    s = layers.Conv2D(32, 1, activation="sigmoid")(layers.Conv2D(8, 1, activation="relu")(s))
    check(model(x, head(conv()(y * s))), permuted=4, fixed=1)


def test_global_response_normalization():
    x = image()
    y = conv(32)(x)
    g = tf.norm(y, axis=(1, 2), keepdims=True)
    y = y * (g / (tf.reduce_mean(g, -1, keepdims=True) + 1e-6)) + y
    check(model(x, head(conv()(y))), permuted=2, fixed=1)


def test_depthwise_multiplier():
    x = image()
    y = layers.DepthwiseConv2D(3, depth_multiplier=3)(conv()(x))
    # The three outputs of a channel move with it, so whole stripes of the 48 do not form from single channels.
    check(model(x, head(conv()(y))))


@pytest.mark.parametrize("groups", [2, 4, 16])
def test_grouped_convolution(groups):
    x = image()
    y = conv(32, groups=groups, name="grouped")(conv(16 * groups, name="wide")(x)) if groups < 16 else None
    y = conv(C * 2, groups=C)(conv(C)(x)) if y is None else y
    check(model(x, head(conv()(y))))


def test_convolution_transpose():
    x = image()
    y = layers.Conv2DTranspose(24, 3, 2, padding="same", name="up")(conv()(x))
    check(model(x, head(conv()(y))), permuted=3, fixed=1)


def test_separable_convolution():
    x = image()
    y = layers.SeparableConv2D(24, 3, padding="same")(conv()(x))
    check(model(x, head(y)), permuted=2)


@pytest.mark.parametrize("dilation", [1, 2])
def test_conv1d(dilation):
    x = tf_keras.Input((12, 3))
    y = layers.Conv1D(C, 3, padding="causal", dilation_rate=dilation)(x)
    y = layers.Conv1D(C, 3, dilation_rate=dilation)(layers.MaxPooling1D()(y))
    check(model(x, layers.Dense(4)(layers.GlobalAveragePooling1D()(y))), permuted=2, fixed=1)


def test_conv1d_transpose_and_separable_1d():
    x = tf_keras.Input((12, 3))
    y = layers.SeparableConv1D(C, 3, padding="same")(layers.Conv1D(C, 3)(x))
    y = layers.Conv1DTranspose(C, 3)(y)
    check(model(x, layers.Dense(4)(layers.GlobalAveragePooling1D()(y))))


def test_conv3d():
    x = tf_keras.Input((6, 6, 6, 2))
    y = layers.Conv3D(C, 3)(x)
    y = layers.BatchNormalization()(layers.MaxPooling3D()(layers.Conv3D(C, 3, padding="same")(y)))
    y = layers.Conv3DTranspose(C, 2)(y)
    check(model(x, layers.Dense(4)(layers.GlobalAveragePooling3D()(y))), permuted=3, fixed=1)


def test_locally_connected():
    x = image(3, 6)
    y = layers.LocallyConnected2D(8, 3)(conv()(x))
    check(model(x, head(conv(name="after")(y))))


@pytest.mark.parametrize("padding", ["CONSTANT", "REFLECT"])
def test_padding_of_channels(padding):
    x = image()
    y = conv(12)(x)
    y = tf.pad(y, ((0, 0), (0, 0), (0, 0), (2, 2)), padding)
    check(model(x, head(conv()(y))))


def test_resnet_type_a_shortcut_pads_channels():
    x = image()
    y = conv(C)(x)
    short = tf.pad(y[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (8, 8)))
    z = layers.Add()([short, conv(32, strides=2)(y)])
    check(model(x, head(conv()(z))))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "area"])
def test_resizing(interpolation):
    x = image()
    y = layers.Resizing(12, 12, interpolation=interpolation)(conv()(x))
    check(model(x, head(conv()(y))), permuted=2, fixed=1)


def test_unet():
    x = image(3, 16)
    a = conv(C)(x)
    b = conv(32)(layers.MaxPooling2D()(a))
    c = conv(32)(layers.MaxPooling2D()(b))
    d = conv(32)(layers.Concatenate()([layers.UpSampling2D()(c), b]))
    e = conv(C)(layers.Concatenate()([layers.UpSampling2D()(d), a]))
    check(model(x, layers.Conv2D(2, 1)(e)), permuted=5, fixed=1)


# Attention by hand


def test_hand_written_attention():
    x = tf_keras.Input((6, C))
    y = layers.Dense(C)(x)
    q, k, v = (layers.Dense(C)(y) for _ in range(3))
    a = tf.nn.softmax(tf.matmul(q, k, transpose_b=True) / 4.0)
    y = y + layers.Dense(C)(tf.matmul(a, v))
    check(model(x, layers.Dense(4)(y)), permuted=5, fixed=1)


def test_cumulative_sum_over_time_keeps_channels_free():
    x = tf_keras.Input((6, C))
    y = tf.cumsum(layers.Dense(C)(x), axis=1)
    check(model(x, layers.Dense(4)(layers.Dense(C)(y))), permuted=2, fixed=1)


def test_cumulative_sum_over_channels_pins_them():
    x = tf_keras.Input((6, C))
    y = tf.cumsum(layers.Dense(C, name="a")(x), axis=-1)
    result = check(model(x, layers.Dense(4, name="c")(layers.Dense(C, name="b")(y))), permuted=1, fixed=2)
    assert "Cumsum" in result.reason("b")


def test_softmax_over_channels_keeps_them_free():
    x = image()
    check(model(x, head(conv()(tf.nn.softmax(conv()(x))))), permuted=2, fixed=1)


def test_weight_standardization():
    class Standardized(layers.Conv2D):
        def call(self, x):
            mean, variance = tf.nn.moments(self.kernel, (0, 1, 2), keepdims=True)
            return tf.nn.conv2d(x, (self.kernel - mean) * tf.math.rsqrt(variance + 1e-5), 1, "SAME") + self.bias

    x = image()
    check(model(x, head(Standardized(C, 3)(Standardized(C, 3)(x)))), permuted=2, fixed=1)


def test_position_table_pins_only_what_it_touches():
    x = image()
    table = np.random.default_rng(0).normal(size=(8, 8, 1)).astype(np.float32)
    check(model(x, head(conv()(conv()(x) + table))), permuted=2, fixed=1)


def test_a_constant_that_differs_along_the_channels_pins_them():
    x = image()
    table = np.arange(C, dtype=np.float32)
    result = check(model(x, head(conv(name="b")(conv()(x) + table))), permuted=1, fixed=2)
    assert "constant" in result.reason("b")


def test_random_projection_keeps_the_function():
    x = image()
    y = layers.Lambda(lambda t: tf.einsum("bhwc,cd->bhwd", t, tf.constant(np.eye(C, dtype=np.float32)[::-1] + 1)))(
        conv()(x)
    )
    check(model(x, head(conv()(y))))
