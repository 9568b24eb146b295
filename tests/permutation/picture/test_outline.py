"""What the picture says of real models: who reorders, who pins, and where it stands."""

from __future__ import annotations

import re

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from hypothesis import given
from hypothesis import strategies as st
from tf_keras import layers

from tests.permutation.harness import EveryKernel
from tests.permutation.picture.drawn import (
    MODELS,
    attention,
    concat,
    described,
    features,
    lrn,
    mobile,
    numbers,
    of,
)
from tfmot_asp.permutation.picture.outline import outline, ranges
from tfmot_asp.permutation.plan import plan_model


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_kernels_show_the_groups_that_the_plan_gives_them(build):
    plan, drawn = described(build(), EveryKernel())
    for index, kernel in enumerate(plan.plan.kernels):
        sums, makes = set(), set()
        for number, group in enumerate(plan.plan.groups):
            for place in group.places:
                if place.variable == kernel.variable:
                    (sums if place.axis in kernel.reduction_axes else makes).add(number)
        op = next(op for op in drawn.ops if op.sparse and op.layer.rpartition("/")[2] == kernel.name)
        assert numbers(op.takes) == sums
        assert op.axes == ",".join(["K"] * bool(makes) + ["C"] * bool(sums))
        assert makes <= numbers(op.gives)
        assert bool(op.note) == (plan.plan.reasons[index] is not None)
    assert sum(op.sparse for op in drawn.ops) == len(plan.plan.kernels)


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_channels_that_pass_through_come_from_somewhere(build):
    _, drawn = described(build(), EveryKernel())
    assert any(op.gives for op in drawn.ops)
    for op in drawn.ops:
        arriving = set().union(*(numbers(drawn.ops[i].gives) for i in op.inputs))
        if op.type != "Input":
            assert numbers(op.takes) <= arriving
        if op.role == "passes":
            assert numbers(op.gives) <= arriving
        if op.role == "still":
            assert (op.takes, op.gives, op.note) == ("", "", "")


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_constants_reads_and_copies_are_folded_away(build):
    _, drawn = described(build(), EveryKernel())
    types = {op.type for op in drawn.ops}
    assert not types & {"Const", "ReadVariableOp", "Identity", "NoOp", "AssignVariableOp", "Placeholder"}
    assert types >= {"Input", "Output"}


def test_what_pins_is_red_and_says_why():
    _, drawn = described(lrn())
    pin = next(op for op in drawn.ops if op.type == "LRN")
    assert pin.role == "pins"
    assert "neighbouring channels" in pin.note
    assert [op.type for op in drawn.ops if op.role == "pins"] == ["LRN"]
    blocked = of(drawn, "conv2", "Conv2D")
    assert (blocked.role, blocked.axes, blocked.sparse) == ("gemm", "K", True)
    assert "LRN" in blocked.note
    assert of(drawn, "head", "MatMul").axes == "C"
    assert of(drawn, "flatten").role == "passes"
    assert of(drawn, "conv1", "Conv2D").axes == ""


class Odd(tf_keras.Model):
    """What pins is no op that is drawn: a running sum of a kernel, and a constant that is added."""

    def __init__(self):
        super().__init__(name="odd")
        self.first = layers.Dense(16, name="first")
        self.turned = layers.Dense(16, name="turned")
        self.last = layers.Dense(16, name="last")

    def call(self, x):
        x = self.turned(self.first(x)) * 0.0 + tf.matmul(self.first(x), tf.cumsum(self.turned.kernel))
        return self.last(tf.nn.relu(x) + tf.range(16.0))


def test_what_pins_unseen_is_shown_by_the_op_that_uses_it():
    model = Odd()
    model(np.zeros((2, 16), np.float32))
    _, drawn = described(model)
    assert {op.type for op in drawn.ops if op.role == "pins"} == {"Input", "MatMul", "AddV2"}
    assert all(op.note for op in drawn.ops if op.role == "pins")


def test_inputs_and_outputs_pin():
    _, drawn = described(concat(), EveryKernel())
    given_ = next(op for op in drawn.ops if op.type == "Input")
    assert (given_.role, given_.name) == ("pins", "given")
    assert "input" in given_.note
    outer = of(drawn, "outer", "Conv2D")
    assert outer.axes == "C"
    assert outer.note.startswith("32 of 64 (")
    _, drawn = described(features())
    assert [op.role for op in drawn.ops if op.type == "Output"] == ["pins", "still"]
    assert "output" in of(drawn, "inner", "Conv2D").note


def test_an_op_without_a_rule_pins():
    x = layers.Input((16,))
    y = layers.Dense(16, name="first")(x)
    y = layers.Lambda(lambda t: tf.linalg.expm(tf.reshape(t, (-1, 4, 4))), name="odd")(y)
    y = layers.Dense(16, name="second")(layers.Flatten()(y))
    _, drawn = described(tf_keras.Model(x, y))
    assert any(op.role == "pins" and op.layer.startswith("odd") for op in drawn.ops)


