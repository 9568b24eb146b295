import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from tf_keras import layers

from tfmot_asp.hardware.libraries import ALIGNMENT, best_case, misaligned, tensorrt_verdict
from tfmot_asp.keras_models.kernels import kernels_of


def verdicts(layer, *shape):
    layer(tf.zeros(shape))
    return [tensorrt_verdict(kernel) for kernel in kernels_of(layer)]


@pytest.mark.parametrize(
    ("layer", "shape", "usable", "gains", "reason"),
    [
        (layers.Dense(256), (1, 256), True, True, None),
        (layers.Dense(255), (1, 256), True, False, "small: 255 outputs"),
        (layers.Dense(256), (1, 252), True, False, "small: sums over 252"),
        (layers.Dense(256), (1, 258), False, False, "258 inputs, no multiple of 4"),
        (layers.Conv2D(256, 3), (1, 4, 4, 32), True, True, None),  # 9 x 32 = 288 inputs count
        (layers.Conv2D(256, 1), (1, 4, 4, 32), True, False, "small: sums over 32"),
        (layers.Conv1D(256, 3), (1, 4, 128), True, True, None),
        (layers.Conv2D(256, 1, groups=2), (1, 4, 4, 512), False, False, "2 groups"),
        (layers.DepthwiseConv2D(3), (1, 4, 4, 256), False, False, "depthwise, a group per channel"),
        (layers.Conv2DTranspose(256, 3), (1, 4, 4, 256), False, False, "a transposed convolution"),
        (layers.Conv3D(256, 1), (1, 2, 2, 2, 256), False, False, "a 3-D convolution"),
        (layers.EinsumDense("abc,cde->abde", (None, 4, 64)), (1, 2, 256), True, True, None),
        (layers.EinsumDense("abc,bcd->abd", (2, 256)), (1, 2, 256), False, False, "no product with one matrix"),
        (layers.EinsumDense("ab,b->ab", 256), (1, 256), False, False, "no product with one matrix"),
    ],
)
def test_tensorrts_rules(layer, shape, usable, gains, reason):
    (verdict,) = verdicts(layer, *shape)
    assert (verdict.usable, verdict.gains) == (usable, gains)
    assert verdict.reason is None if reason is None else reason in verdict.reason
    assert "https://" in verdict.source


def test_of_separable_convolutions_only_the_pointwise_kernel_is_usable():
    depthwise, pointwise = verdicts(layers.SeparableConv2D(256, 3), 1, 4, 4, 256)
    assert (depthwise.usable, pointwise.usable, pointwise.gains) == (False, True, True)


def test_attention_projections_are_products_with_one_matrix():
    attention = layers.MultiHeadAttention(4, 64)
    attention(tf.zeros((1, 3, 256)), tf.zeros((1, 3, 256)))
    assert [tensorrt_verdict(kernel).gains for kernel in kernels_of(attention)] == [True] * 4


@given(st.sampled_from(["fp16", "int8"]), st.none() | st.integers(1, 200), st.integers(1, 200), st.integers(1, 200))
def test_alignment_is_divisibility(precision, m, n, k):
    sparse, dense = {"fp16": (16, 8), "int8": (32, 16)}[precision]
    bad = misaligned(precision, m=m, n=n, k=k)
    assert ("N" in bad) == (n % sparse != 0)
    assert ("K" in bad) == (k % sparse != 0)
    assert ("M" in bad) == (m is not None and m % dense != 0)
    assert list(ALIGNMENT) == ["fp16", "int8"]


@given(st.floats(0, 1))
def test_the_best_case_is_amdahls_law(share):
    speedup = best_case(share)
    assert 1 <= speedup <= 2
    assert 1 / speedup == pytest.approx((1 - share) + share / 2)  # the rest as before, the share in half its time


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_is_a_share(share):
    with pytest.raises(ValueError, match="share must be a number from 0 to 1, got"):
        best_case(share)
