"""Keras masks pass through the wrapper as if the layer were not wrapped: wrapped, stripped, saved, loaded."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tf_keras import layers

import tfmot_asp
from tests import dtypes

STEPS, FEATURES, WORDS = 10, 16, 12
EVERY_KIND = ("Dense", "Conv1D", "EinsumDense")


def from_masking(then):
    x = layers.Input((STEPS, FEATURES))
    return tf_keras.Model(x, then(layers.Masking()(x)))


def from_embedding(then):
    x = layers.Input((STEPS,), dtype="int32")
    return tf_keras.Model(x, then(layers.Embedding(WORDS, FEATURES, mask_zero=True)(x)))


def lstm(x):
    return layers.Dense(8)(layers.LSTM(16)(x))


def attention(x):
    mixed = layers.MultiHeadAttention(2, 8)(x, x)
    return lstm(layers.LayerNormalization()(layers.Add()([x, mixed])))


def cross_attention(x):
    """The value and key are masked otherwise than the query, and one argument comes by position."""
    other = layers.Masking(0.5)(layers.Dense(16)(x))
    return lstm(layers.MultiHeadAttention(2, 8)(x, other, key=x))


def nested(x):
    inner = layers.Input((STEPS, FEATURES))
    model = tf_keras.Model(inner, layers.Dense(16)(layers.TimeDistributed(layers.Dense(32))(inner)))
    return lstm(model(x))


def explicit(x):
    """The mask is an argument of the call, and comes from elsewhere."""
    mask = layers.Lambda(lambda values: tf.reduce_any(tf.not_equal(values, 0), -1))(x)
    return layers.Dense(8)(layers.LSTM(16)(layers.Dense(16)(x), mask=mask))


class SumsWhatIsNotMasked(layers.Layer):
    """A layer that asks for the mask, and passes on one of its own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, inputs, mask=None):
        return inputs if mask is None else inputs * tf.cast(mask, inputs.dtype)[..., None]

    def compute_mask(self, inputs, mask=None):
        return None if mask is None else tf.logical_and(mask, inputs[..., 0] > 0)


class MaskedDense(layers.Dense):
    """A subclass of a kind that is pruned, whose call takes the mask, and which changes it."""

    def call(self, inputs, mask=None):
        result = super().call(inputs)
        return result if mask is None else result * (1 + tf.cast(mask, result.dtype)[..., None])

    def compute_mask(self, inputs, mask=None):
        return None if mask is None else tf.logical_and(mask, inputs[..., 0] > 0)


