"""Every multiply-add of a graph is counted, once: against counting by hand, one at a time."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from hypothesis import given, settings
from hypothesis import strategies as st
from tf_keras import layers

from tests import naive_products
from tfmot_asp.graph.products import GemmSize, count_products
from tfmot_asp.graph.trace import trace


def counted(function, *shapes):
    """The count of a function of activations with these shapes."""
    inputs = [tf_keras.Input(shape[1:], batch_size=shape[0]) for shape in shapes]
    outputs = layers.Lambda(lambda tensors: function(*tensors))(inputs)
    return count_products(trace(tf_keras.Model(inputs, outputs)))


def of_layer(layer, *shape):
    x = tf_keras.Input(shape[1:], batch_size=shape[0])
    return count_products(trace(tf_keras.Model(x, layer(x))))


def sizes(count):
    return [product.size for product in count.products]


@settings(max_examples=40)
@given(st.data())
def test_convolutions_of_any_stride_padding_dilation_and_groups(data):
    draw = data.draw
    rank = draw(st.integers(1, 3))
    groups = draw(st.integers(1, 3)) if rank < 3 else 1
    inputs, outputs = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    kernel = draw(st.tuples(*[st.integers(1, 3)] * rank))
    dilated = draw(st.booleans())  # TensorFlow takes no stride together with a dilation
    strides = (1,) * rank if dilated else (draw(st.integers(1, 3)),) * rank
    dilations = (draw(st.integers(1, 3)),) * rank if dilated else (1,) * rank
    padding = draw(st.sampled_from(["same", "valid"]))
    image = draw(st.tuples(*[st.integers(7, 9)] * rank))
    batch = draw(st.integers(1, 2))
    make = {1: layers.Conv1D, 2: layers.Conv2D, 3: layers.Conv3D}[rank]
    layer = make(outputs, kernel, strides, padding, dilation_rate=dilations, groups=groups)
    (product,) = of_layer(layer, batch, *image, inputs).products
    positions = batch * naive_products.output_positions(image, kernel, strides, dilations, padding)
    taps = int(np.prod(kernel))
    assert product.size == GemmSize(positions, outputs // groups, taps * inputs // groups, groups)
    assert product.size.multiply_adds == naive_products.convolution(positions, taps, inputs, outputs, groups)
    assert product.constant


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.sampled_from(["same", "valid"]))
@settings(max_examples=15)
def test_depthwise_and_transposed_convolutions(channels, multiplier, stride, padding):
    depthwise = layers.DepthwiseConv2D(3, stride, padding, depth_multiplier=multiplier)
    positions = 2 * naive_products.output_positions((7, 6), (3, 3), (stride, stride), (1, 1), padding)
    assert sizes(of_layer(depthwise, 2, 7, 6, channels)) == [GemmSize(positions, multiplier, 9, channels)]
    outputs = channels * multiplier
    assert GemmSize(positions, multiplier, 9, channels).multiply_adds == naive_products.convolution(
        positions, 9, channels, outputs, channels
    )
    # A transposed convolution sends each input value through the whole kernel.
    transposed = layers.Conv2DTranspose(multiplier, 3, stride, padding)
    (size,) = sizes(of_layer(transposed, 2, 7, 6, channels))
    assert (size.m, size.k) == (2 * 7 * 6, channels)
    assert size.multiply_adds == naive_products.convolution(2 * 7 * 6, 9, channels, multiplier)


def test_channels_first_and_conv_transposes_of_other_ranks():
    with tf.Graph().as_default():  # no CPU kernel, so only traced
        function = tf.function(lambda x, w: tf.nn.conv2d(x, w, 2, "VALID", data_format="NCHW"), autograph=False)
        concrete = function.get_concrete_function(tf.TensorSpec((2, 6, 9, 7)), tf.TensorSpec((3, 3, 2, 12)))
    from tfmot_asp.graph.flatten import trace_function

    (product,) = count_products(trace_function(concrete)).products
    assert product.size == GemmSize(2 * 4 * 3, 12 // 3, 3 * 3 * 2, 3)
    assert not product.constant
    assert sizes(of_layer(layers.Conv1DTranspose(5, 3), 2, 7, 4)) == [GemmSize(14, 15, 4)]
    assert sizes(of_layer(layers.Conv3DTranspose(5, 3), 2, 3, 3, 3, 4)) == [GemmSize(54, 135, 4)]


@given(st.data())
@settings(max_examples=40)
def test_einsums_of_a_weight(data):
    letters = data.draw(st.permutations("abcdefg"))
    amounts = data.draw(st.tuples(*[st.integers(0, 2)] * 3))
    rows, columns, summed = letters[: amounts[0] + 1], letters[3 : 3 + amounts[1]], letters[5 : 5 + amounts[2]]
    shared = data.draw(st.sampled_from([[], ["h"]]))
    extents = {letter: data.draw(st.integers(1, 4)) for letter in [*rows, *columns, *summed, *shared]}
    terms = [data.draw(st.permutations(part)) for part in (rows + summed + shared, columns + summed + shared)]
    output = data.draw(st.permutations(rows + columns + shared))
    equation = f"{''.join(terms[0])},{''.join(terms[1])}->{''.join(output)}"
    shapes = [[extents[letter] for letter in term] for term in terms]
    weight = tf.Variable(tf.zeros(shapes[1]))

    class Product(tf.Module):
        def __call__(self, x):
            return tf.einsum(equation, x, weight)

    products = count_products(trace(Product(), tf.TensorSpec(shapes[0]))).products
    if not terms[1]:
        return  # a product with a scalar is none of matrices, and TensorFlow may not make it an Einsum
    (product,) = products
    size = product.size
    assert (size.m, size.n, size.k, size.groups) == naive_products.roles(equation, extents)
    assert size.multiply_adds == naive_products.einsum(equation, shapes)
    assert product.constant


def test_einsums_with_an_ellipsis_and_of_activations():
    weight = tf.ones((5, 4, 6))
    (size,) = sizes(counted(lambda x: tf.einsum("...x,xyz->...yz", x, weight), (2, 3, 5)))
    assert size == GemmSize(6, 24, 5)
    attention = counted(lambda q, k: tf.einsum("bqhd,bkhd->bhqk", q, k), (2, 7, 3, 4), (2, 5, 3, 4))
    assert sizes(attention) == [GemmSize(7, 5, 4, groups=6)]
    assert not attention.products[0].constant
    batched = counted(lambda x, y: tf.einsum("...ab,...bc->...ac", x, y), (2, 1, 3, 4), (2, 6, 4, 5))
    assert batched.multiply_adds == 2 * 6 * 3 * 4 * 5
    assert counted(lambda x: tf.einsum("ab->a", x), (2, 3)).products == ()


@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
def test_matrix_products_either_way_round(transpose_a, transpose_b):
    left, right = ((7, 4) if transpose_a else (4, 7)), ((5, 7) if transpose_b else (7, 5))
    flags = {"transpose_a": transpose_a, "transpose_b": transpose_b}
    weight_right, weight_left = tf.ones(right), tf.ones(left)
    assert sizes(counted(lambda x: tf.matmul(x, weight_right, **flags), left)) == [GemmSize(4, 5, 7)]
    assert sizes(counted(lambda x: tf.matmul(weight_left, x, **flags), right)) == [GemmSize(5, 4, 7)]
    assert sizes(counted(lambda x, y: tf.matmul(x, y, **flags), left, right)) == [GemmSize(4, 5, 7)]
    # A batch of activations with one weight is one product with more rows, with a weight each it is a product each.
    assert sizes(counted(lambda x: tf.matmul(x, weight_right, **flags), (3, *left))) == [GemmSize(12, 5, 7)]
    assert sizes(counted(lambda x: tf.matmul(weight_left[None], x, **flags), (3, *right))) == [GemmSize(15, 4, 7)]
    several = tf.ones((3, *right))
    assert sizes(counted(lambda x: tf.matmul(x, several, **flags), (3, *left))) == [GemmSize(4, 5, 7, groups=3)]
    assert sizes(counted(lambda x: tf.matmul(x, several, **flags), (2, 1, *left))) == [GemmSize(4, 5, 7, groups=6)]


def test_products_of_constants_are_computed_once_and_not_counted():
    factor = tf.Variable(tf.ones((4, 4)))
    count = counted(lambda x: tf.matmul(x, tf.matmul(factor, factor)), (2, 4))
    assert sizes(count) == [GemmSize(2, 4, 4)]
    assert len(count.products[0].variables) == 1


@tf.function(autograph=False)
def nested(x):
    return tf.matmul(x, tf.ones((4, 4)))


def test_functions_within_functions_are_entered():
    outer = tf.function(lambda x: nested(nested(x)), autograph=False)
    assert sizes(counted(lambda x: outer(x) + nested(x), (2, 4))) == [GemmSize(2, 4, 4)] * 3


# Loops


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("cell", "gates"), [(layers.LSTM, 4), (layers.GRU, 3), (layers.SimpleRNN, 1)])
def test_recurrent_layers(cell, gates, bidirectional):
    layer = layers.Bidirectional(cell(8)) if bidirectional else cell(8)
    count = of_layer(layer, 3, 10, 5)
    assert count.multiply_adds == (1 + bidirectional) * 3 * 10 * gates * 8 * (5 + 8)
    assert {size.calls for size in sizes(count)} == {10}
    assert count.uncounted == ()


LOOPS = {
    "up": (lambda i: i < 7, lambda i: i + 1, 0, 7),
    "up to": (lambda i: i <= 7, lambda i: i + 1, 0, 8),
    "down": (lambda i: i > 0, lambda i: i + -2, 7, 4),
    "down to": (lambda i: i >= 1, lambda i: -2 + i, 7, 4),
    "by three": (lambda i: tf.constant(11) > i, lambda i: i + 3, 1, 4),
    "both": (lambda i: tf.logical_and(i < 9, i < 5), lambda i: i + 1, 0, 5),
    "never": (lambda i: i < 0, lambda i: i + 1, 0, 0),
}


@pytest.mark.parametrize("name", LOOPS)
def test_loops_with_a_counter(name):
    condition, step, start, times = LOOPS[name]

    def run(x):
        return tf.while_loop(lambda i, _: condition(i), lambda i, y: (step(i), nested(y)), (start, x))[1]

    assert counted(run, (2, 4)).multiply_adds == times * 2 * 4 * 4
    _, ran = tf.while_loop(lambda i, n: condition(i), lambda i, n: (step(i), n + 1), (start, 0))
    assert int(ran) == times


def test_loops_in_loops_and_an_upper_limit():
    def run(x):
        def inner(i, y):
            return i + 1, tf.while_loop(lambda j, _: j < 3, lambda j, z: (j + 1, nested(z)), (0, y))[1]

        return tf.while_loop(lambda i, _: True, inner, (0, x), maximum_iterations=5)[1]

    assert counted(run, (2, 4)).multiply_adds == 15 * 2 * 4 * 4
    mapped = counted(lambda x: tf.map_fn(lambda row: tf.matmul(row, row), x), (6, 4, 4))
    assert sizes(mapped) == [GemmSize(4, 4, 4, calls=6)]


@pytest.mark.parametrize(
    "condition",
    [lambda i, x: tf.reduce_sum(x) < 100, lambda i, x: tf.logical_or(i < 3, i < 5), lambda i, x: True],
    ids=["data", "or", "for ever"],
)
def test_loops_without_a_known_end_are_named(condition):
    count = counted(lambda x: tf.while_loop(condition, lambda i, y: (i + 1, nested(y)), (0, x))[1], (2, 4))
    assert count.products == ()
    (reason,) = count.uncounted
    assert "While" in reason
    assert "the number of its steps is not known (32 multiply-adds each)" in reason


def test_tensors_that_grow_in_a_loop_are_named():
    def run(x):
        return tf.while_loop(
            lambda i, _: i < 3,
            lambda i, y: (i + 1, tf.concat([y, tf.matmul(y, tf.ones((4, 4)))], 0)),
            (0, x),
            shape_invariants=(tf.TensorShape([]), tf.TensorShape([None, 4])),
        )[1]

    count = counted(run, (2, 4))
    assert count.products == ()
    assert "its size depends on the data" in count.uncounted[0]


def test_of_branches_the_larger_counts_and_is_named():
    count = counted(lambda x: tf.cond(tf.reduce_sum(x) > 0, lambda: nested(nested(x)), lambda: nested(x)), (2, 4))
    assert count.multiply_adds == 2 * 2 * 4 * 4
    assert "which branch runs depends on the data" in count.uncounted[0]
    equal = counted(lambda x: tf.switch_case(tf.cast(x[0, 0], tf.int32), [lambda: nested(x)] * 3), (2, 4))
    assert equal.multiply_adds == 2 * 4 * 4
    assert equal.uncounted == ()


def test_what_may_hide_products_is_named():
    hidden = counted(lambda x: tf.ensure_shape(tf.py_function(lambda y: y, [x], tf.float32), (2, 4)), (2, 4))
    assert "EagerPyFunc" in hidden.uncounted[0]
    sparse = tf.sparse.from_dense(np.eye(4, dtype=np.float32))
    assert "SparseTensorDenseMatMul" in counted(lambda x: tf.sparse.sparse_dense_matmul(sparse, x), (4, 4)).uncounted[0]
    harmless = counted(lambda x: tf.nn.softmax(tf.cast(tf.image.resize(x, (3, 3)), tf.float16)), (1, 4, 4, 2))
    assert (harmless.products, harmless.uncounted) == ((), ())


def test_a_whole_network_against_tensorflows_own_profiler():
    from tensorflow.python.framework import ops
    from tensorflow.python.profiler.internal import flops_registry

    assert flops_registry  # registers the formulas when it is imported
    model = tf_keras.applications.MobileNetV2(weights=None, input_shape=(96, 96, 3))
    function = tf.function(lambda x: model(x, training=False)).get_concrete_function(tf.TensorSpec((2, 96, 96, 3)))
    graph = function.graph
    flops = sum(
        ops.get_stats_for_node_def(graph, op.node_def, "flops").value
        for op in graph.get_operations()
        if op.type in ("Conv2D", "MatMul", "DepthwiseConv2dNative")
    )
    assert 2 * count_products(trace(model)).multiply_adds == flops
