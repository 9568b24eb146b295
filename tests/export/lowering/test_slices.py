"""XLA's slices in plain ops: TensorFlow's own op is the oracle."""

import numpy as np
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow.compiler.tf2xla.python import xla

from tfmot_asp.export.lowering.frozen import freeze
from tfmot_asp.export.lowering.lower import lower

DTYPES = (tf.float32, tf.float16, tf.int32, tf.int64, tf.bool)


def lowered(function, *specs):
    """The op types and the function that a function of tensors becomes."""

    @tf.function(input_signature=[tf.TensorSpec(s.shape, s.dtype, f"x{i}") for i, s in enumerate(specs)])
    def serve(*tensors):
        return {"y": function(*tensors)}

    frozen = lower(freeze(serve.get_concrete_function(), "f"), fold_batch_norm=False, names={})
    return {node.op for node in frozen.graph_def.node}, frozen.function(["y"])


def values(shape, dtype, seed):
    numbers = np.random.default_rng(seed).integers(-9, 9, shape)
    return tf.constant(numbers % 2 == 0 if dtype == tf.bool else numbers.astype(dtype.as_numpy_dtype))


@st.composite
def slicings(draw):
    """A tensor's shape with some axes open, a slice's, where it starts, in range and out of it, and a type."""
    whole = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    part = [draw(st.integers(0 if axis else 1, size)) for axis, size in enumerate(whole)]
    opened = [draw(st.booleans()) for _ in whole]
    fixed = [draw(st.booleans()) for _ in whole]  # starts that the graph knows
    starts = [draw(st.integers(-3, 0 if both else 8)) for both in np.logical_and(opened, fixed)]
    index = draw(st.sampled_from((tf.int32, tf.int64)))
    return whole, part, starts, fixed, opened, draw(st.sampled_from(DTYPES)), index, draw(st.booleans())


def started(starts, fixed, given, packed):
    """The starts as a vector: packed of numbers, known and given, or given whole."""
    known = tf.constant(starts, given.dtype)
    return tf.stack([known[i] if at else given[i] for i, at in enumerate(fixed)]) if packed else given


@settings(max_examples=20, deadline=None)
@given(slicings(), st.integers(0, 99))
def test_an_update_is_what_tensorflow_makes_of_it(slicing, seed):
    whole, part, starts, fixed, opened, dtype, index, packed = slicing
    x, y, at = values(whole, dtype, seed), values(part, dtype, seed + 1), tf.constant(starts, index)
    # Open axes of one place are of one size, as a batch is.
    sizes = [(None if o else n, None if o and m == n else m) for n, m, o in zip(whole, part, opened, strict=True)]
    types, function = lowered(
        lambda a, b, s: xla.dynamic_update_slice(a, b, started(starts, fixed, s, packed)),
        *(tf.TensorSpec(shape, dtype) for shape in zip(*sizes, strict=True)),
        tf.TensorSpec([len(whole)], index),
    )
    assert not any(kind.startswith("Xla") for kind in types)
    np.testing.assert_array_equal(function(x0=x, x1=y, x2=at)["y"], xla.dynamic_update_slice(x, y, at))


@settings(max_examples=20, deadline=None)
@given(slicings(), st.integers(0, 99), st.booleans())
def test_a_slice_is_what_tensorflow_makes_of_it(slicing, seed, is_xla):
    whole, part, starts, fixed, opened, dtype, index, packed = slicing
    if not is_xla:  # TensorFlow's own op takes what is in range
        starts = [min(max(start, 0), n - size) for start, n, size in zip(starts, whole, part, strict=True)]
    x, at, sizes = values(whole, dtype, seed), tf.constant(starts, index), tf.constant(part, index)
    take = xla.dynamic_slice if is_xla else tf.slice
    types, function = lowered(
        lambda a, s: take(a, started(starts, fixed, s, packed), sizes),
        tf.TensorSpec([None if o else n for n, o in zip(whole, opened, strict=True)], dtype),
        tf.TensorSpec([len(whole)], index),
    )
    assert not any(kind.startswith("Xla") for kind in types)
    assert is_xla or "Slice" not in types or (packed and all(fixed))
    np.testing.assert_array_equal(function(x0=x, x1=at)["y"], take(x, at, sizes))