def test_depthwise_convolutions_apply_and_unfused_batch_norm_too():
    _, drawn = described(mobile())
    assert of(drawn, "depthwise", "DepthwiseConv2dNative").role == "applies"
    grouped = next(op for op in drawn.ops if op.layer == "grouped" and "Conv2D" in op.type)
    assert (grouped.role, grouped.axes) == ("applies", "")
    # The variance and its root belong to the weights: only what the channels go through is drawn.
    assert {op.type for op in drawn.ops if op.layer == "bn"} <= {"Mul", "AddV2"}
    assert {op.role for op in drawn.ops if op.layer == "bn"} == {"applies"}


def test_attention_projections_stand_in_their_layer():
    _, drawn = described(attention(), EveryKernel())
    assert not [op for op in drawn.ops if op.role == "pins"]
    assert of(drawn, "attention_output", "Einsum").layer == "attention/attention_output"
    assert of(drawn, "attention_output", "Einsum").axes == "K,C"
    assert of(drawn, "query", "Einsum").axes == "C"


def test_training_ops_are_not_drawn():
    x = layers.Input((16,), name="given")
    y = layers.Dense(32, name="first")(x)
    y = layers.BatchNormalization(renorm=True, name="bn")(y)
    plan, drawn = described(tf_keras.Model(x, layers.Dense(8, name="second")(y)))
    assert any(op.training for op in plan.graph.ops)
    assert [op.type for op in drawn.ops].count("Input") == 1
    assert [op.type for op in drawn.ops].count("Output") == 1
    assert len([op for op in drawn.ops if op.type == "MatMul"]) == 2


def test_keras_3_scopes_are_not_mistaken_for_other_layers():
    import keras

    # Keras 3 numbers scopes: that of `dense` is called `dense_1`, which is another layer's name.
    inputs = keras.Input((16,))
    x = keras.layers.Dense(32, name="dense")(inputs)
    x = keras.layers.ReLU(name="act_1")(x)
    x = keras.layers.Dense(64, name="dense_1")(x)
    x = keras.layers.ReLU(name="act")(x)
    _, drawn = described(keras.Model(inputs, keras.layers.Dense(8, name="head")(x), name="m"))
    assert [op.layer for op in drawn.ops if op.type == "MatMul"] == ["dense", "dense_1", "head"]
    assert [op.layer for op in drawn.ops if op.type == "Relu"] == ["act_1", "act"]


def test_heads_that_stay_block_nothing():
    import keras

    # Keras 3 multiplies after a reshape. With each axis for itself, the heads stay; the channels within them move.
    x = keras.Input((6, 32), name="given")
    y = keras.layers.Dense(32, name="inner")(x)
    y = keras.layers.MultiHeadAttention(2, 16, name="attention")(y, y)
    plan, drawn = described(keras.Model(x, keras.layers.Dense(8)(y)), EveryKernel(), merged={})
    (merged,) = [i for i, k in enumerate(plan.plan.kernels) if k.name == "attention_output"]
    assert plan.plan.reasons[merged] is None
    classes = plan.axes.classes()
    heads = classes.of[plan.axes.variable_axes[plan.plan.kernels[merged].variable, 0]]
    assert classes.pinned[heads].all()  # or the test would show nothing
    assert [op.type for op in drawn.ops if op.role == "pins"] == ["Input"]


def test_nested_models_and_repeated_calls_are_placed_by_path():
    block = tf_keras.Sequential([layers.Input((16,)), layers.Dense(16, name="inner")], name="block")
    x = layers.Input((16,))
    _, drawn = described(tf_keras.Model(x, layers.Dense(8, name="head")(block(block(x)))))
    assert [op.layer for op in drawn.ops if op.type == "MatMul"] == ["block/inner", "block/inner", "head"]


def test_title_counts():
    _, drawn = described(lrn())
    assert drawn.title == "with_lrn: 1 of 2 prunable kernels permuted, in 1 group"
    plan, _ = described(lrn())
    said = "with_lrn: plan, nothing was changed: 1 of 2 prunable kernels would be permuted, in 1 group"
    assert outline(plan, lrn(), planned=True).title == said


def test_what_keeps_every_kernel_dense_is_drawn():
    model = tf_keras.Sequential([layers.Input((3,)), layers.Dense(3, name="small")])
    with pytest.raises(ValueError, match="has no layer that the policy would prune"):
        plan_model(model)
    drawn = outline(plan_model(model, may_be_empty=True), model, planned=True)
    assert drawn.title.endswith("plan, nothing was changed: no kernel would be pruned")
    (product,) = (op for op in drawn.ops if op.type == "MatMul")
    assert (product.role, product.sparse) == ("still", False)
    assert product.note.startswith("has 3 input features")


@given(st.sets(st.integers(0, 40)))
def test_ranges_hold_the_set(found):
    written = ranges(found)
    assert numbers(written) == found
    assert not re.search(r"\b(\d+)-\1\b", written)


def test_a_loop_pins_what_its_body_pins():
    def steps(x):
        return tf.map_fn(lambda y: tf.cumsum(y, -1), x)

    x = layers.Input((4, 16))
    y = layers.Lambda(steps, name="loop")(layers.Dense(16)(x))
    _, drawn = described(tf_keras.Model(x, layers.Dense(8, name="after")(y)), EveryKernel())
    (loop,) = (op for op in drawn.ops if op.type.endswith("While"))
    assert loop.role == "pins"
    assert loop.note == "accumulated in order along this axis"
