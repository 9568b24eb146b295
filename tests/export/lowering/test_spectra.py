"""Fourier transforms in real numbers: TensorFlow's own ops are the oracle; files with spectrograms are read back."""

import keras
import numpy as np
import onnx
import pytest
import tensorflow as tf
import tf_keras
from hypothesis import given, settings
from hypothesis import strategies as st

import tfmot_asp
from tfmot_asp.export.lowering.frozen import freeze
from tfmot_asp.export.lowering.lower import lower


def lowered(function, *specs):
    """Whether the dtypes are real, and the function that a function of tensors becomes."""

    @tf.function(input_signature=[tf.TensorSpec(s.shape, s.dtype, f"x{i}") for i, s in enumerate(specs)])
    def serve(*tensors):
        return {"y": function(*tensors)}

    frozen = lower(freeze(serve.get_concrete_function(), "f"), fold_batch_norm=False, names={}, real_numbers=True)
    made = frozen.function(["y"])
    is_complex = [t.dtype.is_complex for op in made.graph.get_operations() for t in op.outputs]
    return not any(is_complex), made


def same(function, *arrays, opened=True):
    """Checks that the lowered function is real, and gives what the function gives, with an open first axis."""
    specs = [tf.TensorSpec([None, *a.shape[1:]] if opened else a.shape, a.dtype) for a in arrays]
    real, made = lowered(function, *specs)
    assert real
    expected = function(*map(tf.constant, arrays)).numpy()
    got = made(**{f"x{i}": tf.constant(a) for i, a in enumerate(arrays)})["y"].numpy()
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, atol=2e-5 * max(1.0, np.abs(expected).max()))


def values(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


PARTS = st.sampled_from([tf.math.real, tf.math.imag, tf.abs])


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 9), st.integers(1, 12), PARTS, st.integers(0, 99))
def test_a_real_transform_of_any_length(size, length, part, seed):
    same(lambda x: part(tf.signal.rfft(x, [length])), values(3, size, seed=seed))
    same(lambda x: tf.signal.irfft(tf.complex(x, 2 * x + 1), [length]), values(2, size, seed=seed))


@settings(max_examples=5, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=3), PARTS, st.booleans(), st.integers(0, 99))
def test_transforms_along_several_axes(sizes, part, inverse, seed):
    forward = (tf.signal.fft, tf.signal.fft2d, tf.signal.fft3d)[len(sizes) - 1]
    back = (tf.signal.ifft, tf.signal.ifft2d, tf.signal.ifft3d)[len(sizes) - 1]
    x, y = values(2, *sizes, seed=seed), values(2, *sizes, seed=seed + 1)
    same(lambda a, b: part((back if inverse else forward)(tf.complex(a, b))), x, y)
    same(lambda a: part(forward(tf.cast(a, tf.complex64))), x)


def test_transforms_of_real_images_and_back():
    x = values(2, 6, 5)
    same(lambda a: tf.abs(tf.signal.rfft2d(a, [6, 8])), x)
    same(lambda a: tf.abs(tf.signal.rfft2d(a, [4, 5])), x)
    same(lambda a: tf.signal.irfft2d(tf.signal.rfft2d(a), [6, 5]), x)
    same(lambda a: tf.signal.irfft2d(tf.signal.rfft2d(a, [6, 8]), [6, 7]), x)


def test_what_is_done_between_transforms():
    x, mask = values(2, 16), values(9)

    def filtered(a):
        spectrum = tf.signal.rfft(a)
        spectrum = tf.concat([spectrum[:, :4] * tf.cast(mask[:4], tf.complex64), -spectrum[:, 4:]], axis=1)
        spectrum += tf.math.conj(tf.reshape(tf.transpose(tf.expand_dims(spectrum, 0), [1, 0, 2]), [-1, 9]))
        spectrum = tf.stack([spectrum, spectrum * tf.complex(0.5, -2.0)])[1] - tf.reduce_mean(spectrum, 0)
        return tf.signal.irfft(tf.gather(spectrum, [0, 2, 1, 3, 4, 5, 6, 7, 8], axis=1))

    same(filtered, x, opened=False)
    same(lambda a, b: tf.math.real(tf.signal.ifft(tf.complex(a, b)) / tf.complex(b + 3.0, a)), x, values(2, 16, seed=1))


def test_a_rotary_embedding_in_complex_numbers():
    turns = np.exp(1j * np.outer(np.arange(5), 10.0 ** -np.arange(4))).astype(np.complex64)

    def rotated(x):
        pairs = tf.reshape(x, [-1, 5, 4, 2])
        turned = tf.complex(pairs[..., 0], pairs[..., 1]) * turns
        return tf.reshape(tf.stack([tf.math.real(turned), tf.math.imag(turned)], axis=-1), [-1, 5, 8])

    same(rotated, values(3, 5, 8))


def test_magnitudes_that_half_precision_holds():
    _, made = lowered(lambda x: tf.abs(tf.signal.rfft(x)), tf.TensorSpec((1, 8)))
    squares = [t for op in made.graph.get_operations() if op.type in ("Mul", "Square") for t in op.outputs]
    x = np.full((1, 8), 1e30, np.float32)  # whose square float32 does not hold
    assert squares
    np.testing.assert_allclose(made(x0=tf.constant(x))["y"], [[8e30, 0, 0, 0, 0]], atol=1e25)


def test_what_is_not_known_stays():
    x = values(2, 8)
    real, made = lowered(lambda a: tf.abs(tf.exp(tf.signal.rfft(a))), tf.TensorSpec((2, 8)))
    assert not real
    np.testing.assert_allclose(made(x0=tf.constant(x))["y"], tf.abs(tf.exp(tf.signal.rfft(x))), rtol=1e-4)


def spectrogram(kind):
    if kind == "keras3":
        x = keras.Input((512,))
        y = keras.layers.Lambda(lambda t: sum(p * p for p in keras.ops.stft(t, 128, 64, 128)))(x)
        return keras.Model(x, keras.layers.Dense(16)(keras.layers.Dense(32, activation="relu")(y)))
    x = tf_keras.Input((512,))
    y = tf_keras.layers.Lambda(lambda t: tf.math.log(tf.abs(tf.signal.stft(t, 128, 64)) + 1e-3))(x)
    return tf_keras.Model(x, tf_keras.layers.Conv1D(16, 3)(tf_keras.layers.Dense(32)(y)))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("kind", ["keras3", "tf_keras"])
def test_a_model_that_begins_with_a_spectrogram(tmp_path, kind, precision):
    model = spectrogram(kind)
    report = tfmot_asp.export.onnx(model, tmp_path / "m.onnx", precision=precision)  # compared with the model
    written = onnx.load(tmp_path / "m.onnx")
    assert {node.op_type for node in written.graph.node}.isdisjoint({"DFT", "STFT"})
    assert len(report.layers) >= 2


def test_open_lengths_say_what_to_do(tmp_path):
    x = tf_keras.Input((None, 8))
    mixing = tf_keras.layers.Lambda(lambda t: tf.math.real(tf.signal.fft2d(tf.cast(t, tf.complex64))))
    model = tf_keras.Model(x, tf_keras.layers.Dense(16)(mixing(x)))
    with pytest.raises(
        ValueError, match=r"ONNX has no complex numbers, which Cast .*known lengths \(give input_shapes\)"
    ):
        tfmot_asp.export.onnx(model, tmp_path / "m.onnx", precision="fp32")
    tfmot_asp.export.onnx(model, tmp_path / "m.onnx", precision="fp32", input_shapes=(None, 6, 8))
