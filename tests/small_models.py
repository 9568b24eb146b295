"""A small convnet, data for it, and what tests ask of trained models."""

import numpy as np
import tf_keras
from tf_keras import layers

from tfmot_asp import masks
from tfmot_asp.keras_models.kernels import kernels_of


def convnet(classes=8):
    """Residual, batch norm, flatten, Dense; an unprunable stem (3 channels) and three prunable kernels."""
    x = layers.Input((8, 8, 3), name="image")
    y = layers.Conv2D(16, 3, padding="same", name="stem")(x)
    y = layers.ReLU()(layers.BatchNormalization()(y))
    z = layers.Conv2D(16, 3, padding="same", name="conv")(y)
    y = layers.Flatten()(layers.MaxPooling2D()(layers.Add()([y, z])))
    y = layers.Dense(32, activation="relu", name="fc")(y)
    return tf_keras.Model(x, layers.Dense(classes, name="head")(y), name="convnet")


def mlp(inputs=16, hidden=32, outputs=8, **options):
    return tf_keras.Sequential(
        [
            layers.Input((inputs,)),
            layers.Dense(hidden, activation="relu", name="first", **options),
            layers.Dense(outputs, name="second"),
        ],
        name="mlp",
    )


def data(model, count=32, classes=8, seed=0):
    generator = np.random.default_rng(seed)
    shape = (count, *model.input_shape[1:])
    return generator.standard_normal(shape).astype(np.float32), generator.integers(0, classes, count)


def compiled(model, optimizer="adam", **options):
    model.compile(optimizer, tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True), **options)
    return model


def violations(model, m_by_n=(2, 4)):
    """Violating stripes of every kernel inside a pruning wrapper, by layer name."""
    found = {}
    for layer in model._flatten_layers():
        if hasattr(layer, "pruning_vars"):
            for kernel in kernels_of(layer):
                if kernel.layout.reduction_axes:
                    name = f"{layer.layer.name}.{kernel.attribute}"
                    weight = np.asarray(kernel.tf_variable)
                    found[name] = masks.violations(weight, kernel.layout.reduction_axes, m_by_n)
    assert found, "no wrapped kernel to check"
    return found


def is_sparse(model, m_by_n=(2, 4)):
    return not any(violations(model, m_by_n).values())


class CheckEveryBatch(tf_keras.callbacks.Callback):
    """Fails a training run after the first step that leaves a violation."""

    def __init__(self):
        super().__init__()
        self.batches = 0

    def on_train_batch_end(self, batch, logs=None):
        assert is_sparse(self.model), (batch, violations(self.model))
        self.batches += 1

    def on_epoch_end(self, epoch, logs=None):
        assert is_sparse(self.model), (epoch, violations(self.model))
