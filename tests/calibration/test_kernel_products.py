"""The rows that are taken out of a tensor, times the matrix that a kernel is seen as, are what the layer computes."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from hypothesis import given, settings
from hypothesis import strategies as st

from tfmot_asp.calibration.data import collect
from tfmot_asp.calibration.kernel_products import KernelMatrix, NotFollowedError, ProductFinder
from tfmot_asp.calibration.rows import ConvolutionRows, spread
from tfmot_asp.calibration.traced import trace_for
from tfmot_asp.graph.execute import Interpreter
from tfmot_asp.keras_models.kernels import kernels_by_name, layers_with_kernels
from tfmot_asp.keras_models.variables import read

BOTH = pytest.mark.parametrize("k", [tf_keras, keras], ids=["tf_keras", "keras3"])
RNG = np.random.default_rng(0)


def products(model, x):
    """For each kernel the outputs of its products as its op computes them, and as rows times matrix."""
    [traced] = trace_for(model, collect(model, x))
    interpreter = Interpreter(traced.graph)
    finder = ProductFinder(traced.graph, interpreter)
    values = dict(zip(traced.graph.inputs, traced.batches[0].leaves, strict=True))
    for op in traced.graph.ops:
        if op.outputs and op.outputs[0] in interpreter.varying:
            values.update(zip(op.outputs, interpreter.run(op, interpreter.inputs_of(op, values)), strict=True))
    for name, kernel in kernels_by_name(layers_with_kernels(model)).items():
        matrix = KernelMatrix(kernel)
        weight = matrix.of(read(kernel.tf_variable))
        np.testing.assert_array_equal(matrix.back(weight), read(kernel.tf_variable))
        for site in finder.sites(kernel):
            rows = site.rows.take(values[site.data], None).numpy()
            blocks = []
            for block in site.blocks:
                columns = rows[block.source] if block.order is None else rows[block.source][:, block.order]
                blocks.append(columns @ weight[np.ix_(block.rows, block.columns)])
            yield name, site, values[site.op.outputs[0]].numpy(), blocks


def check(model, x, kernels):
    """Checks all products whose op has the blocks' channels last."""
    names = set()
    for name, _, output, blocks in products(model, x):
        found = np.concatenate(blocks, -1).reshape(output.shape)
        np.testing.assert_allclose(found, output, rtol=1e-4, atol=1e-5)
        names.add(name)
    assert len(names) == kernels


@BOTH
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(("strides", "dilation"), [(1, 1), (2, 1), (3, 1), (1, 2), (1, 3)])
def test_convolutions(k, padding, strides, dilation):
    x = k.Input((11, 9, 4))
    y = k.layers.Conv2D(8, (3, 2), padding=padding, strides=strides, dilation_rate=dilation, use_bias=False)(x)
    check(k.Model(x, y), RNG.normal(size=(2, 11, 9, 4)).astype("float32"), 1)


@BOTH
def test_one_and_three_dimensions_groups_and_separable(k):
    layers = k.layers
    x = k.Input((12, 4))
    y = layers.Conv1D(8, 3, strides=2, padding="causal", use_bias=False)(x)
    check(k.Model(x, y), RNG.normal(size=(2, 12, 4)).astype("float32"), 1)
    x = k.Input((5, 6, 7, 4))
    y = layers.Conv3D(8, (2, 3, 2), strides=(1, 2, 1), padding="same", use_bias=False)(x)
    check(k.Model(x, y), RNG.normal(size=(2, 5, 6, 7, 4)).astype("float32"), 1)
    x = k.Input((6, 6, 8))
    y = layers.Conv2D(16, 3, groups=4, padding="same", use_bias=False)(x)
    check(k.Model(x, y), RNG.normal(size=(2, 6, 6, 8)).astype("float32"), 1)


