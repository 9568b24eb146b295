"""What `permute` needs beside the model."""

import tracemalloc

import numpy as np
import pytest
import tf_keras

import tfmot_asp
from tests.small_models import convnet
from tfmot_asp.keras_models.windows import windows
from tfmot_asp.permutation.matrix import GroupMatrix
from tfmot_asp.permutation.memory import memory_needed
from tfmot_asp.permutation.plan import plan_model


def test_no_more_than_one_and_a_half_times_the_weights():
    # Weights must outweigh the windows of a few megabytes that everything is done in: 50 MB, a few seconds.
    model = tf_keras.Sequential([tf_keras.Input((2048,)), *(tf_keras.layers.Dense(2048) for _ in range(3))])
    weights = sum(v.nbytes for v in model.get_weights())
    tfmot_asp.permute(convnet(), effort="fast", progress=False)  # compiles
    needed = memory_needed(plan_model(model), "fast")
    tracemalloc.start()
    try:
        report = tfmot_asp.permute(model, effort="fast", progress=False)
        peak = tracemalloc.get_traced_memory()[1]  # NumPy's arrays, of which TensorFlow takes over those it computes on
    finally:
        tracemalloc.stop()
    assert report.permuted == 2
    assert weights < peak < 1.5 * weights
    assert peak < needed == report.memory


def test_windows_cover_an_array_once():
    for shape, whole in [((), ()), ((7,), ()), ((5, 6, 7), ()), ((5, 6, 7), (1,)), ((3, 4), (0, 1)), ((0, 4), ())]:
        seen = np.zeros(shape, int)
        for window in windows(shape, whole, elements=20):
            seen[window] += 1
            assert seen[window].size <= max(20, np.prod([shape[a] for a in whole]))
            assert all(window[a] == slice(0, shape[a]) for a in whole)
        assert (seen == 1).all()


@pytest.mark.parametrize("elements", [1 << 21, 100])
def test_rows_of_a_search_matrix(elements):
    x = tf_keras.Input((8, 8, 4))
    y = tf_keras.layers.Conv2D(32, 3)(x)
    y = tf_keras.layers.Conv2D(16, 3)(tf_keras.layers.ReLU()(y))
    y = tf_keras.layers.Dense(8)(tf_keras.layers.Flatten()(y))
    model = tf_keras.Model(x, tf_keras.layers.Dense(8)(y))
    plan = plan_model(model, policy=tfmot_asp.PruneForSparseTensorCores(padding=True))
    assert len(plan.plan.groups) >= 2
    for group in plan.plan.groups:
        rows = []
        for part in group.parts:
            kernel = plan.plan.kernels[part.kernel]
            flat = np.abs(np.moveaxis(plan.score(kernel), kernel.reduction_axes, range(len(kernel.reduction_axes))))
            rows.append(flat.reshape(kernel.reduction_size, -1)[part.positions].T)
        expected, matrix = np.concatenate(rows), GroupMatrix(group, plan.plan.kernels, plan.score, elements)
        assert matrix.shape == expected.shape
        np.testing.assert_array_equal(np.asarray(matrix), expected)
        for rows in (slice(3, 17), slice(1, None, 5), slice(0, 0)):
            np.testing.assert_array_equal(matrix[rows], expected[rows])
