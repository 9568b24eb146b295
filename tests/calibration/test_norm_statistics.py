"""Batch normalization statistics: against all rows at once, by difference, and found wherever a layer keeps them."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tf_keras

from tfmot_asp.calibration.data import collect
from tfmot_asp.calibration.norm_statistics import ChannelMoments, moved, norm_sites
from tfmot_asp.calibration.traced import trace_for
from tfmot_asp.graph.execute import Interpreter
from tfmot_asp.keras_models.batch_norm import batch_norms

BOTH = pytest.mark.parametrize("k", [tf_keras, keras], ids=["tf_keras", "keras3"])
RNG = np.random.default_rng(0)


def moments(rows, weights=None, batch=7):
    found = ChannelMoments()
    for start in range(0, len(rows), batch):
        part = slice(start, start + batch)
        found.add(rows[part], None if weights is None else weights[part])
    return found


def test_moments_are_those_of_all_rows():
    rows = (RNG.normal(size=(50, 3)) * [1, 10, 0.1] + [0, 100, -5]).astype("float32")
    found = moments(rows)
    np.testing.assert_allclose(found.mean, rows.astype(np.float64).mean(0))
    np.testing.assert_allclose(found.variance, rows.astype(np.float64).var(0), rtol=1e-5)
    weights = (np.arange(50) % 3 > 0).astype(np.float32)
    counted = moments(rows, weights)
    np.testing.assert_allclose(counted.mean, rows[weights > 0].astype(np.float64).mean(0))
    np.testing.assert_allclose(counted.variance, rows[weights > 0].astype(np.float64).var(0), rtol=1e-5)


def test_relative_statistics_move_by_the_difference_and_a_dense_model_stays_to_the_bit():
    mean, variance = RNG.normal(size=3).astype("float32"), RNG.uniform(0.5, 2, 3).astype("float32")
    dense = RNG.normal(size=(40, 3)).astype("float32")
    same = moved(mean, variance, moments(dense), moments(dense), "relative")
    np.testing.assert_array_equal(same[0], mean)
    np.testing.assert_array_equal(same[1], variance)
    half = moved(mean, variance, moments(dense), moments(0.5 * dense + 1), "relative")
    np.testing.assert_allclose(half[0] - mean, 1 - 0.5 * dense.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(half[1] / variance, 0.25, rtol=1e-4)
    again = moved(mean, variance, moments(dense), moments(0.5 * dense + 1), "relative")
    np.testing.assert_array_equal(half[0], again[0])
    absolute = moved(mean, variance, moments(dense), moments(0.5 * dense + 1), "absolute")
    np.testing.assert_allclose(absolute[0], (0.5 * dense + 1).mean(0), rtol=1e-4)
    np.testing.assert_allclose(absolute[1], (0.5 * dense + 1).var(0), rtol=1e-4)


def test_a_channel_that_dies_does_not_explode():
    ones, dense = np.ones(1, np.float32), moments(RNG.normal(size=(20, 1)))
    assert moved(ones, ones, dense, moments(np.zeros((20, 1))), "relative")[1] == np.float32(0.01)
    assert moved(ones, ones, moments(np.zeros((20, 1))), dense, "relative")[1] == np.float32(100)


@BOTH
@pytest.mark.parametrize(
    ("shape", "axis"), [((6, 5, 4), -1), ((6, 5, 4), 1), ((6, 4), -1), ((4,), -1), ((3, 6, 5, 4), -1)]
)
def test_the_input_of_each_layer_is_found(k, shape, axis):
    x = k.Input(shape)
    y = k.layers.Lambda(lambda t: 2 * t + 1)(x) if k is tf_keras else k.layers.Rescaling(2.0, 1.0)(x)
    y = k.layers.BatchNormalization(axis=axis, scale=False)(y)
    model = k.Model(x, k.layers.ReLU()(y))
    data = RNG.normal(size=(8, *shape)).astype("float32")
    [traced] = trace_for(model, collect(model, data))
    interpreter = Interpreter(traced.graph)
    [norm] = batch_norms(model)
    [site] = norm_sites(traced.graph, interpreter, norm)
    values = dict(zip(traced.graph.inputs, traced.batches[0].leaves, strict=True))
    for op in traced.graph.ops:
        if op.outputs[0] in interpreter.varying:
            values.update(zip(op.outputs, interpreter.run(op, interpreter.inputs_of(op, values)), strict=True))
    rows = site.rows(values[site.data])
    expected = np.moveaxis(2 * data + 1, axis, -1)
    np.testing.assert_allclose(rows, expected.reshape(-1, expected.shape[-1]), rtol=1e-5, atol=1e-6)
    assert np.prod(site.leading(values[site.data])) == len(rows)
