"""Any model traces as one flat graph: before and after it was trained, whatever its layers cache, in both Kerases."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfmot_asp
from tests.permutation.harness import EveryKernel, check
from tfmot_asp.export.lowering.inference import serving_function
from tfmot_asp.graph.flatten import trace_function
from tfmot_asp.graph.trace import concrete_function, trace, variables_of
from tfmot_asp.keras_models.modules import all_variables, modules_in

BOTH = pytest.mark.parametrize("keras_", [tf_keras, keras], ids=["tf_keras", "keras3"])


def grouped(keras_):
    """A convolution that tf_keras computes in a function of its own."""
    layers = [keras_.layers.Conv2D(16, 3), keras_.layers.Conv2D(16, 3, groups=2), keras_.layers.Conv2D(16, 1)]
    return keras_.Sequential([keras_.Input((8, 8, 16)), *layers])


def called(keras_):
    """A layer whose call is a function, with a loop and a branch in it."""

    class Looping(keras_.layers.Layer):
        def __init__(self):
            super().__init__()
            self.dense = keras_.layers.Dense(16)

        def build(self, shape):
            self.dense.build(shape)

        @tf.function
        def call(self, x):
            for _ in tf.range(2):
                x = tf.tanh(self.dense(x))
            return tf.cond(tf.reduce_sum(x) > 0, lambda: x * x, lambda: 2 * x)

    return keras_.Sequential([keras_.Input((16,)), keras_.layers.Dense(16), Looping(), keras_.layers.Dense(8)])


def recurrent(keras_):
    x = keras_.Input((6, 16))
    y = keras_.layers.LSTM(16, recurrent_dropout=0.2, dropout=0.1, return_sequences=True)(x)
    y = keras_.layers.Bidirectional(keras_.layers.GRU(8, recurrent_dropout=0.2))(y)
    return keras_.Model(x, keras_.layers.Dense(16)(keras_.layers.Dense(32)(y)))


def nested(keras_):
    inner = grouped(keras_)
    x = keras_.Input((8, 8, 16))
    return keras_.Model(x, keras_.layers.Dense(8)(keras_.layers.GlobalAveragePooling2D()(inner(x))))


def fitted(model):
    model.compile("sgd", "mse")
    shapes = [(4, *model.input_shape[1:]), (4, *model.output_shape[1:])]
    model.fit(*(np.random.default_rng(0).normal(size=shape) for shape in shapes), verbose=0, batch_size=2)
    return model


def ops(model):
    """What a trace finds, without the numbers that Keras 3 adds to a scope at each call."""
    return [op.type for op in trace(model).ops]


@BOTH
@pytest.mark.parametrize("make", [grouped, called, recurrent, nested])
def test_a_trained_model_traces_as_before(make, keras_):
    model = make(keras_)
    before = ops(model)
    fitted(model)
    assert ops(model) == before
    own = {id(variable) for variable in variables_of(model)}
    assert {id(variable) for variable in trace(model).variables} <= own


@BOTH
@pytest.mark.parametrize("make", [grouped, called, recurrent, nested])
def test_a_trained_model_is_permuted_and_its_function_read(make, keras_):
    model = fitted(make(keras_))
    outcome = check(model, policy=EveryKernel())
    assert outcome.groups
    assert len(trace_function(serving_function(model)).ops) > 0
    tfmot_asp.prune_trained_model(model, permute=False)


def test_a_function_that_was_differentiated_keeps_its_own_outputs():
    variable = tf.Variable(tf.ones((3, 3)))

    class Module(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((2, 3))])
        def inner(self, x):
            return tf.tanh(x @ variable), x

        def __call__(self, x):
            return self.inner(x)

    module = Module()
    before = [t.shape for t in trace(module, (2, 3)).outputs]
    with tf.GradientTape() as tape:
        y, _ = module(tf.ones((2, 3)))
    tape.gradient(y, variable)
    assert [t.shape for t in trace(module, (2, 3)).outputs] == before == [(2, 3), (2, 3)]


def test_modules_and_variables_beside_caches_of_dropout_masks():
    class Holder(tf.Module):
        def __init__(self):
            super().__init__()
            self.model, self.scale = fitted(recurrent(tf_keras)), tf.Variable(2.0)

    holder = Holder()
    with pytest.raises(ValueError, match="dropout_mask_cache"):
        holder.submodules  # noqa: B018  which is why they are found otherwise
    found = {id(variable) for variable in all_variables(holder)}
    assert found >= {id(holder.scale), *(id(variable) for variable in holder.model.variables)}
    modules = modules_in(holder)
    assert {layer.name for layer in holder.model.layers} <= {getattr(module, "name", "") for module in modules}
    assert modules_in(recurrent(keras)) == []


def test_the_modules_in_a_module_are_its_submodules():
    class Block(tf.Module):
        def __init__(self, depth):
            super().__init__()
            self.b = {"x": [tf_keras.layers.Dense(2)], "a": tf.Module()}
            self.a = [Block(depth - 1), (Block(depth - 1),)] if depth else []
            self.again = self.a

    block = Block(2)
    assert modules_in(block) == list(block.submodules)


def test_buffers_may_be_infinite_and_kernels_may_not(tmp_path):
    class Masked(tf_keras.layers.Layer):
        def build(self, shape):
            mask = tf_keras.initializers.Constant(np.triu(np.full((8, 8), -np.inf), 1))
            self.mask = self.add_weight("mask", (8, 8), initializer=mask, trainable=False)

        def call(self, x):
            return tf.nn.softmax(tf.matmul(x, x, transpose_b=True) + self.mask) @ x

    dense = [tf_keras.layers.Dense(n) for n in (64, 32, 16)]
    model = tf_keras.Sequential([tf_keras.Input((8, 32)), dense[0], Masked(), *dense[1:]])
    assert tfmot_asp.permute(model, effort="fast", progress=False).permuted
    tfmot_asp.export.saved_model(model, tmp_path / "with_a_mask")
    model.layers[1].mask.assign(np.full((8, 8), np.nan))
    with pytest.raises(ValueError, match=r"mask.*NaN"):
        tfmot_asp.permute(model, effort="fast")
    model.layers[1].mask.assign(np.zeros((8, 8)))
    dense[1].kernel[0, 0].assign(np.inf)
    with pytest.raises(ValueError, match="infinite"):
        tfmot_asp.permute(model, effort="fast")


def test_a_function_collects_what_it_is_asked_to():
    model = tf_keras.Sequential([tf_keras.Input((4,)), tf_keras.layers.Dense(2)])
    function = concrete_function(model, ((tf.TensorSpec((2, 4)),), {}), collect=lambda: {"more": tf.constant(3)})
    assert function.structured_outputs[2]["more"].shape == ()


@BOTH
def test_a_model_that_decides_by_values_is_told_what_to_do(keras_):
    class Deciding(keras_.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras_.layers.Dense(16)

        def call(self, x):
            y = self.dense(x)
            return y if bool(tf.reduce_sum(y) > 0) else -y

    model = Deciding()
    if keras_ is tf_keras:
        model.run_eagerly = True
    model(tf.ones((2, 32)))
    with pytest.raises(ValueError, match=r"decides in Python by the values .* take the models that it is made of"):
        trace(model, (None, 32))
