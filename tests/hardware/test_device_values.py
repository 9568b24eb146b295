"""Values that products are timed with, and how two results are compared, in NumPy."""

import numpy as np
import pytest

from tfmot_asp.hardware import device_values


class Generator:
    def __init__(self):
        self.generator, self.given = np.random.default_rng(0), []

    def standard_normal(self, size, dtype):
        self.given.append(self.generator.standard_normal(size, dtype))
        return self.given[-1].copy()


def filled(kind, two_four=False):
    array, generator = np.empty((128, 96), kind), Generator()
    device_values.fill_normal(np, generator, array, two_four=two_four)
    return array, np.concatenate(generator.given).reshape(array.shape)


@pytest.fixture(params=[64, 1 << 22])
def block(request, monkeypatch):
    monkeypatch.setattr(device_values, "BLOCK", request.param)


def test_values_are_normal_and_quantized_as_such(block):
    values, given = filled(np.float16)
    np.testing.assert_array_equal(values, given.astype(np.float16))
    values, given = filled(np.int8)
    np.testing.assert_array_equal(values, np.clip(np.round(32 * given), -127, 127))
    assert 30 < values.std() < 34
    bits = np.unpackbits(values.view(np.uint8)).reshape(-1, 8).mean(axis=0)
    assert np.all((bits > 0.4) & (bits < 0.6))
    _, counts = np.unique(filled(np.int8)[0], return_counts=True)
    assert len(counts) > 150


@pytest.mark.parametrize("kind", [np.float16, np.int8])
def test_a_pruned_weight_has_the_two_largest_of_every_four(block, kind):
    dense, given = filled(kind)
    pruned, again = filled(kind, two_four=True)
    np.testing.assert_array_equal(again, given)
    stripes = given.reshape(-1, 4)
    kept = np.argsort(np.argsort(-abs(stripes), axis=1), axis=1).reshape(dense.shape) < 2
    np.testing.assert_array_equal(pruned, np.where(kept, dense, 0))
    assert not np.any(np.signbit(pruned.astype(np.float32)) & (pruned == 0))  # as zeros of a mask
    assert len(np.unique(kept.reshape(-1, 4), axis=0)) == 6


def test_the_difference_is_the_largest_anywhere(block):
    generator = np.random.default_rng(0)
    for kind in (np.float16, np.int32):
        a, b = (generator.integers(-500, 500, (40, 32)).astype(kind) for _ in range(2))
        assert device_values.difference(a, b) == (abs(a - b).max(), abs(b).max())
    assert device_values.difference(a, a)[0] == 0
    a = a.astype(np.float16)
    a[1, 2] = np.nan
    assert np.isnan(device_values.difference(a, b.astype(np.float16))[0])
