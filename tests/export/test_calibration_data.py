"""Calibration data in all the forms that people have them."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmot_asp.export.calibration_data import calibration_batches

IMAGE = [tf.TensorSpec((None, 4), tf.float32, "image")]
FIXED = [tf.TensorSpec((8, 4), tf.float32, "image")]
TWO = [tf.TensorSpec((None, 4), tf.float32, "left"), tf.TensorSpec((None,), tf.int32, "ids")]

X = np.arange(80, dtype=np.float32).reshape(20, 4)
IDS = np.arange(20, dtype=np.int32)


def endless():
    while True:
        yield X


class Batches(keras.utils.PyDataset):
    """Has a length and items, and no iterator that ends."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        part = slice(10 * index, 10 * index + 10)
        return X[part], IDS[part]


ONE_INPUT = {
    "array": X,
    "float64": X.astype(np.float64),
    "integers": X.astype(np.uint8),
    "tensor": tf.constant(X),
    "dict": {"image": X},
    "with labels": (X, IDS),
    "with labels and weights": (X, IDS, IDS),
    "nested lists": X.tolist(),
    "batches": [X[:7], X[7:]],
    "dicts": [{"image": X[:7]}, {"image": X[7:]}],
    "generator": (X[i : i + 5] for i in range(0, 20, 5)),
    "function": lambda: iter([X]),
    "lists of one, as for TFLite": ([X[i : i + 1]] for i in range(20)),
    "dataset": tf.data.Dataset.from_tensor_slices(X).batch(6),
    "dataset with labels": tf.data.Dataset.from_tensor_slices((X, IDS)).batch(6),
    "dataset of dicts with labels": tf.data.Dataset.from_tensor_slices(({"image": X}, IDS)).batch(6),
    "endless, cut": itertools.islice(endless(), 1),
    "Keras 3's PyDataset, with labels": Batches(),
}


@pytest.mark.parametrize("form", ONE_INPUT)
def test_forms_for_one_input(form):
    batches = list(calibration_batches(ONE_INPUT[form], IMAGE))
    assert all(batch["image"].dtype == np.float32 for batch in batches)
    np.testing.assert_array_equal(np.concatenate([batch["image"] for batch in batches]), X)


TWO_INPUTS = {
    "tuple": (X, IDS),
    "list, as fit takes it": [X, IDS],
    "with labels": ([X, IDS], IDS),
    "dict with labels": ({"left": X, "ids": IDS}, IDS),
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


def test_what_is_no_data_is_refused():
    with pytest.raises(TypeError, match=r"an iterable of batches .*, got int"):
        list(calibration_batches(3, IMAGE))


def test_a_fixed_batch_size_is_kept_and_what_is_left_over_is_dropped():
    assert [batch["image"].shape for batch in calibration_batches(X, FIXED)] == [(8, 4), (8, 4)]


WRONG = {
    "none": (None, IMAGE, "precision='int8' needs calibration_data"),
    "path": ("data.npy", IMAGE, "must hold inputs, got 'data.npy'; load the file first"),
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
