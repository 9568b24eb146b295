"""Models that leave sizes open: texts of any length, images of any size."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tf_keras import layers

import tfmot_asp
from tests.permutation.harness import EveryKernel, check
from tfmot_asp.permutation.plan import plan_model


def convolutional(shape=(None, None, 3)):
    x = layers.Input(shape, name="photo")
    y = layers.Conv2D(16, 3, padding="same", name="first")(x)
    y = layers.Conv2D(16, 3, strides=2, padding="same", name="second")(y)
    return tf_keras.Model(x, layers.Dense(4)(layers.GlobalAveragePooling2D()(y)), name="cnn")


def encoder(positions=None):
    tokens = layers.Input((None,), dtype="int32", name="tokens")
    mask = layers.Input((None,), dtype="int32", name="mask")
    y = layers.Embedding(50, 16)(tokens)
    if positions:
        table = tf.constant(np.random.default_rng(0).normal(size=(positions, 16)), tf.float32)
        y = y + table[None]
    y = y + layers.MultiHeadAttention(2, 8)(y, y, attention_mask=mask[:, None, :] > 0)
    y = layers.Dense(16, name="narrow")(layers.Dense(32, activation="gelu", name="wide")(y))
    return tf_keras.Model({"tokens": tokens, "mask": mask}, layers.Dense(3)(y), name="encoder")


def test_images_of_any_size_need_no_shapes():
    image = tf.random.stateless_uniform((3, 20, 28, 3), (1, 2))
    open_ones, fixed = check(convolutional(), inputs=image), check(convolutional((20, 28, 3)), inputs=image)
    assert open_ones.plan.fingerprint()["groups"] == fixed.plan.fingerprint()["groups"]
    assert open_ones.status("second") == "permuted"


def test_text_of_any_length_needs_no_shapes():
    text = {"tokens": tf.zeros((3, 7), tf.int32) + 3, "mask": tf.ones((3, 7), tf.int32)}
    outcome = check(encoder(), inputs=text)
    assert outcome.status("narrow") == "permuted"


def test_a_size_that_the_model_takes_is_found():
    text = {"tokens": tf.zeros((3, 64), tf.int32) + 3, "mask": tf.ones((3, 64), tf.int32)}
    assert check(encoder(positions=64), inputs=text).status("narrow") == "permuted"


def test_what_is_asked_for_is_named_as_the_model_names_it():
    hint = r"input_shapes=\{'tokens': \(None, 128\), 'mask': \(None, 128\)\}"
    with pytest.raises(ValueError, match=rf"(?s)'encoder' leaves sizes of its inputs open.*{hint}"):
        tfmot_asp.permute(encoder(positions=20), policy=EveryKernel())
    report = tfmot_asp.permute(
        encoder(positions=20),
        policy=EveryKernel(),
        input_shapes={"tokens": (None, 20), "mask": (None, 20)},
        effort="fast",
    )
    assert report.permuted > 0


def test_a_model_whose_channels_depend_on_the_size_is_not_guessed_at():
    """A table for each length: at some lengths it tells the channels apart, at others it does not."""
    tokens = layers.Input((None,), dtype="int32", name="tokens")
    y = layers.Dense(16)(layers.Embedding(50, 16)(tokens))

    def scaled(y):
        return y * tf.constant(np.linspace(1, 2, 16) if y.shape[1] == 24 else np.ones(16), tf.float32)

    y = layers.Lambda(scaled)(y)
    model = tf_keras.Model(tokens, layers.Dense(8)(y), name="odd")
    found = [plan_model(model, policy=EveryKernel(), input_shapes=(None, n)).plan.groups for n in (16, 24)]
    assert [len(groups) for groups in found] == [2, 1]
    # Sizes at which it does not matter serve: 64 and 96.
    assert len(plan_model(model, policy=EveryKernel()).plan.groups) == 2
