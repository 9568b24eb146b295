"""Functions in half precision, with types in every place that a graph has them, and what is left of them."""

import numpy as np
import pytest
import tensorflow as tf

from tfmot_asp.export.lowering.widening import computes_in_half, widened
from tfmot_asp.export.onnx_files.convert import convert
from tfmot_asp.export.onnx_files.run import run, session
from tfmot_asp.graph.probes import outputs_of


def in_half(dtype):
    """Half precision in inputs, outputs, constants, a variable, casts, a branch and a loop."""
    weight = tf.Variable(tf.constant([2.0, -3.0], dtype))

    @tf.function(input_signature=[tf.TensorSpec([2], dtype, "x"), tf.TensorSpec([], tf.bool, "c")])
    def serve(x, c):
        picked = tf.cond(c, lambda: -x * weight, lambda: tf.abs(x * weight))
        looped = tf.while_loop(lambda i, _: i < 3, lambda i, y: (i + 1, y + tf.ones([2], dtype)), [0, picked])[1]
        return {"y": picked + weight, "same": x, "wide": tf.cast(looped, tf.float32)}

    function = serve.get_concrete_function()
    function.weight = weight  # a function does not keep its variables alive
    return function


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
@pytest.mark.parametrize("keep_io", [False, True])
def test_everything_becomes_float32_but_what_is_asked_to_stay(dtype, keep_io):
    half = in_half(dtype)
    wide = widened(half, keep_io=keep_io)
    assert computes_in_half(half)
    assert computes_in_half(wide) == keep_io
    assert not wide.variables
    bodies = [node for body in wide.graph.as_graph_def().library.function for node in body.node_def]
    types = {attribute.type for node in bodies for attribute in node.attr.values()}
    assert dtype.as_datatype_enum not in types
    io = dtype if keep_io else tf.float32
    assert [spec.dtype for spec in wide.structured_input_signature[0]] == [io, tf.bool]
    assert {name: value.dtype for name, value in wide.structured_outputs.items()} == {
        "y": io,
        "same": io,
        "wide": tf.float32,
    }


def test_what_it_computes_in_an_onnx_file():
    """tf2onnx takes the bodies along, which TensorFlow does not know."""
    pytest.importorskip("tf2onnx")
    half = in_half(tf.float16)
    runner = session(convert(half))
    for condition in (True, False):
        feeds = {"x": np.array([1, 1], np.float16), "c": np.array(condition)}
        got = run(runner, feeds)
        for name, value in outputs_of(half, feeds).items():
            assert got[name].dtype == value.dtype
            np.testing.assert_array_equal(got[name], value)


def test_float32_functions_are_left_as_they_are():
    @tf.function(input_signature=[tf.TensorSpec([2], tf.float32, "x")])
    def serve(x):
        return {"y": x + 1.0}

    assert not computes_in_half(serve.get_concrete_function())
