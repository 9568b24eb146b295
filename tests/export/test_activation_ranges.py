"""Ranges against an oracle that keeps every value."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tfmot_asp.export.activation_ranges import Histogram


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