class StopsMasks(layers.Dense):
    """A Dense that, like most custom layers, says nothing of masks."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.supports_masking = False


MODELS = {
    "Dense": lambda x: lstm(layers.Dense(32)(x)),
    "TimeDistributed": lambda x: lstm(layers.TimeDistributed(layers.Dense(32))(x)),
    "Conv1D": lambda x: lstm(layers.Conv1D(32, 3, padding="causal")(x)),
    "EinsumDense": lambda x: lstm(layers.EinsumDense("abc,cd->abd", (None, 32))(x)),
    "several in a row": lambda x: lstm(layers.Dense(16)(layers.Dropout(0.5)(layers.Dense(32)(x)))),
    "regularized": lambda x: lstm(layers.Dense(32, activity_regularizer="l2")(x)),
    "attention": attention,
    "cross attention": cross_attention,
    "Bidirectional": lambda x: layers.Dense(8)(layers.Bidirectional(layers.GRU(8))(layers.Dense(16)(x))),
    "pooling": lambda x: layers.Dense(8)(layers.GlobalAveragePooling1D()(layers.Dense(16)(x))),
    "sequential": lambda x: lstm(tf_keras.Sequential([layers.Dense(16), SumsWhatIsNotMasked(), layers.Dense(16)])(x)),
    "nested": nested,
    "explicit": explicit,
    "call takes the mask": lambda x: lstm(MaskedDense(16)(x)),
    "mask stops": lambda x: lstm(StopsMasks(16)(x)),
}


def batch(model):
    generator = np.random.default_rng(0)
    if model.input_shape[-1] == STEPS:
        x = generator.integers(1, WORDS, (6, STEPS))
    else:
        x = generator.normal(size=(6, STEPS, FEATURES)).astype("f")
    for row, length in enumerate((5, 10, 1, 7, 3, 9)):
        x[row, length:] = 0
    return x


def built(make, head, policy="float32"):
    tf_keras.utils.set_random_seed(0)
    with dtypes.policy(policy):
        return make(head)


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        *((kind, from_masking) for kind in MODELS),
        *((kind, from_embedding) for kind in ("Dense", "TimeDistributed", "attention", "call takes the mask")),
    ],
)
def test_predictions_and_gradients_are_those_of_the_model_that_was_wrapped(kind, make):
    model = built(make, MODELS[kind])
    x = batch(model)
    expected = model(x).numpy()
    if kind in ("Dense", "TimeDistributed", "attention", "Bidirectional", "pooling"):  # the mask counts for something
        unmasked = x + np.asarray(x == 0, x.dtype)
        assert np.abs(model(unmasked).numpy() - expected).max() > 1e-3

    def gradients(trained):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(trained(x, training=False) ** 2) + tf.add_n([tf.constant(0.0), *trained.losses])
        return tape.gradient(loss, model.trainable_variables)

    before = gradients(model)
    policy = tfmot_asp.PruneForSparseTensorCores(kinds=EVERY_KIND)
    pruned = tfmot_asp.prune_low_magnitude(model, policy=policy, permute=False)
    np.testing.assert_allclose(pruned(x).numpy(), expected, atol=1e-6)
    for ours, theirs in zip(gradients(pruned), before, strict=True):
        np.testing.assert_allclose(tf.convert_to_tensor(ours), tf.convert_to_tensor(theirs), atol=1e-4)


@pytest.mark.parametrize("kind", ["TimeDistributed", "attention", "nested", "call takes the mask"])
def test_trained_stripped_and_loaded_again_they_pass_too(kind, tmp_path):
    model = built(from_embedding, MODELS[kind])
    pruned = tfmot_asp.prune_low_magnitude(
        model, policy=tfmot_asp.PruneForSparseTensorCores(kinds=EVERY_KIND), permute=False
    )
    pruned.compile("sgd", "mse")
    x = batch(pruned)
    pruned.fit(x, np.zeros((len(x), 8), "f"), batch_size=3, verbose=0)
    expected = pruned(x).numpy()
    classes = {"MaskedDense": MaskedDense}
    saved_model = ["pruned"] if kind == "attention" else []  # the slowest by far
    for name in ("pruned.keras", "pruned.h5", *saved_model):
        pruned.save(tmp_path / name)
        with tfmot_asp.prune_scope(), tf_keras.utils.custom_object_scope(classes):
            loaded = tf_keras.models.load_model(tmp_path / name)
        np.testing.assert_allclose(loaded(x).numpy(), expected, atol=1e-6)
    stripped = tfmot_asp.strip_pruning(pruned)
    np.testing.assert_allclose(stripped(x).numpy(), expected, atol=1e-6)
    for name in ("stripped.keras", "stripped.h5"):
        stripped.save(tmp_path / name)
        loaded = tf_keras.models.load_model(tmp_path / name, custom_objects=classes)
        np.testing.assert_allclose(loaded(x).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("kind", ["TimeDistributed", "attention"])
def test_mixed_precision_masks_as_without_wrappers(kind, policy):
    model = built(from_masking, MODELS[kind], policy)
    x = batch(model)
    expected = model(x).numpy()
    pruned = tfmot_asp.prune_low_magnitude(
        model, policy=tfmot_asp.PruneForSparseTensorCores(kinds=EVERY_KIND), permute=False
    )
    np.testing.assert_array_equal(pruned(x).numpy(), expected)


def test_a_wrapped_layer_inside_a_wrapper_of_keras():
    """TimeDistributed asks the layer inside for its mask; so does a layer that is wrapped where it is created."""
    x = layers.Input((STEPS, FEATURES))
    inner = layers.Dense(16)
    wrapped = tfmot_asp.prune_low_magnitude(inner)
    model = tf_keras.Model(x, lstm(layers.TimeDistributed(wrapped)(layers.Masking()(x))))
    plain = tf_keras.Model(x, model.layers[-1](model.layers[-2](layers.TimeDistributed(inner)(layers.Masking()(x)))))
    np.testing.assert_allclose(model(batch(model)).numpy(), plain(batch(model)).numpy(), atol=1e-6)


def test_a_layer_that_takes_no_mask_gets_none():
    class Sum(layers.Layer):
        def build(self, shape):
            self.kernel = self.add_weight("kernel", (shape[-1], 8))

        def call(self, inputs):
            return inputs @ self.kernel

        def get_prunable_weights(self):
            return [self.kernel]

    masked = layers.Masking()(tf.ones((2, 4, 16)))
    for pattern in ((2, 4), None):
        wrapped = tfmot_asp.PruneLowMagnitude(Sum(), sparsity_m_by_n=pattern)
        assert getattr(wrapped(masked), "_keras_mask", None) is None
