"""Errors say what came in, what was expected and what to do."""

import numpy as np
import pytest

from tfmot_asp import search

GOOD = np.random.default_rng(0).random((8, 16))


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.zeros(4), r"must have two axes.*got an array of shape \(4,\) and dtype float64.*moveaxis"),
        (np.zeros((3, 3, 16, 8)), r"must have two axes.*shape \(3, 3, 16, 8\)"),
        (np.float32(1), r"must have two axes"),
        (np.zeros((0, 8)), r"matrix is empty.*shape \(0, 8\)"),
        (np.zeros((8, 0)), r"matrix is empty.*shape \(8, 0\)"),
    ],
)
def test_shapes(matrix, message):
    with pytest.raises(ValueError, match=message):
        search(matrix)


@pytest.mark.parametrize("dtype", [bool, complex, object, "U3"])
def test_dtypes(dtype):
    with pytest.raises(TypeError, match="must be of real numbers, floats or integers; got an array"):
        search(np.ones((4, 8)).astype(dtype))


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({(2, 5): np.nan}, r"1 of 128 scores are NaN, the first at row 2, column 5.*np.isfinite"),
        ({(7, 0): np.inf, (3, 9): -np.inf}, r"2 of 128 scores are infinite, the first at row 3, column 9"),
        ({(0, 15): np.inf, (1, 1): np.nan}, r"2 of 128 scores are NaN or infinite, the first at row 0, column 15"),
    ],
)
def test_not_finite(places, message):
    matrix = GOOD.copy()
    for place, value in places.items():
        matrix[place] = value
    with pytest.raises(ValueError, match=message):
        search(matrix)


def test_weights_that_overflow_a_score():
    with pytest.raises(ValueError, match="128 of 128 scores are infinite"):
        search(np.full((8, 16), 1e200), column_weights=np.full(16, 1e200))


@pytest.mark.parametrize("m_by_n", [(0, 4), (4, 4), (4, 2), (2,), 4, "24", (2.0, 4.5), None, (-1, 4)])
def test_pattern(m_by_n):
    with pytest.raises(ValueError, match="m_by_n must be two integers"):
        search(GOOD, m_by_n=m_by_n)


def test_pattern_too_wide():
    with pytest.raises(ValueError, match=r"n at most 16; got \(2, 17\)"):
        search(GOOD, m_by_n=(2, 17))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"effort": "max"}, ValueError, "effort must be one of 'fast', 'balanced', 'thorough'; got 'max'"),
        ({"device": "gpu"}, ValueError, "device must be one of 'auto', 'cpu', 'cuda'; got 'gpu'"),
        ({"seed": 1.5}, TypeError, "seed must be an integer; got 1.5"),
        ({"threads": 0}, ValueError, "threads must be at least 1"),
        ({"threads": "two"}, TypeError, "threads must be an integer; got 'two'"),
        ({"time_limit": 0}, ValueError, "time_limit must be a positive number of seconds"),
        ({"time_limit": float("nan")}, ValueError, "time_limit must be a positive number of seconds"),
        ({"row_weights": np.ones(16)}, ValueError, r"one factor per row, shape \(8,\); got shape \(16,\)"),
        (
            {"column_weights": np.ones((16, 1))},
            ValueError,
            r"one factor per column, shape \(16,\); got shape \(16, 1\)",
        ),
        ({"row_weights": -np.ones(8)}, ValueError, "row_weights must be finite and non-negative; got values from -1.0"),
        ({"column_weights": np.full(16, np.nan)}, ValueError, "column_weights must be finite and non-negative"),
        ({"progress": "yes"}, TypeError, "progress must be a callable, True, False or None; got 'yes'"),
    ],
)
def test_options(options, error, message):
    with pytest.raises(error, match=message):
        search(GOOD, **options)
