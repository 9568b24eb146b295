"""The kinds of models that files are written of, each once and small: what every reader of such files is tried on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tf_keras
from tf_keras import layers

from tests.small_models import convnet, mlp

LENGTH, WORDS = 6, 12


def upsampling() -> Any:
    x = layers.Input((8, 8, 16))
    y = layers.Conv2D(16, 3, padding="same")(layers.UpSampling2D(2)(layers.Conv2D(16, 3, padding="same")(x)))
    return tf_keras.Model(x, layers.UpSampling2D(2, interpolation="bilinear")(y))


def transformer() -> Any:
    x = layers.Input((6, 32))
    y = layers.LayerNormalization(epsilon=1e-6)(x + layers.MultiHeadAttention(2, 16)(x, x))
    return tf_keras.Model(x, y + layers.Dense(32)(layers.Dense(64, activation="gelu")(y)))


def recurrent() -> Any:
    x = layers.Input((5, 16))
    return tf_keras.Model(x, layers.Dense(8)(layers.SimpleRNN(16)(layers.LSTM(16, return_sequences=True)(x))))


def gru_both_ways() -> Any:
    x = layers.Input((5, 16))
    return tf_keras.Model(x, layers.Dense(8)(layers.Bidirectional(layers.GRU(8))(layers.Masking()(x))))


def convolutions() -> Any:
    x = layers.Input((8, 8, 16))
    y = layers.Conv2D(16, 3, groups=4, padding="same")(x)
    y = layers.SeparableConv2D(16, 3, dilation_rate=2, padding="same")(y)
    y = layers.Conv2DTranspose(16, 3, strides=2, padding="same")(layers.PReLU(shared_axes=[1, 2])(y))
    return tf_keras.Model(x, layers.GlobalAveragePooling2D()(layers.DepthwiseConv2D(3)(y)))


def signal() -> Any:
    x = layers.Input((16, 8))
    y = layers.AveragePooling1D(2)(layers.Conv1D(16, 3, padding="causal", activation="swish")(x))
    return tf_keras.Model(x, layers.Dense(8)(layers.GlobalMaxPooling1D()(y)))


def volume() -> Any:
    x = layers.Input((8, 8, 8, 16))
    return tf_keras.Model(x, layers.Dense(8)(layers.Flatten()(layers.MaxPooling3D(2)(layers.Conv3D(16, 3)(x)))))


def u_net() -> Any:
    x = layers.Input((16, 16, 3))
    first = layers.BatchNormalization()(layers.Conv2D(16, 3, padding="same", activation="relu")(x))
    down = layers.Conv2D(32, 3, padding="same", activation="relu")(layers.MaxPooling2D()(first))
    up = layers.Concatenate()([layers.Conv2DTranspose(16, 2, strides=2)(down), first])
    gate = layers.Dense(32, activation="sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(up))
    return tf_keras.Model(x, layers.Conv2D(2, 1, activation="softmax")(up * gate))


def resized() -> Any:
    x = layers.Input((8, 8, 3))
    y = layers.Resizing(12, 20, interpolation="nearest")(layers.Conv2D(16, 3, padding="same")(x))
    return tf_keras.Model(x, layers.Conv2D(8, 3)(layers.ZeroPadding2D(1)(layers.Resizing(9, 9)(y))))


def detections() -> Any:
    x = layers.Input((8, 8, 3))
    scores = layers.Reshape((64, 16))(layers.Conv2D(16, 3, padding="same")(x))
    best = layers.Lambda(lambda s: tf.gather(s, tf.math.top_k(s[..., 0], 5).indices, batch_dims=1))(scores)
    return tf_keras.Model(x, layers.Dense(8)(layers.Lambda(lambda s: tf.cumsum(s, axis=1))(best)))


def tokens() -> Any:
    ids = layers.Input((LENGTH,), dtype="int32", name="ids")
    x = layers.Embedding(WORDS, 16)(ids)
    return tf_keras.Model(ids, layers.Dense(8)(x + layers.MultiHeadAttention(2, 8)(x, x, use_causal_mask=True)))


def keras3_convnet() -> Any:
    x = keras.layers.Input((8, 8, 3))
    y = keras.layers.Activation("silu")(keras.layers.GroupNormalization(4)(keras.layers.Conv2D(16, 3)(x)))
    y = keras.layers.UpSampling2D(2)(keras.layers.SeparableConv2D(16, 3)(y))
    return keras.Model(x, keras.layers.Dense(8)(keras.layers.GlobalAveragePooling2D()(y)))


def keras3_transformer() -> Any:
    ids = keras.layers.Input((LENGTH,), dtype="int32", name="ids")
    x = keras.layers.Embedding(WORDS, 32)(ids)
    y = keras.layers.LayerNormalization(epsilon=1e-6)(x)
    x = x + keras.layers.GroupQueryAttention(8, 4, 2)(y, y, use_causal_mask=True)
    y = keras.layers.Dense(64, activation="gelu")(keras.layers.RMSNormalization()(x))
    return keras.Model(ids, keras.layers.Dense(8)(x + keras.layers.EinsumDense("btf,fd->btd", (None, 32))(y)))


def keras3_recurrent() -> Any:
    x = keras.layers.Input((5, 16))
    y = keras.layers.Bidirectional(keras.layers.GRU(8, return_sequences=True))(x)
    return keras.Model(x, keras.layers.Dense(8)(keras.layers.LSTM(16)(y)))


KINDS: dict[str, Callable[[], Any]] = {
    make.__name__: make
    for make in (
        *(convnet, upsampling, transformer, recurrent, mlp, gru_both_ways, convolutions, signal, volume, u_net),
        *(resized, detections, tokens, keras3_convnet, keras3_transformer, keras3_recurrent),
    )
}


def inputs(model: Any, count: int = 8) -> np.ndarray:
    """Random inputs of a model of one input, in its type."""
    (tensor,) = model.inputs
    generator = np.random.default_rng(0)
    shape = (count, *tensor.shape[1:])
    if "int" in str(tf.as_dtype(tensor.dtype)):
        return generator.integers(0, WORDS, shape).astype("int32")
    return generator.standard_normal(shape).astype("f")
