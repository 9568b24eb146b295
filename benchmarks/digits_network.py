"""A residual network that reads scikit-learn's digits: what int8 costs is measured on it, and tested."""

from __future__ import annotations

import tf_keras
from tf_keras import layers


def build_model(width: int = 32) -> tf_keras.Model:
    """Batch norm, a shortcut, a concat and a flatten."""

    def conv(x, filters, size, activation=True):
        x = layers.Conv2D(filters, size, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization()(x)
        return layers.ReLU()(x) if activation else x

    inputs = tf_keras.Input((8, 8, 1))
    x = conv(inputs, width, 3)
    for _ in range(2):
        shortcut = x
        x = conv(x, width, 3)
        x = conv(x, width, 3, activation=False)
        x = layers.ReLU()(layers.Add()([x, shortcut]))
    x = layers.Concatenate()([conv(x, width, 1), conv(x, width, 3)])
    x = layers.MaxPooling2D()(x)
    x = conv(x, 2 * width, 3)
    x = layers.Flatten()(layers.MaxPooling2D()(x))
    x = layers.Dropout(0.3)(layers.Dense(64, activation="relu")(x))
    return tf_keras.Model(inputs, layers.Dense(10)(x))


def compile_model(model: tf_keras.Model, learning_rate: float, steps: int) -> None:
    model.compile(
        # Weight decay makes the magnitude of a weight say more about its importance.
        tf_keras.optimizers.AdamW(tf_keras.optimizers.schedules.CosineDecay(learning_rate, steps), weight_decay=1.0),
        tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
