"""One table says which ops are matrix products: whatever is in it is found, counted and tied alike."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tests.private_ops import fused_conv2d, fused_matmul, xla_einsum
from tfmot_asp.graph.flatten import trace_function
from tfmot_asp.graph.gemms import find_gemms
from tfmot_asp.graph.ops import PRODUCTS, channel_axis, channels_last, product_of, spatial_axes
from tfmot_asp.graph.products import count_products
from tfmot_asp.permutation.rules import op_types

raw = tf.raw_ops


def weight(*shape):
    return tf.Variable(np.random.default_rng(0).normal(size=shape).astype(np.float32), name="weight")


# Op type -> function of data, shape of the data, shape of the weight, its reduction and output axes, multiply-adds.
FORMS = {
    "Conv": (
        lambda x, w: raw.Conv(input=x, filter=w, strides=[1, 1, 1, 1], padding="SAME"),
        (2, 4, 4, 6), (3, 3, 6, 5), (2,), (3,), 2 * 16 * 9 * 30,
    ),
    "_FusedConv2D": (
        lambda x, w: fused_conv2d(x, w, tf.ones(5)), (2, 4, 4, 6), (3, 3, 6, 5), (2,), (3,), 2 * 16 * 9 * 30,
    ),
    "_FusedMatMul": (
        lambda x, w: fused_matmul(x, w, tf.ones(5), transpose_b=True), (4, 6), (5, 6), (1,), (0,), 4 * 30,
    ),
    "SparseMatMul": (lambda x, w: tf.matmul(x, w, b_is_sparse=True), (4, 6), (6, 5), (0,), (1,), 4 * 30),
    "XlaEinsum": (lambda x, w: xla_einsum("ab,cb->ac", x, w), (4, 6), (5, 6), (1,), (0,), 4 * 30),
    "Einsum": (lambda x, w: tf.einsum("ab,cb->ac", x, w), (4, 6), (5, 6), (1,), (0,), 4 * 30),
    "BatchMatMulV2": (lambda x, w: tf.matmul(x, w), (7, 4, 6), (6, 5), (0,), (1,), 7 * 4 * 30),
}  # fmt: skip


@pytest.mark.parametrize("op_type", FORMS)
def test_a_product_is_found_and_counted_whatever_its_form(op_type):
    function, data, shape, reduction, outputs, work = FORMS[op_type]
    kernel = weight(*shape)
    run = tf.function(lambda x: function(x, kernel), input_signature=[tf.TensorSpec(data)], autograph=False)
    graph = trace_function(run.get_concrete_function())
    (gemm,) = find_gemms(graph)
    assert (gemm.type, gemm.weight_name) == (op_type, "weight")
    assert (gemm.reduction_axes, gemm.output_axes) == (reduction, outputs)
    np.testing.assert_array_equal(gemm.weight, kernel.numpy())
    (product,) = count_products(graph).products
    assert product.constant
    assert product.size.multiply_adds == work


def test_a_weight_on_the_left_and_groups():
    kernel, grouped = weight(5, 6), weight(1, 1, 2, 6)

    @tf.function(input_signature=[tf.TensorSpec((6, 3)), tf.TensorSpec((1, 4, 4, 6))], autograph=False)
    def run(x, image):
        return kernel @ x, raw.Conv(input=image, filter=grouped, strides=[1, 1, 1, 1], padding="SAME", groups=3)

    graph = trace_function(run.get_concrete_function())
    left, conv = find_gemms(graph)
    assert (left.reduction_axes, left.output_axes) == ((1,), (0,))
    assert conv.groups == 3
    assert [product.size.groups for product in count_products(graph).products] == [1, 3]


def test_an_einsum_of_one_operand_is_no_product():
    run = tf.function(lambda x: raw.Einsum(inputs=[x], equation="ab->ba"), autograph=False)
    graph = trace_function(run.get_concrete_function(tf.TensorSpec((2, 3))))
    assert [product_of(op) for op in graph.ops if op.type == "Einsum"] == [None]
    assert find_gemms(graph) == []
    assert count_products(graph).products == count_products(graph).uncounted == ()


def test_every_product_has_a_rule():
    assert set(PRODUCTS) <= op_types()


@pytest.mark.parametrize(
    ("data_format", "rank", "axis"),
    [("NHWC", 4, 3), (b"NHWC", 3, 2), ("NDHWC", 5, 4), ("NWC", 3, 2), ("CHANNELS_LAST", 4, 3), ("NCHW", 4, 1),
     (b"NCDHW", 5, 1), ("NCHW_VECT_C", 5, 1), (b"CHANNELS_FIRST", 4, 1)],
)  # fmt: skip
def test_channel_axis(data_format, rank, axis):
    class FakeOp:
        def attr(self, name, default=None):
            return data_format if name == "data_format" else default

    assert channels_last(data_format) == (axis == rank - 1)
    assert channel_axis(FakeOp(), rank) == axis
    assert spatial_axes(FakeOp(), rank) == [i for i in range(1, rank) if i != axis]


def test_verify_reads_every_form_of_a_convolution(tmp_path):
    """A ``Conv`` in a SavedModel was not seen."""
    from tfmot_asp.export import verify

    class Layer(tf_keras.layers.Layer):
        def build(self, shape):
            self.kernel = self.add_weight("kernel", (3, 3, 16, 16))

        def call(self, x):
            return raw.Conv(input=x, filter=self.kernel, strides=[1, 1, 1, 1], padding="SAME")

    model = tf_keras.Sequential([tf_keras.Input((8, 8, 16)), Layer()])
    model.export(str(tmp_path / "saved"))
    (row,) = verify(tmp_path / "saved").layers
    assert (row.type, row.shape, row.reduction_axes) == ("Conv", (3, 3, 16, 16), (2,))
