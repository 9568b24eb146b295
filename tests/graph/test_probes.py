"""Probe inputs suit the function that they are made for, and outputs are compared as their types allow."""

import numpy as np
import pytest
import tensorflow as tf

from tfmot_asp.graph.compare import TOLERANCES, difference, tolerance
from tfmot_asp.graph.probes import draw, probes


def function(run, *specs):
    @tf.function(input_signature=list(specs), autograph=False)
    def named(*tensors):
        return {"y": run(*tensors)}

    return named.get_concrete_function()


def test_open_axes_take_the_batch_sizes_and_the_first_size_that_works():
    def run(image, ids):
        with tf.control_dependencies([tf.debugging.assert_greater(tf.shape(image)[1], 20)]):
            return tf.reduce_sum(image, [1, 2]) + tf.gather(tf.ones((2, 3)), ids)

    specs = tf.TensorSpec((None, None, None, 3), name="image"), tf.TensorSpec((None,), tf.int32, name="ids")
    made = function(run, *specs)
    (one, expected), (three, _) = probes(made, batches=(1, 3))
    assert one["image"].shape == (1, 64, 128, 3)  # of no one size, which would hide what is mixed up
    assert three["image"].shape == (3, 64, 128, 3)
    assert set(np.unique(three["ids"])) <= {0, 1}
    again = made(**{name: tf.constant(value) for name, value in one.items()})
    np.testing.assert_array_equal(expected["y"], again["y"])


def test_axes_that_must_agree_do_and_sizes_grow_until_outputs_are_finite():
    def run(query, key):
        return tf.reduce_mean((query * key)[:, 30:], 1)  # of nothing that is shorter

    specs = [tf.TensorSpec((None, None, 3), name=name) for name in ("query", "key")]
    ((probe, expected),) = probes(function(run, *specs))
    assert probe["query"].shape == probe["key"].shape == (1, 64, 3)
    assert np.isfinite(expected["y"]).all()
    ((_, never),) = probes(function(lambda x: tf.math.log(-1 - x * x), tf.TensorSpec((None, None), name="x")))
    assert np.isnan(never["y"]).all()


def test_integers_and_then_floats_are_zero_where_nothing_else_is_taken():
    specs = tf.TensorSpec((4,), tf.int32, name="i"), tf.TensorSpec((4,), name="x")
    ((probe, _),) = probes(function(lambda i, x: tf.gather([1.0], i) + x, *specs))
    assert not probe["i"].any()
    assert probe["x"].any()
    ids = function(lambda x: tf.gather([1.0], tf.cast(tf.abs(x) * 9, tf.int32)), tf.TensorSpec((4,), name="x"))
    ((probe, _),) = probes(ids)
    assert not probe["x"].any()


def test_a_function_that_takes_nothing_is_not_run(caplog):
    made = function(lambda x: tf.gather([1.0], tf.cast(x, tf.int32) + 7), tf.TensorSpec((4,), name="x"))
    assert probes(made) == []
    assert "no random input suits the model" in caplog.text
    assert probes(function(tf.strings.length, tf.TensorSpec((2,), tf.string, name="s"))) == []


@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float64, tf.complex64, tf.int8, tf.bool, tf.string])
def test_values_of_every_type(dtype):
    value = draw((2, 3), dtype, np.random.default_rng(0), uniform=True)
    assert tf.constant(value, dtype).shape == (2, 3)


def test_differences():
    a = np.array([1.0, -4.0, np.nan, np.inf])
    assert difference(a, a) == 0
    assert difference(a, a * 1.1) == pytest.approx(0.1)
    for broken in (a[:2], None, np.array([1.0, np.nan, np.nan, np.inf]), np.array([1, -4, np.nan, -np.inf])):
        assert difference(a, broken) == np.inf
    assert difference(np.zeros(3), np.full(3, 0.25)) == 0.25
    assert difference(np.array([2j]), np.array([2j + 1])) == 0.5


def test_tolerances_are_those_of_the_coarsest_type():
    for done in ("permuted", "rewritten", "converted"):
        rows = TOLERANCES[done]
        assert tolerance(done, ["int32", "float32", "float16"]) == rows["float16"]
        assert tolerance(done, ["float8_e5m2", "float32"]) == rows["bfloat16"]
        assert tolerance(done, ["bool"]) == rows["float32"]
        assert rows["float64"] <= rows["float32"] <= rows["float16"] <= rows["bfloat16"]
