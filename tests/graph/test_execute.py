"""Running a traced graph op by op gives what calling the model gives, on shapes that were open when it was traced."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tfmot_asp.graph.execute import Interpreter, last_uses
from tfmot_asp.graph.flatten import trace_function
from tfmot_asp.graph.trace import concrete_function, variables_of

BOTH = pytest.mark.parametrize("k", [tf_keras, keras], ids=["tf_keras", "keras3"])


def normal(*shape, seed=0):
    return tf.random.stateless_normal(shape, (seed, 1))


def interpreted(model, inputs):
    """The graph of a model with an open batch axis, and what running it op by op gives."""
    specs = tf.nest.map_structure(lambda t: tf.TensorSpec([None, *t.shape[1:]], t.dtype), inputs)
    function = concrete_function(model, ((specs,), {}))
    interpreter = Interpreter(trace_function(function, variables=variables_of(model)))
    count = len(tf.nest.flatten(function.structured_outputs[0]))
    return interpreter, interpreter.outputs(tf.nest.flatten(inputs))[:count]


def check(model, inputs):
    expected = [np.asarray(t) for t in tf.nest.flatten(model(inputs))]
    _, found = interpreted(model, inputs)
    assert len(expected) == len(found)
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(other.numpy(), one, rtol=1e-5, atol=1e-6)


@BOTH
def test_convolutions_of_all_kinds(k):
    layers = k.layers
    x = y = k.Input((8, 8, 4))
    y = layers.BatchNormalization()(layers.Conv2D(8, 3, strides=2, padding="same")(y))
    y = layers.Conv2D(8, 3, groups=2, padding="same")(layers.ReLU()(y))
    y = layers.Conv2D(8, 3, dilation_rate=2, padding="same")(y)
    y = layers.SeparableConv2D(8, 3, padding="same")(layers.DepthwiseConv2D(3, padding="same")(y))
    y = layers.Conv2DTranspose(8, 3, strides=2, padding="same")(y)
    check(k.Model(x, layers.Dense(3)(layers.GlobalAveragePooling2D()(y))), normal(3, 8, 8, 4))


@BOTH
def test_sequences_attention_and_loops(k):
    layers = k.layers
    x = k.Input((6,), dtype="int32")
    y = layers.Embedding(10, 8, mask_zero=True)(x)
    y = layers.LayerNormalization()(layers.MultiHeadAttention(2, 4)(y, y))
    y = layers.Bidirectional(layers.GRU(4, return_sequences=True))(y)
    y = layers.TimeDistributed(layers.Dense(4))(y)
    y = layers.Conv1D(4, 3, padding="causal", dilation_rate=2)(y)
    check(k.Model(x, layers.LSTM(3)(y)), tf.constant(np.random.default_rng(0).integers(0, 10, (4, 6)), tf.int32))


@BOTH
def test_several_inputs_and_outputs_and_a_shared_layer(k):
    a, b = k.Input((4,), name="a"), k.Input((4,), name="b")
    shared = k.layers.Dense(4, activation="relu")
    y = k.layers.Add()([shared(a), shared(shared(b))])
    model = k.Model({"a": a, "b": b}, [k.layers.Dense(3)(y), k.layers.Softmax()(y)])
    check(model, {"a": normal(3, 4), "b": normal(3, 4, seed=1)})


@BOTH
def test_subclassed_and_nested(k):
    class Net(k.Model):
        def __init__(self):
            super().__init__()
            self.inner = k.Sequential([k.layers.Dense(8, activation="gelu"), k.layers.Dropout(0.5), k.layers.Dense(4)])
            self.head = k.layers.Dense(2)

        def call(self, inputs, training=False):
            return self.head(inputs + self.inner(inputs, training=training))

    model = Net()
    model(normal(2, 4))
    check(model, normal(3, 4))


@BOTH
def test_mixed_precision(k):
    policy = k.mixed_precision.Policy("mixed_float16") if k is tf_keras else "mixed_float16"
    x = k.Input((8,))
    y = k.layers.Dense(8, activation="relu", dtype=policy)(x)
    check(k.Model(x, k.layers.Dense(3, dtype="float32")(y)), normal(3, 8))


@BOTH
def test_a_branch_that_the_data_chooses(k):
    class Branch(k.layers.Layer):
        def call(self, inputs):
            return tf.cond(tf.reduce_sum(inputs) > 0, lambda: inputs * 2.0, lambda: tf.sin(inputs))

    x = k.Input((4,))
    model = k.Model(x, k.layers.Dense(2)(Branch()(x)))
    check(model, tf.abs(normal(3, 4)))
    check(model, -tf.abs(normal(3, 4)))


def test_a_model_that_was_fitted_in_this_process():
    k = tf_keras
    model = k.Sequential([k.Input((8, 8, 4)), k.layers.Conv2D(8, 3, groups=2), k.layers.Flatten(), k.layers.Dense(2)])
    model.compile("sgd", "mse")
    model.fit(normal(4, 8, 8, 4), normal(4, 2), verbose=0)
    check(model, normal(3, 8, 8, 4))


def test_other_values_of_a_variable_leave_the_model_alone():
    k = tf_keras
    model = k.Sequential([k.Input((4,)), k.layers.Dense(3, use_bias=False)])
    x, before = normal(2, 4), model.get_weights()
    interpreter, first = interpreted(model, x)
    interpreter.assign(0, np.ones((4, 3), np.float32))
    second = interpreter.outputs([x])[0]
    np.testing.assert_allclose(second.numpy(), x.numpy().sum(1, keepdims=True) * np.ones((1, 3)), rtol=1e-5)
    assert not np.allclose(first[0].numpy(), second.numpy())
    np.testing.assert_array_equal(model.get_weights()[0], before[0])


def test_a_stateful_layer_starts_from_its_state_and_keeps_it():
    k = tf_keras
    model = k.Sequential([k.layers.LSTM(3, stateful=True, batch_input_shape=(2, 5, 4))])
    x = normal(2, 5, 4)
    expected = model(x).numpy()
    state = [s.numpy() for s in model.layers[0].states]
    model.reset_states()
    specs = tf.TensorSpec(x.shape, x.dtype)
    graph = trace_function(concrete_function(model, ((specs,), {})), variables=variables_of(model))
    for _ in range(2):
        np.testing.assert_allclose(Interpreter(graph).outputs([x])[0].numpy(), expected, rtol=1e-5, atol=1e-6)
    assert not np.allclose(state[0], 0)
    assert np.allclose(model.layers[0].states[0].numpy(), 0)


def test_last_uses_free_each_tensor_once_and_none_that_is_kept():
    k = tf_keras
    x = k.Input((4,))
    a = k.layers.Dense(4)(x)
    model = k.Model(x, k.layers.Add()([k.layers.ReLU()(a), a]))
    interpreter, _ = interpreted(model, normal(2, 4))
    graph = interpreter.graph
    freed = [t for tensors in last_uses(graph.ops, graph.outputs).values() for t in tensors]
    made = {t for op in graph.ops for t in (*op.inputs, *op.outputs)}
    assert len(freed) == len(set(freed))
    assert set(freed) == made - set(graph.outputs)
