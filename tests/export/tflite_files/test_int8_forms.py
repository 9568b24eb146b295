"""The forms that int8 can hold compute the same, and int8 files of masked attention keep their outputs."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfmot_asp
from tfmot_asp.export.lowering.inference import serving_function
from tfmot_asp.export.tflite_files import file_checks
from tfmot_asp.export.tflite_files.int8_forms import suit_int8
from tfmot_asp.graph.compare import spread
from tfmot_asp.graph.flatten import trace_function

pytestmark = pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")


def samples(shape, count=16):
    generator = np.random.default_rng(0)
    return [{"x": generator.standard_normal(shape).astype("f")} for _ in range(count)]


def constants(function):
    values = [tensor.value for op in trace_function(function).ops for tensor in op.inputs]
    return [value for value in values if value is not None and value.dtype == np.float32]


SEEN = np.tri(6, dtype=bool)
MASKS = {
    "taken": lambda s: tf.where(SEEN, s, -1e9),
    "taken the other way": lambda s: tf.where(~SEEN, tf.constant(-np.inf), s),
    "added": lambda s: s + tf.constant(np.where(SEEN, 0, -1e9), tf.float32),
    "made and added": lambda s: s + (1.0 - tf.cast(tf.reduce_mean(s) < 99 * SEEN, tf.float32)) * -1e9,
    "behind a reshape": lambda s: tf.reshape(tf.where(SEEN, s, -3e38), (1, 6, 6)),
}


@pytest.mark.parametrize("kind", MASKS)
def test_masks_are_no_further_from_scores_than_they_must_be(kind):
    @tf.function(input_signature=[tf.TensorSpec((6, 6), tf.float32, "x")])
    def serve(x):
        return {"y": tf.nn.softmax(MASKS[kind](3 * x))}

    given = samples((6, 6))
    function = serve.get_concrete_function()
    suited = suit_int8(function, "masked", given)
    assert min(value.min() for value in constants(function)) < -1e8
    assert min(value.min() for value in constants(suited)) > -100
    for sample in given:
        expected = function(tf.constant(sample["x"]))["y"]
        np.testing.assert_allclose(suited(x=tf.constant(sample["x"]))["y"], expected, atol=1e-4)


@pytest.mark.parametrize("divide", [lambda x, root: x / root, lambda x, root: x * tf.math.reciprocal(root)])
def test_root_mean_squares_are_not_divided_by(divide, tmp_path):
    @tf.function(input_signature=[tf.TensorSpec((4, 8), tf.float32, "x")])
    def serve(x):
        return {"y": divide(x, tf.sqrt(tf.reduce_mean(tf.square(x), -1, keepdims=True) + 1e-6))}

    function = serve.get_concrete_function()
    suited = suit_int8(function, "norm", samples((4, 8)))
    assert not {"RealDiv", "Reciprocal", "Sqrt"} & {op.type for op in trace_function(suited).ops}
    for sample in samples((4, 8)):
        np.testing.assert_allclose(suited(x=tf.constant(sample["x"]))["y"], serve(sample["x"])["y"], rtol=1e-5)


def test_nothing_is_changed_without_need():
    function = serving_function(tf_keras.Sequential([tf_keras.layers.Dense(4), tf_keras.layers.Softmax()]), 1, (1, 8))
    assert suit_int8(function, "plain", []) is function


@pytest.mark.parametrize("which", ["tf_keras", "keras"])
def test_causal_attention_in_int8(which, tmp_path):
    keras = tf_keras if which == "tf_keras" else pytest.importorskip("keras", minversion="3")
    keras.utils.set_random_seed(0)
    x = keras.layers.Input((6, 16), name="x")
    wide = keras.initializers.RandomNormal(stddev=0.5)
    model = keras.Model(x, keras.layers.MultiHeadAttention(2, 8, kernel_initializer=wide)(x, x, use_causal_mask=True))
    given = samples((1, 6, 16))
    data = np.concatenate([sample["x"] for sample in given])
    tfmot_asp.export.tflite(model, tmp_path / "m.tflite", precision="int8", calibration_data=data)
    found, _ = file_checks._run(tmp_path / "m.tflite", given, delegate=False)
    expected = np.asarray(model(data))
    got = np.concatenate([next(iter(outputs.values())) for outputs in found])
    assert np.sqrt(np.mean((got - expected) ** 2)) < 0.1 * spread(expected)  # 67 % with -1e9 among the scores
