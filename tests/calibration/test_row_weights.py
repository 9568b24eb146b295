"""Which rows of a tensor count, from weights of samples and positions."""

from __future__ import annotations

import numpy as np

from tfmot_asp.calibration.traced import row_weights

POSITIONS = np.array([[1, 1, 0], [1, 0, 0]], np.float32)


def weighted(weights, *leading):
    found = row_weights(np.asarray(weights, np.float32), leading)
    return None if found is None else found.tolist()


def test_of_samples():
    assert weighted([1, 0], 2) == [1, 0]
    assert weighted([1, 0], 2, 3) == [1, 1, 1, 0, 0, 0]
    assert weighted([1, 0], 6) == [1, 1, 1, 0, 0, 0]
    assert weighted([1, 0], 2, 1, 2) == [1, 1, 0, 0]


def test_of_positions():
    assert weighted(POSITIONS, 2, 3) == [1, 1, 0, 1, 0, 0]
    assert weighted(POSITIONS, 6) == [1, 1, 0, 1, 0, 0]
    assert weighted(POSITIONS, 2, 3, 2) == [1, 1, 1, 1, 0, 0, 1, 1, 0, 0, 0, 0]
    assert weighted([[1, 1, 0, 0]], 1, 2) == [1, 0]  # strided
    assert weighted([[0, 0, 0], [0, 1, 0]], 2) == [0, 1]  # pooled


def test_of_axes_that_have_nothing_to_do_with_them():
    assert weighted([1, 0], 3, 5) is None
    assert weighted(POSITIONS, 2, 49) is None
    assert weighted(POSITIONS, 12) is None
    assert weighted([1, 0], 7) is None
