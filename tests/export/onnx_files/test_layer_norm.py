"""Whatever computes a layer norm is written as one op, and nothing else is."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfmot_asp

onnx = pytest.importorskip("onnx")
pytest.importorskip("tf2onnx")
pytest.importorskip("onnxruntime")

from tfmot_asp.export.onnx_files.run import run, session  # noqa: E402


def moments(x, axes=(-1,)):
    mean = tf.reduce_mean(x, axes, keepdims=True)
    return mean, tf.reduce_mean(x * x, axes, keepdims=True) - mean * mean


def by_squares(x):
    mean, variance = moments(x)
    return (x - mean) / tf.sqrt(variance + 1e-5) * np.linspace(-1, 2, x.shape[-1], dtype=np.float32)


def by_sums(x):
    size = float(x.shape[-1])
    centered = x - tf.reduce_sum(x, -1, keepdims=True) / size
    variance = tf.reduce_sum(tf.square(centered), -1, keepdims=True) / size
    return 0.5 + 3.0 * centered * tf.pow(variance + 1e-4, -0.5)


def read_twice(x):
    """The normalized values are read before their scale as well."""
    mean, variance = moments(x)
    normalized = (x - mean) * tf.math.rsqrt(tf.maximum(variance, 0) + 1e-3)
    return tf.concat([normalized * 2.0, tf.nn.relu(normalized)], -1)


def without_mean(x):
    return x * tf.math.rsqrt(tf.reduce_mean(x * x, -1, keepdims=True) + 1e-6)


def epsilon_beside_the_root(x):
    mean, variance = moments(x)
    return (x - mean) / (tf.sqrt(tf.maximum(variance, 1e-12)) + 0.1)


def over_rows(x):
    mean, variance = moments(x, (1,))
    return (x - mean) * tf.math.rsqrt(variance + 1e-3)


def centered_only(x):
    return (x - tf.reduce_mean(x, -1, keepdims=True)) * 2.0


def scaled_by_row(x):
    mean, variance = moments(x)
    return (x - mean) * tf.math.rsqrt(variance + 1e-3) * np.arange(1.0, x.shape[1] + 1, dtype=np.float32)[:, None]


def exported(keras, shapes, build, path, tolerance=2e-4):
    """Types of the nodes in the file of a model, which is compared with it on inputs of several spreads."""
    keras.utils.set_random_seed(0)
    inputs = [keras.layers.Input(shape, name=f"x{i}") for i, shape in enumerate(shapes)]
    model = keras.Model(inputs, build(inputs))
    for weight in model.weights:
        weight.assign(np.random.default_rng(3).normal(1, 0.5, weight.shape))
    tfmot_asp.export.onnx(model, path, precision="fp32")
    generator = np.random.default_rng(5)
    for spread in (0.02, 40.0):
        values = [
            (spread * generator.standard_normal((2, *(size or 5 for size in shape))) + spread).astype(np.float32)
            for shape in shapes
        ]
        got = run(session(path), {f"x{i}": value for i, value in enumerate(values)})
        for (name, mine), theirs in zip(got.items(), model(values), strict=True):
            wanted = np.asarray(theirs, np.float32)
            np.testing.assert_allclose(mine, wanted, rtol=0, atol=tolerance * np.abs(wanted).max(), err_msg=name)
    return [node.op_type for node in onnx.load(str(path)).graph.node]


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
@pytest.mark.parametrize("which", ["tf_keras", "keras"])
def test_layers_of_any_axes_and_epsilon(which, policy, tmp_path):
    keras = tf_keras if which == "tf_keras" else pytest.importorskip("keras", minversion="3")
    kinds = {
        (16, 24): [{}, {"epsilon": 1e-12}, {"scale": False, "epsilon": 1e-6}, {"axis": [1, 2]}],
        (None, 8): [{"epsilon": 1e-7}, {"center": False}],
        (4, 3, 8): [{"axis": [2, 3], "epsilon": 1e-5}, {"axis": (1, 2, 3)}, {"center": False, "scale": False}],
        (32,): [{"epsilon": 1e-6}, {}],
    }

    def build(inputs):
        given = [(x, options) for x, kind in zip(inputs, kinds.values(), strict=True) for options in kind]
        return [keras.layers.LayerNormalization(**options, dtype=policy)(x) for x, options in given]

    ops = exported(keras, list(kinds), build, tmp_path / "m.onnx", 2e-2 if policy == "mixed_float16" else 2e-4)
    assert ops.count("LayerNormalization") == sum(map(len, kinds.values()))
    assert not {"ReduceMean", "BatchNormalization", "Sqrt", "GlobalAveragePool"} & set(ops)


NORMS = [by_squares, by_sums, read_twice]
OTHERS = [without_mean, epsilon_beside_the_root, over_rows, centered_only, scaled_by_row]


def test_norms_of_ones_own(tmp_path):
    def build(inputs):
        return [tf_keras.layers.Lambda(norm)(inputs[0]) for norm in NORMS]

    ops = exported(tf_keras, [(6, 12)], build, tmp_path / "m.onnx")
    assert ops.count("LayerNormalization") == len(NORMS)


def test_what_is_no_layer_norm(tmp_path):
    def build(inputs):
        return [tf_keras.layers.Lambda(norm)(inputs[0]) for norm in OTHERS]

    assert "LayerNormalization" not in exported(tf_keras, [(6, 12)], build, tmp_path / "m.onnx")


def test_an_opset_without_the_op(tmp_path):
    x = tf_keras.layers.Input((6, 12))
    model = tf_keras.Model(x, tf_keras.layers.LayerNormalization()(x))
    tfmot_asp.export.onnx(model, tmp_path / "m.onnx", opset=16)
    assert "LayerNormalization" not in [node.op_type for node in onnx.load(str(tmp_path / "m.onnx")).graph.node]