@BOTH
def test_dense_layers_of_any_rank_einsums_and_attention(k):
    layers = k.layers
    x = k.Input((5, 6, 8))
    y = layers.Dense(4, use_bias=False)(x)
    y = layers.EinsumDense("abcd,de->abce", output_shape=(5, 6, 4))(y)
    y = layers.EinsumDense("abcd,ced->abe", output_shape=(5, 3))(y)  # contracted axes apart from each other
    check(k.Model(x, layers.Dense(3)(layers.Flatten()(y))), RNG.normal(size=(2, 5, 6, 8)).astype("float32"), 4)
    x = k.Input((5, 8))
    y = layers.MultiHeadAttention(2, 3)(x, x)
    check(k.Model(x, y), RNG.normal(size=(2, 5, 8)).astype("float32"), 4)


@BOTH
def test_an_einsum_with_a_kernel_for_each_head_is_several_products(k):
    x = k.Input((5, 3, 8))
    y = k.layers.EinsumDense("abhc,hcd->abhd", output_shape=(5, 3, 4))(x)
    found = list(products(k.Model(x, y), RNG.normal(size=(2, 5, 3, 8)).astype("float32")))
    [(_, site, output, blocks)] = found
    assert len(site.blocks) == 3
    np.testing.assert_allclose(np.stack(blocks, 1).reshape(output.shape), output, rtol=1e-4, atol=1e-5)


@BOTH
def test_a_shared_layer_has_a_product_for_each_call(k):
    x = k.Input((4,))
    shared = k.layers.Dense(4, use_bias=False)
    model = k.Model(x, shared(k.layers.ReLU()(shared(x))))
    check(model, RNG.normal(size=(3, 4)).astype("float32"), 1)
    assert len(list(products(model, RNG.normal(size=(3, 4)).astype("float32")))) == 2


def test_kernels_that_cannot_be_followed_say_why():
    k = tf_keras

    class Joined(k.layers.Layer):
        def __init__(self):
            super().__init__()
            self.a, self.b = k.layers.Dense(4, name="a"), k.layers.Dense(4, name="b")

        def build(self, shape):
            self.a.build(shape)
            self.b.build(shape)

        def call(self, x):
            return x @ tf.concat([self.a.kernel, self.b.kernel], 1)

    class Looping(k.layers.Layer):
        def __init__(self):
            super().__init__()
            self.inner = k.layers.Dense(4, name="inner")

        def build(self, shape):
            self.inner.build(shape)

        def call(self, x):
            return tf.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, self.inner(y)), (0, x))[1]

    x = k.Input((4,))
    model = k.Model(x, Joined()(Looping()(x)))
    [traced] = trace_for(model, collect(model, np.zeros((2, 4), np.float32)))
    finder = ProductFinder(traced.graph, Interpreter(traced.graph))
    kernels = kernels_by_name(layers_with_kernels(model))
    with pytest.raises(NotFollowedError, match=r"inside of .*While"):
        finder.sites(kernels["inner"])
    with pytest.raises(NotFollowedError, match="go into ConcatV2"):
        finder.sites(kernels["a"])


def test_rows_in_the_column_order_of_extract_patches():
    x = RNG.normal(size=(2, 7, 6, 3)).astype("float32")
    rows = ConvolutionRows((3, 2), (2, 1), (1, 2), "SAME", True).take(tf.constant(x), None)[0]
    patches = tf.image.extract_patches(x, [1, 3, 2, 1], [1, 2, 1, 1], [1, 1, 2, 1], "SAME")
    np.testing.assert_array_equal(rows, tf.reshape(patches, rows.shape))


@settings(max_examples=50)
@given(st.integers(1, 500), st.integers(1, 500), st.integers(0, 5))
def test_spread_positions_are_even_and_none_twice(count, wanted, seed):
    positions = spread(count, wanted, np.random.default_rng(seed))
    if wanted >= count:
        assert positions is None
        return
    assert len(positions) == wanted
    assert 0 <= positions.min() <= positions.max() < count
    share = count / wanted
    assert (np.abs(positions - (np.arange(wanted) + 0.5) * share) <= share / 2 + 1).all()
    assert (np.diff(positions) >= 0).all()
