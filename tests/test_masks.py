import math
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tensorflow_model_optimization.python.core.sparsity.keras import pruning_utils

from tests import naive_masks
from tfmot_asp import masks

PATTERNS = st.integers(2, 9).flatmap(lambda n: st.tuples(st.integers(1, n - 1), st.just(n)))
FLOATS = [np.float16, np.float32, np.float64, ml_dtypes.bfloat16]


@st.composite
def kernels(draw, dtypes=tuple(FLOATS)):
    """A small array of any rank with many ties, and one to all of its axes as reduction axes."""
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=5, min_side=1, max_side=9).filter(lambda s: math.prod(s) <= 600))
    seed = draw(st.integers(0, 2**32 - 1))
    generator = np.random.default_rng(seed)
    values = generator.integers(-3, 4, shape) if draw(st.booleans()) else generator.standard_normal(shape)
    axes = draw(st.permutations(range(len(shape))))[: draw(st.integers(1, len(shape)))]
    return values.astype(draw(st.sampled_from(dtypes))), tuple(axes)


@given(kernels(), PATTERNS)
def test_mask_is_the_naive_one(kernel, m_by_n):
    values, axes = kernel
    score = np.abs(values)
    got = masks.m_by_n_mask(score, axes, m_by_n)
    assert got.dtype == bool
    np.testing.assert_array_equal(got, naive_masks.mask(score, axes, m_by_n))


@given(kernels(), PATTERNS)
def test_any_score_is_ranked_as_it_is_negative_ones_too(kernel, m_by_n):
    score, axes = kernel
    np.testing.assert_array_equal(masks.m_by_n_mask(score, axes, m_by_n), naive_masks.mask(score, axes, m_by_n))


@given(kernels(), PATTERNS)
@settings(max_examples=60)
def test_tensors_get_the_same_mask_as_arrays(kernel, m_by_n):
    values, axes = kernel
    expected = masks.m_by_n_mask(values, axes, m_by_n)
    tensor = tf.constant(values)
    got = masks.m_by_n_mask(tensor, axes, m_by_n)
    assert got.dtype == tf.bool
    np.testing.assert_array_equal(got.numpy(), expected)
    np.testing.assert_array_equal(masks.m_by_n_mask(tf.Variable(tensor), axes, m_by_n).numpy(), expected)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16, tf.float32, tf.float64])
@pytest.mark.parametrize(("shape", "axes"), [((3, 3, 8, 4), 2), ((7, 5), 0), ((2, 6, 5), (0, 1)), ((4, 3, 5), (2, 0))])
def test_compiled_functions_get_the_same_mask(shape, axes, dtype, jit_compile):
    values = np.random.default_rng(3).integers(-4, 5, shape)
    values = values.astype(np.float32) / 3
    score = tf.abs(tf.cast(values, dtype))
    traced = tf.function(lambda s: masks.m_by_n_mask(s, axes, (2, 4)), jit_compile=jit_compile, autograph=False)
    np.testing.assert_array_equal(traced(score).numpy(), naive_masks.mask(score.numpy(), axes, (2, 4)))


@given(kernels(), PATTERNS)
def test_every_full_stripe_keeps_exactly_n_minus_m(kernel, m_by_n):
    values, axes = kernel
    m, n = m_by_n
    mask = masks.m_by_n_mask(np.zeros_like(values), axes, m_by_n)
    for stripe in naive_masks.stripes(mask.shape, axes, n):
        assert [mask[index] for index in stripe] == [i < n - m for i in range(len(stripe))]


def test_an_incomplete_stripe_is_padded_with_zeros_that_lose():
    score = np.array([5, 1, 2, 3, -1, -2, -3], np.float32)
    np.testing.assert_array_equal(masks.m_by_n_mask(score, 0), [1, 0, 0, 1, 1, 1, 0])
    np.testing.assert_array_equal(masks.m_by_n_mask(score[:5], 0), [1, 0, 0, 1, 1])


@pytest.mark.parametrize("dtype", FLOATS)
def test_nan_ranks_below_every_number_and_the_count_stays_exact(dtype):
    score = np.array([np.nan, 1, np.nan, np.nan, np.nan, np.nan, np.nan, np.nan, -np.inf, np.nan, 0, np.inf], dtype)
    expected = [1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1]
    np.testing.assert_array_equal(masks.m_by_n_mask(score, 0), expected)
    np.testing.assert_array_equal(masks.m_by_n_mask(tf.constant(score), 0).numpy(), expected)


def test_agrees_with_tfmot_where_tfmot_is_right():
    weight = np.random.default_rng(0).standard_normal((3, 3, 32, 16)).astype(np.float32)
    arranged = pruning_utils.weights_rearrange(tf.constant(weight))
    theirs = pruning_utils.m_by_n_sparsity_mask_prepare(
        pruning_utils.generate_m_by_n_mask(arranged), tf.TensorShape(weight.shape)
    )
    np.testing.assert_array_equal(masks.m_by_n_mask(np.abs(weight), 2), theirs.numpy().astype(bool))


@given(kernels(), PATTERNS)
def test_violations_are_counted_stripe_by_stripe(kernel, m_by_n):
    values, axes = kernel
    violations = naive_masks.violations(values, axes, m_by_n)
    assert masks.violations(values, axes, m_by_n) == violations
    m, n = m_by_n
    asking = sum(len(stripe) > n - m for stripe in naive_masks.stripes(values.shape, axes, n))
    assert masks.standing(values, axes, m_by_n) == masks.Standing(asking, violations)


