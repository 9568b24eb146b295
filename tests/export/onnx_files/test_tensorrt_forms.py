"""What TensorRT's parser refuses in tf2onnx's files is written in another form, and computes the same."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tf_keras import layers

import tfmot_asp

onnx = pytest.importorskip("onnx")
pytest.importorskip("tf2onnx")
pytest.importorskip("onnxruntime")

from onnx import helper  # noqa: E402

from tfmot_asp.export.onnx_files.run import run, session  # noqa: E402


def written(build, shape, path):
    """The nodes of the file of a model, whose outputs are those of the model on new inputs."""
    tf_keras.utils.set_random_seed(0)
    x = layers.Input(shape, name="x")
    model = tf_keras.Model(x, build(x))
    tfmot_asp.export.onnx(model, path, precision="fp32")
    value = np.random.default_rng(5).standard_normal((2, *(size or 9 for size in shape))).astype(np.float32)
    (got,) = run(session(path), {"x": value}).values()
    np.testing.assert_allclose(got, model(value), rtol=0, atol=1e-5 * float(tf.reduce_max(tf.abs(model(value)))))
    return onnx.load(str(path)).graph.node


def resized(height, width):
    return lambda x: tf.image.resize(x, (height, width), method="nearest")


RESIZES = {
    "twice": (layers.UpSampling2D(2), "asymmetric"),
    "each axis by its own factor": (layers.UpSampling2D((2, 3)), "asymmetric"),
    "by no whole factor": (layers.Lambda(resized(6, 10)), "half_pixel"),
    "smaller": (layers.Lambda(resized(3, 2)), "half_pixel"),
}


@pytest.mark.parametrize("kind", RESIZES)
def test_nearest_neighbours(kind, tmp_path):
    layer, form = RESIZES[kind]
    nodes = written(layer, (4, 4, 8), tmp_path / "m.onnx")
    (resize,) = (node for node in nodes if node.op_type == "Resize")
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in resize.attribute}
    assert given["coordinate_transformation_mode"] == form.encode()
    assert given["nearest_mode"] == {"asymmetric": b"floor", "half_pixel": b"round_prefer_ceil"}[form]


def test_nearest_neighbours_of_images_of_any_size(tmp_path):
    nodes = written(layers.UpSampling2D(2), (None, None, 8), tmp_path / "m.onnx")
    (resize,) = (node for node in nodes if node.op_type == "Resize")
    assert b"tf_half_pixel_for_nn" not in [helper.get_attribute_value(attribute) for attribute in resize.attribute]


LOOPS = {
    "SimpleRNN": (layers.SimpleRNN(8), (6, 16)),
    "of open length": (layers.SimpleRNN(8, return_sequences=True), (None, 16)),
    "GRU": (layers.GRU(8, reset_after=False), (6, 16)),
    "masked": (lambda x: layers.LSTM(8)(layers.Masking()(x)), (6, 16)),
    "backwards": (layers.Bidirectional(layers.SimpleRNN(8)), (6, 16)),
    "ConvLSTM2D": (layers.ConvLSTM2D(4, 3), (3, 6, 6, 4)),
}


@pytest.mark.parametrize("kind", LOOPS)
def test_loops_have_a_trip_count(kind, tmp_path):
    build, shape = LOOPS[kind]
    loops = [node for node in written(build, shape, tmp_path / "m.onnx") if node.op_type == "Loop"]
    assert loops
    assert all(loop.input[0] for loop in loops)


def test_a_loop_of_a_number_that_only_its_condition_has(tmp_path):
    def halved(x):
        return tf.while_loop(lambda i, _: i < 3, lambda i, y: (i + 1, y / 2), (0, x))[1]

    (loop,) = (node for node in written(layers.Lambda(halved), (16,), tmp_path / "m.onnx") if node.op_type == "Loop")
    stored = {tensor.name: tensor for tensor in onnx.load(str(tmp_path / "m.onnx")).graph.initializer}
    assert onnx.numpy_helper.to_array(stored[loop.input[0]]) == 3


def until_small(x):
    return tf.while_loop(lambda y: tf.reduce_max(tf.abs(y)) > 0.5, lambda y: (y / 2,), (x,))[0]


def by_a_real_counter(x):
    return tf.while_loop(lambda i, _: i < 2.5, lambda i, y: (i + 1, y / 2), (0.0, x))[1]


@pytest.mark.parametrize("halved", [until_small, by_a_real_counter])
def test_a_loop_without_a_whole_bound_stays_as_it_is(halved, tmp_path):
    (loop,) = (node for node in written(layers.Lambda(halved), (16,), tmp_path / "m.onnx") if node.op_type == "Loop")
    assert not loop.input[0]
