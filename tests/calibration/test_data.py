"""Calibration data in all its forms gives the same batches, and what does not fit is refused by name."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tfmot_asp.calibration.data import BATCH_SIZE, collect

BOTH = pytest.mark.parametrize("k", [tf_keras, keras], ids=["tf_keras", "keras3"])
RNG = np.random.default_rng(0)
X = RNG.normal(size=(70, 4)).astype("float32")
Y = np.arange(70)
W = (np.arange(70) % 2).astype("float32")


def one_input(k):
    return k.Sequential([k.Input((4,)), k.layers.Dense(3)])


def two_inputs(k):
    a, b = k.Input((4,), name="a"), k.Input((2,), name="b")
    return k.Model([a, b], k.layers.Concatenate()([a, b]))


def rows(batches):
    return np.concatenate([batch.leaves[0].numpy() for batch in batches])


def pieces(size=20):
    return [slice(start, start + size) for start in range(0, 70, size)]


def sequence(k, *arrays):
    base = k.utils.Sequence if k is tf_keras else k.utils.PyDataset

    class Batches(base):
        def __len__(self):
            return len(pieces())

        def __getitem__(self, index):
            return tuple(array[pieces()[index]] for array in arrays)

    return Batches()


@BOTH
@pytest.mark.parametrize(
    "form",
    [
        lambda k: X,
        lambda k: tf.constant(X),
        lambda k: X.astype("float64"),
        lambda k: (X, Y),
        lambda k: (X, None),
        lambda k: X.tolist(),
        lambda k: [X[p] for p in pieces()],
        lambda k: [(X[p], Y[p]) for p in pieces()],
        lambda k: [[X[p], Y[p]] for p in pieces()],
        lambda k: (X[p] for p in pieces()),
        lambda k: lambda: ((X[p], Y[p]) for p in pieces()),
        lambda k: tf.data.Dataset.from_tensor_slices(X).batch(20),
        lambda k: tf.data.Dataset.from_tensor_slices((X, Y)).batch(20),
        lambda k: sequence(k, X),
        lambda k: sequence(k, X, Y, W),
    ],
)
def test_forms_of_one_input(k, form):
    batches = collect(one_input(k), form(k))
    np.testing.assert_array_equal(rows(batches), X)
    assert all(batch.leaves[0].dtype == tf.float32 for batch in batches)
    assert sum(batch.samples for batch in batches) == 70


@BOTH
@pytest.mark.parametrize(
    "form",
    [
        lambda a, b: [a, b],
        lambda a, b: (a, b),
        lambda a, b: {"a": a, "b": b},
        lambda a, b: ([a, b], Y),
        lambda a, b: ({"a": a, "b": b}, Y, W),
        lambda a, b: [[a[p], b[p]] for p in pieces()],
        lambda a, b: [(a[p], b[p]) for p in pieces()],
        lambda a, b: [[[a[p], b[p]], Y[p]] for p in pieces()],
        lambda a, b: [({"a": a[p], "b": b[p]}, Y[p]) for p in pieces()],
        lambda a, b: tf.data.Dataset.from_tensor_slices({"a": a, "b": b}).batch(20),
        lambda a, b: tf.data.Dataset.from_tensor_slices(((a, b), Y)).batch(20),
    ],
)
def test_forms_of_several_inputs(k, form):
    second = RNG.normal(size=(70, 2)).astype("float32")
    batches = collect(two_inputs(k), form(X, second))
    np.testing.assert_array_equal(rows(batches), X)
    np.testing.assert_array_equal(np.concatenate([batch.leaves[1].numpy() for batch in batches]), second)


@BOTH
@pytest.mark.parametrize(
    ("form", "match"),
    [
        (lambda a, b: [b, a], r"batch 0 of calibration_data has shape \(32, 2\), but .* takes \(None, 4\)"),
        (lambda a, b: [a, b[:50]], "inputs of .* samples; they must agree"),
        (lambda a, b: a, r"gives 1 inputs, .* takes 2: \['a', 'b'\]\. Several inputs are a list or dict of arrays"),
        (lambda a, b: [a, b, a], "gives 1 inputs, .* takes 2"),
        (lambda a, b: [([a[:9]], Y[:9])], "gives 1 inputs, .* takes 2"),
        (lambda a, b: {"a": a, "c": b}, r"has the inputs \['a', 'c'\], .* takes \['a', 'b'\]"),
    ],
)
def test_several_inputs_that_do_not_fit(k, form, match):
    with pytest.raises(ValueError, match=match):
        collect(two_inputs(k), form(X, RNG.normal(size=(70, 2)).astype("float32")))


@BOTH
def test_batches_of_texts_of_different_lengths(k):
    x = k.Input((None,), dtype="int32")
    model = k.Model(x, k.layers.Embedding(9, 4)(x))
    batches = collect(model, [np.ones((2, 5), "int64"), np.ones((3, 7), "int64")])
    assert [batch.leaves[0].shape for batch in batches] == [(2, 5), (3, 7)]
    assert batches[0].leaves[0].dtype == tf.int32


def test_sample_weights_come_along():
    [first, *_] = collect(one_input(tf_keras), (X, Y, W))
    np.testing.assert_array_equal(first.weights, W[:BATCH_SIZE])
    [only] = collect(one_input(tf_keras), [(X, None, W)])
    np.testing.assert_array_equal(only.weights, W)


def test_a_number_of_samples():
    model = one_input(tf_keras)
    np.testing.assert_array_equal(rows(collect(model, X, 7)), X[np.linspace(0, 69, 7).round().astype(int)])
    np.testing.assert_array_equal(rows(collect(model, [X[p] for p in pieces()], 33)), X[:33])
    assert rows(collect(model, X, 1000)).shape == X.shape
    endless = tf.data.Dataset.from_tensor_slices(X).repeat().batch(8)
    assert len(rows(collect(model, endless, 20))) == 20
    with pytest.raises(ValueError, match="without an end"):
        collect(model, endless)
    for bad in (0, -3, 2.5, True):
        with pytest.raises(ValueError, match="calibration_samples must be a positive number"):
            collect(model, X, bad)


def test_what_does_not_fit_is_refused():
    model = one_input(tf_keras)
    nan = X.copy()
    nan[40, 2], nan[41, 0] = np.nan, np.inf
    with pytest.raises(ValueError, match="batch 1 of calibration_data has 2 NaN or infinite values among 128"):
        collect(model, nan)
    with pytest.raises(ValueError, match=r"has shape \(4,\).*takes \(None, 4\): its batch axis is missing"):
        collect(model, tf.data.Dataset.from_tensor_slices(X))
    with pytest.raises(ValueError, match=r"batch 0 of calibration_data has shape \(2, 5\)"):
        collect(model, np.zeros((2, 5), "float32"))
    for nothing in (X[:0], [], iter([]), lambda: iter(())):
        with pytest.raises(ValueError, match="holds no sample"):
            collect(model, nothing)
    with pytest.raises(TypeError, match="an iterable of batches"):
        collect(model, 3)
    with pytest.raises(ValueError, match=r"must be \(x,\), \(x, y\) or \(x, y, sample_weight\), got 4"):
        collect(model, [(X, Y, W, W)])
    with pytest.raises(ValueError, match="sample_weight has shape"):
        collect(model, [(X, Y, W[:3])])
    with pytest.raises(ValueError, match="sample_weight must be finite and not negative"):
        collect(model, [(X, Y, -W)])
    with pytest.raises(ValueError, match="they must agree"):
        collect(two_inputs(tf_keras), [[X[:3], RNG.normal(size=(4, 2))]])
