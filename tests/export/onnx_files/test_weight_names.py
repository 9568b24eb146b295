"""Weights of ONNX files are called as in the model, whatever tf2onnx did to them: checked by name and by value."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfmot_asp

onnx = pytest.importorskip("onnx")
pytest.importorskip("tf2onnx")

from onnx import helper, numpy_helper  # noqa: E402

from tfmot_asp.export.onnx_files.weight_names import restore_names  # noqa: E402


def kinds(keras):
    """Layers of every kind that tf2onnx reshapes, transposes or folds a batch norm into."""
    layers = keras.layers
    x = y = layers.Input((8, 8, 8), name="image")
    for layer in (
        layers.Conv2D(16, 3, name="conv", use_bias=False),
        layers.DepthwiseConv2D(3, padding="same", name="depthwise"),
        layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, name="multiplied"),
        layers.SeparableConv2D(16, 3, padding="same", name="separable"),
        layers.Conv2D(16, 3, padding="same", groups=4, name="grouped"),
        layers.Conv2DTranspose(16, 3, strides=2, name="transposed"),
        layers.Conv2D(16, 3, dilation_rate=2, padding="same", name="dilated"),
        layers.Reshape((-1, 16)),
        layers.DepthwiseConv1D(3, name="depthwise1d"),
        layers.GlobalAveragePooling1D(),
        layers.Dense(32, name="dense"),
    ):
        y = layer(y)
        if layer.weights:
            y = layers.ReLU()(layers.BatchNormalization()(y))
    model = keras.Model(x, layers.Dense(8, name="head")(y))
    generator = np.random.default_rng(0)
    for weight in model.weights:
        if len(weight.shape) == 1:
            weight.assign(generator.uniform(0.5, 1.5, weight.shape).astype(np.float32))
    return model


KERNELS = [
    "conv/kernel",
    "depthwise/depthwise_kernel",
    "multiplied/depthwise_kernel",
    "separable/depthwise_kernel",
    "separable/pointwise_kernel",
    "grouped/kernel",
    "transposed/kernel",
    "dilated/kernel",
    "depthwise1d/depthwise_kernel",
    "dense/kernel",
    "head/kernel",
]


@pytest.mark.parametrize(("which", "fold"), [("tf_keras", True), ("keras", False)])
def test_folded_kernels_have_the_names_of_the_model(which, fold, tmp_path):
    keras = tf_keras if which == "tf_keras" else pytest.importorskip("keras", minversion="3")
    model = kinds(keras)
    report = tfmot_asp.export.onnx(model, tmp_path / "m.onnx", fold_batch_norm=fold, precision="fp32")
    assert sorted(layer.name for layer in report.layers) == sorted(own_name(model, name) for name in KERNELS)


def own_name(model, name):
    """The two Kerases call kernels of depthwise layers differently."""
    layer, kernel = name.split("/")
    owned = [getattr(weight, "path", weight.name).partition(":")[0] for weight in model.get_layer(layer).weights]
    return name if name in owned else f"{layer}/{kernel.removeprefix('depthwise_')}"


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_names_are_kept_in_every_precision(precision, tmp_path):
    layers = tf_keras.layers
    x = layers.Input((8, 8, 8), name="image")
    y = layers.ReLU()(layers.BatchNormalization()(layers.DepthwiseConv2D(3, name="depthwise")(x)))
    model = tf_keras.Model(x, layers.Dense(8, name="head")(layers.Flatten()(y)))
    data = np.random.default_rng(0).normal(size=(4, 8, 8, 8)).astype(np.float32)
    report = tfmot_asp.export.onnx(model, tmp_path / "m.onnx", precision=precision, calibration_data=data)
    assert [layer.name for layer in report.layers] == ["depthwise/depthwise_kernel", "head/kernel"]


def renamed(values, *variables, extra=()):
    """What a stored tensor is called in the end, among these variables."""
    tensors = [numpy_helper.from_array(values.copy(), "const_fold_opt__1"), *extra]
    node = helper.make_node("MatMul", ["x", "const_fold_opt__1"], ["y"])
    model = helper.make_model(helper.make_graph([node], "g", [], [], tensors))
    nothing = tf.function(lambda x: x + 1).get_concrete_function(tf.TensorSpec((2,)))
    restore_names(model, nothing, variables)
    assert model.graph.node[0].input[1] == model.graph.initializer[0].name
    return model.graph.initializer[0].name


VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_what_cannot_be_told_keeps_its_name():
    one, alike = tf.Variable(VALUES, name="one"), tf.Variable(VALUES, name="alike")
    other = tf.Variable(VALUES + 1, name="other")
    assert renamed(VALUES.T, one, other) == "one"
    assert renamed(VALUES.T, one, alike) == renamed(VALUES.T, other) == renamed(VALUES.T) == "const_fold_opt__1"
    assert renamed(VALUES.T, one, extra=[numpy_helper.from_array(VALUES[0], "one")]) == "const_fold_opt__1"


def test_kernels_of_two_directions_in_one_tensor_are_both_named():
    forward, backward = tf.Variable(VALUES, name="forward/kernel"), tf.Variable(VALUES + 1, name="backward/kernel")
    both = np.stack([VALUES.T, VALUES.T + 1])
    assert renamed(both, forward, backward) == "forward/kernel + backward/kernel"
    assert renamed(both, forward) == "const_fold_opt__1"
