"""Which values a weight may hold, and what is said of models that are not built."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfmot_asp
from tfmot_asp.keras_models.checks import check_built, check_finite
from tfmot_asp.keras_models.kernels import kernels_by_name, layers_with_kernels

keras3 = pytest.importorskip("keras", minversion="3")
KERAS = {"tf_keras": tf_keras, "keras": keras3}


@pytest.fixture(params=KERAS)
def keras(request):
    return KERAS[request.param]


def attention(keras):
    """Causal: a buffer that is no kernel holds -inf above its diagonal."""

    class Masked(keras.layers.Layer):
        def build(self, shape):
            self.limits = self.add_weight(name="limits", shape=(8,), trainable=True, initializer="ones")
            self.mask = self.add_weight(name="mask", shape=(8, 8), trainable=False, initializer="zeros")
            self.mask.assign(np.triu(np.full((8, 8), -np.inf), 1))

        def call(self, x):
            return tf.nn.softmax(tf.matmul(x, x, transpose_b=True) + self.mask) @ x

    layers = [keras.layers.Dense(64, name="body"), Masked(), keras.layers.Dense(32), keras.layers.Dense(16)]
    return keras.Sequential([keras.Input((8, 32)), *layers])


def test_a_causal_mask_of_minus_infinity_is_in_nobodys_way(keras, tmp_path):
    model = attention(keras)
    x = np.random.default_rng(0).normal(size=(4, 8, 32)).astype("f")
    before = np.asarray(model(x))
    assert tfmot_asp.permute(model, effort="fast").permuted == 2
    assert np.abs(np.asarray(model(x)) - before).max() < 1e-5
    tfmot_asp.prune_trained_model(model, permute=False).remove()
    assert tfmot_asp.export.saved_model(model, tmp_path / "m").ok


BAD = {
    "a kernel": ("body", lambda model: model.layers[0].kernel, np.inf),
    "a bias": ("bias", lambda model: model.layers[0].bias, np.nan),
    "a buffer": ("mask", lambda model: model.layers[1].mask, np.nan),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_number_is_named(keras, case):
    name, of, value = BAD[case]
    model = attention(keras)
    kernels = {name: kernel.variable for name, kernel in kernels_by_name(layers_with_kernels(model)).items()}
    check_finite(kernels, model.weights)
    model.layers[1].limits.assign(np.full(8, np.inf))
    check_finite(kernels, model.weights)
    values = np.array(of(model))
    values.flat[3] = value
    of(model).assign(values)
    with pytest.raises(
        ValueError, match=rf"the weights of '.*{name}.*' hold 1 NaN or infinite values out of {values.size}"
    ):
        check_finite(kernels, model.weights)


def test_a_trained_matrix_is_finite_or_refused(keras):
    variable = tf.Variable([[1.0, -np.inf]], name="recurrent")
    with pytest.raises(ValueError, match="'recurrent:0' hold 1 NaN"):
        check_finite({}, [variable])
    check_finite({}, [tf.Variable([[1.0, -np.inf]], trainable=False), tf.Variable([[1]])])


def test_what_is_not_built_is_told_what_to_do(keras):
    check_built(tf.Module(), "wait")
    with pytest.raises(ValueError, match=r"'late' is not built.*call it on a batch, or.*, then sing"):
        check_built(keras.layers.Dense(3, name="late"), "sing")
