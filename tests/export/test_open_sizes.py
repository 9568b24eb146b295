"""What is written at sizes of our choosing computes the same at all others."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tf_keras import layers

import tfmot_asp

MULTIPLE = 32


class PadByRemainder(layers.Layer):
    """As many encoders do: the length becomes a multiple of their window's."""

    def call(self, x):
        return tf.pad(x, [[0, 0], [0, -tf.shape(x)[1] % MULTIPLE], [0, 0]])


class PadByQuotient(layers.Layer):
    def call(self, x):
        length = tf.shape(x)[1]
        return tf.pad(x, [[0, 0], [0, -(-length // MULTIPLE) * MULTIPLE - length], [0, 0]])


class Offset(layers.Layer):
    """As causal attention over a longer memory does: zero wherever both lengths are equal."""

    def call(self, query, memory):
        shift = tf.cast(tf.shape(memory)[1] - tf.shape(query)[1], tf.float32)
        return query + shift * tf.reduce_mean(memory, 1, keepdims=True)


class Swap(layers.Layer):
    """Height and width change places, and are counted."""

    def call(self, x):
        height, width = tf.shape(x)[1], tf.shape(x)[2]
        return tf.reshape(x, (-1, width, height, 4)) + tf.cast(height, tf.float32)


class Shape(layers.Layer):
    """Which side is longer, and how often the other fits into it."""

    def call(self, x):
        height, width = tf.shape(x)[1], tf.shape(x)[2]
        longer = tf.where(height > width, 1.0, -1.0)
        return x * longer + tf.cast(width // height, tf.float32)


class Turn(layers.Layer):
    """Upright images are turned, by a branch."""

    def call(self, x):
        return tf.cond(tf.shape(x)[1] > tf.shape(x)[2], lambda: tf.reduce_max(x, 1), lambda: tf.reduce_min(x, 2))


def padded(layer):
    x = layers.Input((None, 16), name="x")
    return tf_keras.Model(x, layers.Dense(16)(layer(layers.Dense(16)(x))))


def offset():
    query, memory = layers.Input((None, 16), name="query"), layers.Input((None, 16), name="memory")
    return tf_keras.Model([query, memory], layers.Dense(16)(Offset()(layers.Dense(16)(query), memory)))


def image(layer):
    x = layers.Input((None, None, 4), name="x")
    return tf_keras.Model(x, layers.Dense(8)(layer(x)))


LENGTHS = [{"x": (2, length, 16)} for length in (1, 31, 32, 40, 64, 131, 172)]
IMAGES = [{"x": (2, *sides, 4)} for sides in ((8, 8), (8, 12), (12, 8), (8, 24), (24, 8))]
CASES = {
    "remainder": (lambda: padded(PadByRemainder()), LENGTHS),
    "quotient": (lambda: padded(PadByQuotient()), LENGTHS),
    "offset": (offset, [{"query": (2, q, 16), "memory": (2, m, 16)} for q, m in ((8, 8), (8, 24), (24, 8))]),
    "swapped": (lambda: image(Swap()), IMAGES),
    "shape": (lambda: image(Shape()), IMAGES),
    "turned": (lambda: image(Turn()), IMAGES),
}


def saved_model(model, path):
    tfmot_asp.export.saved_model(model, path)
    function = tf.saved_model.load(str(path)).signatures["serving_default"]
    return lambda inputs: next(iter(function(**{name: tf.constant(x) for name, x in inputs.items()}).values())).numpy()


def onnx(model, path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("tf2onnx")
    tfmot_asp.export.onnx(model, path.with_suffix(".onnx"), precision="fp32")
    session = runtime.InferenceSession(str(path.with_suffix(".onnx")))
    return lambda inputs: session.run(None, inputs)[0]


def tflite(model, path):
    tfmot_asp.export.tflite(model, path.with_suffix(".tflite"))

    def run(inputs):  # a branch makes TFLite write beyond its tensors, once an interpreter is resized
        runner = tf.lite.Interpreter(str(path.with_suffix(".tflite"))).get_signature_runner()
        return next(iter(runner(**inputs).values()))

    return run


@pytest.mark.parametrize("write", [saved_model, onnx, tflite], ids=lambda write: write.__name__)
@pytest.mark.parametrize("case", CASES)
def test_other_sizes_than_those_looked_at(case, write, tmp_path):
    make, sizes = CASES[case]
    model = make()
    run, generator = write(model, tmp_path / "m"), np.random.default_rng(0)
    for shapes in sizes:
        inputs = {name: generator.normal(size=shape).astype("f") for name, shape in shapes.items()}
        expected = model(inputs if len(inputs) > 1 else next(iter(inputs.values()))).numpy()
        np.testing.assert_allclose(run(inputs), expected, atol=1e-3, err_msg=str(shapes))


def test_a_model_for_large_inputs_only_says_what_to_pass(tmp_path):
    """Its convolutions leave nothing of an image below 1,023 pixels, and then it averages over nothing."""
    pytest.importorskip("tf2onnx")
    x = image = layers.Input((None, None, 3))
    for _ in range(9):
        x = layers.Conv2D(8, 3, strides=2)(x)
    model = tf_keras.Model(image, layers.GlobalAveragePooling2D()(x))
    with pytest.raises(RuntimeError, match="pass input_shapes with typical sizes"):
        tfmot_asp.export.onnx(model, tmp_path / "m.onnx", precision="fp32")
    assert not list(tmp_path.iterdir())
    tfmot_asp.export.onnx(model, tmp_path / "m.onnx", precision="fp32", input_shapes=(None, 1024, 1024, 3))