@given(st.integers(1, 12), st.integers(1, 3), PATTERNS)
def test_dense_weights_are_never_broken_and_pruned_ones_hold_where_the_pattern_asks_for_zeros(inputs, outputs, m_by_n):
    m, n = m_by_n
    weight = np.random.default_rng(inputs).uniform(1, 2, (inputs, outputs))
    dense = masks.standing(weight, 0, m_by_n)
    assert (dense.asks, dense.holds, dense.broken) == (inputs > n - m, False, False)
    pruned = masks.standing(masks.apply_mask(weight, masks.m_by_n_mask(weight, 0, m_by_n)), 0, m_by_n)
    assert (pruned.asks, pruned.holds, pruned.broken) == (dense.asks, dense.asks, False)


def test_a_kernel_that_sums_over_no_channels_is_asked_for_no_zeros():
    assert masks.standing(np.ones((3, 3, 8)), ()) == masks.Standing(0, 0)
    assert not masks.standing(np.zeros((3, 3, 8)), ()).holds


@given(kernels(), PATTERNS)
def test_a_masked_weight_has_no_violation_and_masking_it_again_changes_nothing(kernel, m_by_n):
    values, axes = kernel
    masked = masks.apply_mask(values, masks.m_by_n_mask(np.abs(values), axes, m_by_n))
    assert masked.dtype == values.dtype
    assert masks.violations(masked, axes, m_by_n) == 0
    again = masks.apply_mask(masked, masks.m_by_n_mask(np.abs(masked), axes, m_by_n))
    np.testing.assert_array_equal(again, masked)


@given(kernels(dtypes=(np.float32, np.float64)), PATTERNS, st.floats(-0.5, 1.5))
def test_partial_mask_takes_the_stripes_that_lose_least(kernel, m_by_n, fraction):
    values, axes = kernel
    score = np.abs(values)
    full = naive_masks.mask(score, axes, m_by_n)
    all_stripes = list(naive_masks.stripes(score.shape, axes, m_by_n[1]))
    count = round(min(max(fraction, 0.0), 1.0) * len(all_stripes))
    got = masks.partial_m_by_n_mask(score, axes, m_by_n, fraction)
    masked = []
    for stripe in all_stripes:
        kept = [bool(got[index]) for index in stripe]
        if not all(kept):
            assert kept == [bool(full[index]) for index in stripe]
        loss = sum(float(score[index]) for index in stripe if not full[index])
        masked.append((loss, not all(kept), any(not full[index] for index in stripe)))
    taken = [loss for loss, was_masked, _ in masked if was_masked]
    left = [loss for loss, was_masked, maskable in masked if maskable and not was_masked]
    assert len(taken) <= count
    assert max(taken, default=0.0) <= min(left, default=math.inf) + 1e-5
    tensor = masks.partial_m_by_n_mask(tf.constant(score), axes, m_by_n, tf.constant(fraction, tf.float64))
    np.testing.assert_array_equal(tensor.numpy(), got)


def test_partial_mask_ends_in_the_whole_pattern_and_starts_with_nothing():
    score = np.random.default_rng(1).random((16, 8)).astype(np.float32)
    assert masks.partial_m_by_n_mask(score, 0, (2, 4), 0.0).all()
    np.testing.assert_array_equal(masks.partial_m_by_n_mask(score, 0, (2, 4), 1.0), masks.m_by_n_mask(score, 0))
    half = masks.partial_m_by_n_mask(score, 0, (2, 4), 0.5)
    assert np.count_nonzero(~half) == 16 * 8 // 4


def test_apply_mask_leaves_plain_zeros_whatever_was_there():
    weight = np.array([np.nan, np.inf, -1.0, 2.0], np.float32)
    mask = np.array([False, False, False, True])
    for got in (masks.apply_mask(weight, mask), masks.apply_mask(tf.constant(weight), tf.constant(mask)).numpy()):
        np.testing.assert_array_equal(got, [0, 0, 0, 2])
        assert not np.signbit(got).any()


def test_retained_magnitude_uses_the_given_score():
    weight = np.array([[1.0], [-2.0], [4.0], [8.0]], np.float32)
    assert masks.retained_magnitude(weight, 0) == 12
    assert masks.retained_magnitude(weight, 0, score=np.array([[9], [8], [1], [0]])) == 3
    assert masks.retained_magnitude(weight.astype(ml_dtypes.bfloat16), 0, (3, 4)) == 8


def test_empty_kernels_have_empty_masks():
    assert masks.m_by_n_mask(np.zeros((0, 4), np.float32), 0).shape == (0, 4)
    assert masks.m_by_n_mask(np.zeros((8, 0), np.float32), 0).shape == (8, 0)
    assert masks.violations(np.zeros((0, 4)), 0) == 0


@pytest.mark.parametrize("axes", [2, -3, (0, 0), ()])
def test_axes_that_are_not_there_are_refused(axes):
    with pytest.raises(ValueError, match="distinct axes of a kernel of rank 2"):
        masks.m_by_n_mask(np.ones((4, 4)), axes)


def test_a_tensor_without_static_shape_is_refused():
    traced = tf.function(lambda s: masks.m_by_n_mask(s, 0), autograph=False)
    with pytest.raises(ValueError, match="static shape"):
        traced.get_concrete_function(tf.TensorSpec((None, 4), tf.float32))


def test_complex_values_are_refused():
    with pytest.raises(ValueError, match="complex values have no order"):
        masks.m_by_n_mask(np.ones(4, complex), 0)


def test_arrays_need_no_tensorflow():
    code = (
        "import sys, numpy as np\n"
        "from tfmot_asp import masks\nfrom tfmot_asp.hardware import rule\nfrom tfmot_asp.keras_models import layouts\n"
        "assert masks.violations(np.ones((8, 8)), 0) == 16\n"
        "masks.m_by_n_mask(np.ones((8, 8)), 0)\n"
        "assert not {'tensorflow', 'tf_keras', 'keras'} & set(sys.modules), 'imported a framework'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
