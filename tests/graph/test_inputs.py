"""The inputs of a model: what a user may say of them, with types and by name."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tfmot_asp.cli.options import input_shapes, named_shape
from tfmot_asp.graph.inputs import input_specs


class Step(tf_keras.Model):
    def call(self, token_ids, cache, index=0, training=None):
        return cache


def described(specs):
    return [(spec.name, tuple(spec.shape), spec.dtype.name) for spec in tf.nest.flatten(specs)]


@pytest.mark.parametrize(
    "ids",
    [
        ((None, 16), "int32"),
        ((None, 16), np.int32),
        (tf.TensorShape([None, 16]), tf.int32),
        tf.TensorSpec((None, 16), tf.int32),
        tf_keras.layers.InputSpec("int32", shape=(None, 16)),
    ],
)
def test_types_are_given_in_many_ways_and_arguments_by_name(ids):
    shapes = {"index": ((), "int64"), "cache": [(None, 4), {"a": (3, 2)}], "token_ids": ids}
    args, kwargs = input_specs(Step(), shapes)
    assert not kwargs
    assert described(args) == [
        ("token_ids", (2, 16), "int32"),
        ("cache_0", (2, 4), "float32"),
        ("cache_1_a", (3, 2), "float32"),
        ("index", (), "int64"),
    ]


def test_optional_arguments_that_are_left_out_keep_their_default():
    args, kwargs = input_specs(Step(), {"cache": (None, 4), "training": (None, 1), "token_ids": (None, 1)})
    assert [spec.name for spec in args] == ["token_ids", "cache"]
    assert described(kwargs) == [("training", (2, 1), "float32")]


def test_a_model_of_one_structure_is_called_with_the_dict():
    a, b = tf_keras.layers.Input((4,), dtype="int32", name="a"), tf_keras.layers.Input((3,), name="b")
    (given,), _ = input_specs(tf_keras.Model([a, b], [a, b]), {"a": (None, 4), "b": (5, 3)})
    assert {name: (tuple(spec.shape), spec.dtype.name) for name, spec in given.items()} == {
        "a": ((2, 4), "int32"),
        "b": ((5, 3), "float32"),
    }


def test_two_shapes_are_no_shape_with_a_type():
    args, _ = input_specs(Step(), ((None, 2), (4, 3)))
    assert described(args) == [(None, (2, 2), "float32"), (None, (4, 3), "float32")]


def test_the_command_line_takes_types_and_single_numbers():
    given = [named_shape(text) for text in ("token_ids=int32:1,16", "cache=?,2,4", "index=int64:")]
    shapes = {"token_ids": ((1, 16), "int32"), "cache": (None, 2, 4), "index": ((), "int64")}
    assert input_shapes(given) == shapes
    assert described(input_specs(Step(), shapes)[0]) == [
        ("token_ids", (1, 16), "int32"),
        ("cache", (2, 2, 4), "float32"),
        ("index", (), "int64"),
    ]


@pytest.mark.parametrize("text", ["x=int33:1,2", "x=int32:1,,2", "x=", "=int32:1", "int32", "x=int32:0"])
def test_what_is_no_shape_is_said(text):
    with pytest.raises(Exception, match="is no shape such as 1,224,224,3"):
        named_shape(text)
