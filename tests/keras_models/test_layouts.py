import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tfmot_asp.keras_models.kernels import kernels_of
from tfmot_asp.keras_models.layers import all_layers
from tfmot_asp.keras_models.layouts import kind_of
from tfmot_asp.keras_models.which_keras import is_keras3, is_keras_model

keras3 = pytest.importorskip("keras", minversion="3")
KERAS = {"tf_keras": tf_keras, "keras": keras3}


@pytest.fixture(params=KERAS)
def keras(request):
    return KERAS[request.param]


def made(layer, *shape):
    """The layer, built by a call on zeros of the given shape (batch first)."""
    layer(tf.zeros(shape))
    return layer


def cases(keras):
    """Layers with one kernel, each with its input shape and the expected axes."""
    return [
        (keras.layers.Dense(5), (2, 3), "Dense", (0,), (1,)),
        (keras.layers.Dense(5), (2, 4, 3), "Dense", (0,), (1,)),
        (keras.layers.Conv1D(5, 2), (2, 6, 3), "Conv1D", (1,), (2,)),
        (keras.layers.Conv2D(5, 2), (2, 6, 6, 3), "Conv2D", (2,), (3,)),
        (keras.layers.Conv3D(5, 2), (2, 4, 4, 4, 3), "Conv3D", (3,), (4,)),
        (keras.layers.Conv1DTranspose(5, 2), (2, 6, 3), "Conv1DTranspose", (2,), (1,)),
        (keras.layers.Conv2DTranspose(5, 2), (2, 6, 6, 3), "Conv2DTranspose", (3,), (2,)),
        (keras.layers.Conv3DTranspose(5, 2), (2, 4, 4, 4, 3), "Conv3DTranspose", (4,), (3,)),
        (keras.layers.EinsumDense("ab,bc->ac", 5), (2, 3), "EinsumDense", (0,), (1,)),
        (keras.layers.EinsumDense("abc,cde->abde", (None, 2, 5)), (2, 4, 3), "EinsumDense", (0,), (1, 2)),
        (keras.layers.EinsumDense("abc,dc->abd", (None, 5)), (2, 4, 3), "EinsumDense", (1,), (0,)),
        (keras.layers.EinsumDense("...x,xy->...y", 5), (2, 4, 3), "EinsumDense", (0,), (1,)),
    ]


@pytest.mark.parametrize("index", range(12))
def test_the_reduction_axis_is_the_one_that_the_input_channel_selects(keras, index):
    """Not by convention: with one input channel alive, only its position on the reduction axis gets a gradient."""
    layer, shape, kind, reduction, outputs = cases(keras)[index]
    (kernel,) = kernels_of(made(layer, *shape))
    assert kernel.layout.kind == kind
    assert kernel.layout.reduction_axes == reduction
    assert kernel.layout.output_axes == outputs
    channel = 1
    inputs = np.zeros(shape, np.float32)
    inputs[..., channel] = np.random.default_rng(0).standard_normal(shape[:-1])
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(tf.constant(inputs)) * 1.7)
    gradient = tape.gradient(loss, kernel.tf_variable).numpy()
    (axis,) = reduction
    alive = np.abs(np.moveaxis(gradient, axis, 0)).reshape(gradient.shape[axis], -1).sum(axis=1)
    assert list(alive > 0) == [position == channel for position in range(3)]


def test_several_contracted_axes_are_flattened(keras):
    layer = made(keras.layers.EinsumDense("abcd,cde->abe", (None, 5)), 2, 3, 4, 6)
    (kernel,) = kernels_of(layer)
    assert (kernel.layout.reduction_axes, kernel.layout.output_axes) == ((0, 1), (2,))
    assert (kernel.reduction_size, kernel.output_size) == (24, 5)


def test_batch_letters_of_an_einsum_belong_to_neither_side(keras):
    layer = made(keras.layers.EinsumDense("bhd,hde->bhe", (3, 5)), 2, 3, 4)
    (kernel,) = kernels_of(layer)
    assert (kernel.layout.reduction_axes, kernel.layout.output_axes) == ((1,), (2,))


def test_grouped_convolution_keeps_one_groups_channels(keras):
    (kernel,) = kernels_of(made(keras.layers.Conv2D(8, 3, groups=2), 1, 5, 5, 6))
    assert kernel.layout.groups == 2
    assert kernel.reduction_size == 3


def test_depthwise_convolution_is_no_conv2d_and_has_no_reduction_axis(keras):
    (kernel,) = kernels_of(made(keras.layers.DepthwiseConv2D(3, depth_multiplier=2), 1, 5, 5, 6))
    assert kernel.layout.kind == "DepthwiseConv2D"
    assert (kernel.layout.reduction_axes, kernel.layout.output_axes) == ((), (2, 3))


@pytest.mark.parametrize("rank", [1, 2])
def test_separable_convolution_has_two_kernels(keras, rank):
    layer = made(getattr(keras.layers, f"SeparableConv{rank}D")(5, 3), 1, *[6] * rank, 4)
    depthwise, pointwise = kernels_of(layer)
    assert (depthwise.attribute, depthwise.layout.reduction_axes) == ("depthwise_kernel", ())
    assert (pointwise.attribute, pointwise.layout.reduction_axes) == ("pointwise_kernel", (rank,))
    assert pointwise.shape == (*[1] * rank, 4, 5)


