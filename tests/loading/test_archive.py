"""`.keras` archives are unpacked once, and give what Keras' own loader gives."""

import os
import tempfile
import zipfile

import numpy as np
import tensorflow as tf
import tf_keras
from tf_keras import layers

from tfmot_asp.loading import load_model
from tfmot_asp.loading.one_line import first_line


def shared_and_words():
    """A layer and a model that are called twice, and a vocabulary, which is an asset beside the weights."""
    shared = layers.Dense(4, name="shared")
    inner = tf_keras.Sequential([layers.Input((4,)), layers.Dense(4)], name="inner")
    words = tf_keras.Input((1,), dtype="string", name="words")
    lookup = layers.StringLookup(name="lookup")
    lookup.adapt(["red", "green", "blue", "blue"])
    x = layers.Flatten()(layers.Embedding(6, 4)(lookup(words)))
    return tf_keras.Model(words, layers.Dense(2)(inner(shared(inner(shared(x))))))


def test_shared_layers_and_assets_load_as_with_keras_itself(tmp_path):
    model = shared_and_words()
    path = tmp_path / "m.keras"
    model.save(path)
    loaded, expected = load_model(path), tf_keras.models.load_model(path)
    np.testing.assert_array_equal(loaded(tf.constant([["red"]])), expected(tf.constant([["red"]])))
    words = tf.constant([["blue"], ["red"], ["none"]])
    np.testing.assert_array_equal(loaded(words), model(words))
    assert loaded.get_layer("lookup").get_vocabulary() == model.get_layer("lookup").get_vocabulary()


def test_the_weights_are_read_from_their_start_to_their_end_and_never_back(tmp_path, monkeypatch):
    model = tf_keras.Sequential([layers.Input((16,)), *(layers.Dense(16) for _ in range(5))])
    model.compile(tf_keras.optimizers.SGD(0.1, momentum=0.9))
    model.optimizer.build(model.trainable_variables)
    path = tmp_path / "m.keras"
    model.save(path)

    def seek(*_):
        raise AssertionError("a seek in a member of an archive may read it from the start again")

    monkeypatch.setattr(zipfile.ZipExtFile, "seek", seek)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    loaded = load_model(path)
    assert os.listdir(tmp_path) == ["m.keras"]
    for expected, got in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(expected, got)


def test_a_long_error_keeps_its_beginning_and_its_cause():
    config = ", ".join(f"'units{i}': {i}" for i in range(200))
    said = first_line(
        ValueError(f"Layer could not be deserialized. config={{{config}}}\n\nException encountered: no mask")
    )
    assert said.startswith("Layer could not be deserialized: ")
    assert said == "Layer could not be deserialized: no mask"
    assert len(said) <= 305
    assert first_line(ValueError("a\nb")) == "a b"
    assert first_line(KeyError()) == "KeyError"
