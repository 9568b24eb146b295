"""Errors of TensorFlow and Keras on one line, with their cause."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tfmot_asp.loading.one_line import first_line


def message_of(call):
    with pytest.raises(Exception) as raised:  # noqa: PT011 (of many classes)
        call()
    found = first_line(raised.value)
    assert "\n" not in found
    assert "\x1b" not in found
    return found


def reshaping(package):
    class Inner(package.layers.Layer):
        def call(self, inputs):
            return tf.reshape(inputs, [7, 7])

    class Outer(package.layers.Layer):
        def __init__(self):
            super().__init__()
            self.inner = Inner(name="inner")

        def call(self, inputs):
            return self.inner(inputs)

    return Outer()


CAUSE = "Input to reshape is a tensor with 10 values, but the requested shape has 49"


@pytest.mark.parametrize("package", [tf_keras, keras], ids=["tf_keras", "keras"])
def test_layers_around_the_cause_are_left_out(package):
    said = message_of(lambda: reshaping(package)(np.ones((2, 5), np.float32)))
    assert said.endswith(CAUSE)
    assert len(said) < len(CAUSE) + 40


@pytest.mark.parametrize("package", [tf_keras, keras], ids=["tf_keras", "keras"])
def test_where_a_graph_was_traced_is_left_out(package):
    model = package.Sequential([package.layers.Input((None,)), package.layers.Embedding(5, 3)])
    assert message_of(lambda: model.predict(np.array([[77]]), verbose=0)) == "indices[0,0] = 77 is not in [0, 5)"
    dense = package.Sequential([package.layers.Input((4,)), package.layers.Dense(3)])
    assert "4" in message_of(lambda: dense.predict(np.ones((2, 5)), verbose=0))


def test_configs_are_left_out():
    broken = {"module": "keras.layers", "class_name": "Dense", "config": {"units": "x"}, "registered_name": None}
    said = message_of(lambda: keras.layers.deserialize(broken))
    assert said.startswith("Error when deserializing class 'Dense': Received an invalid value for `units`, expected a")


def test_functions_of_tensorflow():
    @tf.function
    def reshape(x):
        return tf.reshape(x, [7] + tf.cast(tf.reduce_sum(x) * 0, tf.int32))

    assert message_of(lambda: reshape(tf.ones([2, 3]))) == (
        "Input to reshape is a tensor with 6 values, but the requested shape has 7"
    )
    assert message_of(lambda: tf.matmul(tf.ones([2, 3]), tf.ones([2, 3]))) == (
        "Matrix size-incompatible: In[0]: [2,3], In[1]: [2,3]"
    )


def test_lines_of_any_other_error_are_joined():
    assert first_line(ValueError("one\n  two\n\nthree")) == "one two three"
    assert first_line(ValueError("")) == "ValueError"
    assert first_line(ValueError("a" * 200 + "b" * 200), 30) == "a" * 10 + " ... " + "b" * 20