def test_attention_gives_its_four_projections(keras):
    layer = keras.layers.MultiHeadAttention(2, 8)
    layer(tf.zeros((1, 3, 16)), tf.zeros((1, 3, 16)))
    found = kernels_of(layer)
    assert [kernel.attribute.split(".")[0] for kernel in found] == [
        "_query_dense",
        "_key_dense",
        "_value_dense",
        "_output_dense",
    ]
    assert [kernel.layout.reduction_axes for kernel in found] == [(0,), (0,), (0,), (0, 1)]


def test_wrappers_are_looked_through(keras):
    layer = made(keras.layers.TimeDistributed(keras.layers.Dense(5)), 2, 4, 3)
    (kernel,) = kernels_of(layer)
    assert kernel.layer is layer.layer
    assert kind_of(layer) == "Dense"


def test_subclasses_count_and_layers_without_kernel_do_not(keras):
    class Projection(keras.layers.Dense):
        pass

    assert kind_of(Projection(4)) == "Dense"
    assert kernels_of(Projection(4)) == []
    assert len(kernels_of(made(Projection(4), 1, 3))) == 1
    for layer in (keras.layers.ReLU(), keras.layers.BatchNormalization(), keras.layers.Embedding(4, 4)):
        assert kind_of(layer) is None
    assert kernels_of(made(keras.layers.BatchNormalization(), 1, 3)) == []


def test_the_variable_underneath_keeps_its_dtype_under_mixed_precision(keras):
    (kernel,) = kernels_of(made(keras.layers.Dense(4, dtype="mixed_float16"), 1, 3))
    assert isinstance(kernel.tf_variable, tf.Variable)
    assert type(kernel.tf_variable).__name__ == "ResourceVariable"
    assert kernel.tf_variable.dtype == tf.float32


def test_lora_keeps_its_kernel_variable():
    layer = made(keras3.layers.Dense(4), 1, 3)
    layer.enable_lora(2)
    (kernel,) = kernels_of(layer)
    assert isinstance(kernel.tf_variable, tf.Variable)
    assert kernel.shape == (3, 4)


def test_keras_3_is_told_from_tf_keras():
    assert is_keras3(keras3.layers.Dense(1))
    assert not is_keras3(tf_keras.layers.Dense(1))
    assert not is_keras3("Dense")
    assert is_keras_model(tf_keras.Sequential())
    assert not is_keras_model(tf_keras.layers.Dense(1))


def test_all_layers_finds_each_once_with_names_that_tell_them_apart(keras):
    shared = keras.layers.Dense(4, name="shared")
    inner = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(4, name="fc"), shared], name="inner")
    x = keras.layers.Input((4,), name="x")
    y = keras.layers.Dense(4, name="fc", activation=keras.layers.LeakyReLU(name="leaky"))(x)
    y = inner(shared(y))
    model = keras.Model(x, keras.layers.Dense(2, name="head")(y))
    found = all_layers(model)
    assert [name for name, layer in found if kernels_of(layer)] == ["fc", "shared", "inner/fc", "head"]
    assert len({id(layer) for _, layer in found}) == len(found)
    assert "leaky" in [name for name, _ in found]
    assert inner not in [layer for _, layer in found]


def test_all_layers_looks_into_subclassed_models_lists_and_dicts(keras):
    class Block(keras.layers.Layer):
        def __init__(self):
            super().__init__(name="block")
            self.parts = [keras.layers.Dense(4, name="fc"), keras.layers.Dense(4, name="fc")]
            self.named = {"out": keras.layers.Dense(4, name="out")}

        def call(self, x):
            for part in self.parts:
                x = part(x)
            return self.named["out"](x)

    class Net(keras.Model):
        def __init__(self):
            super().__init__(name="net")
            self.block = Block()
            self.head = keras.layers.Dense(2, name="head")

        def call(self, x):
            return self.head(self.block(x))

    model = Net()
    model(tf.zeros((1, 4)))
    found = all_layers(model)
    assert sorted(name for name, _ in found) == ["block/fc#1", "block/fc#2", "head", "out"]
    assert all(len(kernels_of(layer)) == 1 for _, layer in found)


def test_all_layers_of_a_single_layer_and_of_a_module():
    dense = tf_keras.layers.Dense(4, name="only")
    assert [(name, layer) for name, layer in all_layers(dense)] == [("only", dense)]
    module = tf.Module()
    module.part = dense
    assert [layer for _, layer in all_layers(module)] == [dense]


def test_deep_nesting_does_not_hit_the_recursion_limit():
    top = innermost = tf_keras.layers.Layer(name="root")
    for depth in range(1100):
        innermost.child = tf_keras.layers.Layer(name=f"layer_{depth}")
        innermost = innermost.child
    assert [layer for _, layer in all_layers(top)] == [innermost]
