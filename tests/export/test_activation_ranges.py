"""Calibration data in all the forms that people have them, and ranges against an oracle that keeps every value."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tfmot_asp.export.activation_ranges import Histogram, calibration_batches

IMAGE = [tf.TensorSpec((None, 4), tf.float32, "image")]
FIXED = [tf.TensorSpec((8, 4), tf.float32, "image")]
TWO = [tf.TensorSpec((None, 4), tf.float32, "left"), tf.TensorSpec((None,), tf.int32, "ids")]

X = np.arange(80, dtype=np.float32).reshape(20, 4)
IDS = np.arange(20, dtype=np.int32)


def endless():
    while True:
        yield X


ONE_INPUT = {
    "array": X,
    "float64": X.astype(np.float64),
    "integers": X.astype(np.uint8),
    "tensor": tf.constant(X),
    "dict": {"image": X},
    "batches": [X[:7], X[7:]],
    "dicts": [{"image": X[:7]}, {"image": X[7:]}],
    "generator": (X[i : i + 5] for i in range(0, 20, 5)),
    "function": lambda: iter([X]),
    "lists of one, as for TFLite": ([X[i : i + 1]] for i in range(20)),
    "dataset": tf.data.Dataset.from_tensor_slices(X).batch(6),
    "dataset with labels": tf.data.Dataset.from_tensor_slices((X, IDS)).batch(6),
    "dataset of dicts with labels": tf.data.Dataset.from_tensor_slices(({"image": X}, IDS)).batch(6),
    "endless, cut": itertools.islice(endless(), 1),
}


@pytest.mark.parametrize("form", ONE_INPUT)
def test_forms_for_one_input(form):
    batches = list(calibration_batches(ONE_INPUT[form], IMAGE))
    assert all(batch["image"].dtype == np.float32 for batch in batches)
    np.testing.assert_array_equal(np.concatenate([batch["image"] for batch in batches]), X)


TWO_INPUTS = {
    "tuple": (X, IDS),
    "dict": {"ids": IDS, "left": X},
    "tuples": [(X[:7], IDS[:7]), (X[7:], IDS[7:])],
    "lists": [[X[:7], IDS[:7]], [X[7:], IDS[7:]]],
    "dataset of dicts": tf.data.Dataset.from_tensor_slices({"left": X, "ids": IDS}).batch(6),
    "dataset of pairs with labels": tf.data.Dataset.from_tensor_slices(((X, IDS), IDS)).batch(6),
}


@pytest.mark.parametrize("form", TWO_INPUTS)
def test_forms_for_two_inputs(form):
    batches = list(calibration_batches(TWO_INPUTS[form], TWO))
    np.testing.assert_array_equal(np.concatenate([batch["left"] for batch in batches]), X)
    np.testing.assert_array_equal(np.concatenate([batch["ids"] for batch in batches]), IDS)


def test_a_fixed_batch_size_is_kept_and_what_is_left_over_is_dropped():
    assert [batch["image"].shape for batch in calibration_batches(X, FIXED)] == [(8, 4), (8, 4)]


WRONG = {
    "none": (None, IMAGE, "precision='int8' needs calibration_data"),
    "path": ("data.npy", IMAGE, "must hold inputs, got 'data.npy'; load the file first"),
    "number": (3, IMAGE, "must be arrays or an iterable of batches, got a int"),
    "empty list": ([], IMAGE, "calibration_data is empty"),
    "empty array": (X[:0], IMAGE, "calibration_data is empty"),
    "empty batch": ([X[:0]], IMAGE, "batch 1 is empty"),
    "endless": (tf.data.Dataset.from_tensors(X).repeat(), IMAGE, r"endless dataset; say how much .* dataset\.take"),
    "shape": (X[:, :3], IMAGE, r"batch 1: input 'image' has shape \(8, 3\), the model takes \(None, 4\)$"),
    "no batch axis": (
        tf.data.Dataset.from_tensor_slices(X),
        IMAGE,
        r"has shape \(4,\), .*; its batch axis is missing: dataset\.batch",
    ),
    "nan later": ([X, np.full((2, 4), np.nan)], IMAGE, "batch 2: input 'image' holds NaN or infinity"),
    "text": (np.array([["a"] * 4]), IMAGE, "batch 1: input 'image' is of type <U1, the model takes float32"),
    "floats for integers": ((X, IDS + 0.5), TWO, "input 'ids' is of type float64, the model takes int32"),
    "keys": ({"picture": X}, IMAGE, r"has the inputs \['picture'\], the model \['image'\]"),
    "too few": ([X], TWO, r"calibration_data gives 20 inputs, the model takes 2|gives 1 inputs, the model takes 2"),
    "different counts": ((X, IDS[:7]), TWO, r"different numbers of samples: \{'left': 20, 'ids': 7\}"),
    "different counts in a batch": ([(X, IDS[:7])], TWO, "batch 1: inputs differ in their number of samples"),
    "fewer than a batch": (X[:5], FIXED, "has 5 samples, less than the one batch of 8"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused(case):
    data, specs, match = WRONG[case]
    with pytest.raises(ValueError, match=match):
        list(calibration_batches(data, specs))


def histogram(*parts):
    made = Histogram()
    for part in parts:
        made.add(part)
    return made


values = hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-1e6, 1e6, width=32))


@settings(max_examples=60)
@given(st.lists(values, min_size=1, max_size=5), st.floats(60, 100))
def test_ranges_are_those_of_all_values_together_up_to_a_bin(parts, percentile):
    made = histogram(*parts)
    everything = np.abs(np.concatenate(parts).astype(np.float64))
    assert made.counts.sum() == everything.size
    assert made.largest == everything.max()
    assert made.range("minmax", percentile) == everything.max()
    rank = int(np.ceil(percentile / 100 * everything.size - 1e-9)) - 1
    exact = np.sort(everything)[max(rank, 0)]
    width = made.limit / made.counts.size
    got = made.range("percentile", percentile)
    assert exact - 1e-6 * made.limit <= got <= exact + 2 * width + 1e-6 * made.limit


def test_memory_does_not_grow_however_the_range_does():
    made = histogram(np.zeros(10), np.full(10, 1e-30), np.full(10, 1.0), np.full(10, 1e30))
    assert made.counts.size == 2048
    assert made.counts.sum() == 40
    assert made.range("minmax", 100) == 1e30
    assert made.range("percentile", 100) == 1e30


def test_nothing_but_zeros_has_the_range_zero():
    for method in ("percentile", "mse", "entropy", "minmax"):
        assert histogram(np.zeros(5)).range(method, 99.99) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_activation_that_is_not_finite_is_an_error(bad):
    with pytest.raises(ValueError, match="an activation is NaN or infinite on the calibration data"):
        histogram(np.array([1.0, bad]))


def error(x, largest):
    step = largest / 127
    return np.mean((np.clip(np.rint(x / step), -127, 127) * step - x) ** 2)


@pytest.mark.parametrize("name", ["normal", "relu", "heavy tails", "grey levels"])
def test_clipping_methods_find_good_ranges(name):
    generator = np.random.default_rng(0)
    x = {
        "normal": generator.standard_normal(100_000),
        "relu": np.maximum(generator.standard_normal(100_000), 0),
        "heavy tails": generator.standard_t(3, 100_000),
        "grey levels": np.maximum(generator.integers(-8, 17, 100_000), 0) / 16,
    }[name]
    made = histogram(*np.array_split(x, 7))
    best = min(error(x, largest) for largest in np.linspace(0.2, 1, 200) * np.abs(x).max())
    assert error(x, made.range("mse", 99.99)) < 1.02 * best
    # The others have other aims; they must stay in reach.
    assert error(x, made.range("entropy", 99.99)) < 10 * best
    assert error(x, made.range("percentile", 99.99)) < 3 * best
