"""``prune_trained_model`` with data: what it keeps, that it is all or nothing, and that training goes on from there."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfmot_asp
from tfmot_asp import masks
from tfmot_asp.calibration import distillation, sequential
from tfmot_asp.keras_models import constraints
from tfmot_asp.keras_models.kernels import kernels_by_name, layers_with_kernels
from tfmot_asp.keras_models.slots import optimizers_of, slots_of
from tfmot_asp.keras_models.variables import read
from tfmot_asp.permutation import pipeline
from tfmot_asp.training import trained

BOTH = pytest.mark.parametrize("k", [tf_keras, keras], ids=["tf_keras", "keras3"])


class EveryKernel:
    """A policy that prunes whatever sums over channels."""

    def why(self, layer):
        return None


def images(count=48, size=8, channels=16, seed=0):
    return np.random.default_rng(seed).normal(size=(count, size, size, channels)).astype("float32")


def convnet(k, seed=0):
    k.utils.set_random_seed(seed)
    x = y = k.Input((8, 8, 16))
    for channels in (32, 32):
        y = k.layers.Conv2D(channels, 3, padding="same", use_bias=False)(y)
        y = k.layers.ReLU()(k.layers.BatchNormalization()(y))
    y = k.layers.GlobalAveragePooling2D()(y)
    return k.Model(x, k.layers.Dense(8, name="head")(k.layers.Dense(32, activation="relu")(y)))


def state(model):
    variables = [*model.variables]
    variables += [slot for v in model.variables for slot, _ in slots_of(optimizers_of(model), v)]
    return [read(v) for v in variables]


def assert_same(before, after):
    assert len(before) == len(after)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)


def assert_pattern(model, pruned):
    for name, mask in pruned.masks.items():
        kernel = pruned._parts.kernels[name]
        weight = read(kernel.tf_variable)
        assert masks.standing(weight, kernel.layout.reduction_axes).holds, name
        assert not weight[~read(mask)].any()


@BOTH
def test_reconstruction_keeps_more_than_magnitude(k):
    x, other = images(), images(seed=1)
    found = {}
    for method in (None, "activation", "magnitude"):
        model = convnet(k)
        expected = model(other)
        pruned = tfmot_asp.prune_trained_model(model, calibration_data=x, method=method)
        assert_pattern(model, pruned)
        found[method] = float(tf.norm(model(other) - expected) / tf.norm(expected))
        report = pruned.calibration
        assert report.method == (method or "reconstruction")
        assert (report.samples, report.batch_norms) == (48, 2)
        assert [kernel.rows > 0 for kernel in report.kernels] == [True] * len(pruned.masks)
        assert report.outputs[0].relative == pytest.approx(
            float(tf.norm(model(x) - convnet(k)(x)) / tf.norm(convnet(k)(x))), rel=1e-3
        )
    assert found[None] < 0.7 * found["magnitude"]


@BOTH
def test_batch_normalizations_alone_help_without_touching_what_pruning_left(k):
    model = convnet(k)
    norm = next(layer for layer in model.layers if "batch_norm" in layer.name)
    before = [np.array(w) for w in norm.get_weights()]
    tfmot_asp.prune_trained_model(model, calibration_data=images(), method="magnitude", permute=False)
    gamma, beta, mean, variance = norm.get_weights()
    np.testing.assert_array_equal(gamma, before[0])
    np.testing.assert_array_equal(beta, before[1])
    assert not np.allclose(mean, before[2])
    assert (variance < before[3]).all()


def every_kind(k):
    layers = k.layers
    x = y = k.Input((12, 12, 16))
    y = layers.Conv2D(16, 3, padding="same", groups=2)(y)
    y = layers.SeparableConv2D(16, 3, padding="same", activation="relu")(y)
    skip = y = layers.Conv2D(16, 3, padding="same", dilation_rate=2)(y)
    y = layers.Conv2DTranspose(16, 3, strides=2, padding="same")(layers.MaxPooling2D()(y))
    y = layers.Concatenate()([y, skip])
    y = layers.Conv2D(16, 1)(y)
    y = layers.Reshape((144, 16))(y)
    y = layers.Conv1D(16, 3, strides=4, dilation_rate=1)(y)
    y = layers.MultiHeadAttention(2, 8)(y, y)
    y = layers.LSTM(16, return_sequences=True)(y)
    y = layers.TimeDistributed(layers.Dense(16, activation="relu"))(y)
    y = layers.EinsumDense("abc,cd->abd", output_shape=(None, 16))(y)
    return k.Model(x, layers.Dense(8)(y))


@BOTH
def test_layers_of_every_kind(k):
    model = every_kind(k)
    x = images(8, size=12)
    expected = model(x)
    pruned = tfmot_asp.prune_trained_model(model, policy=EveryKernel(), calibration_data=x, permute=False)
    assert_pattern(model, pruned)
    report = pruned.calibration
    assert {entry.note for entry in report.kernels} == {None}
    assert len(report.kernels) == len(pruned.masks) == 13
    change = float(tf.norm(model(x) - expected) / tf.norm(expected))
    assert change == pytest.approx(report.outputs[0].relative, rel=1e-3)
    assert "  Conv2DTranspose  " in str(report)


@BOTH
def test_a_subclassed_model_of_texts_of_different_lengths(k):
    class Net(k.Model):
        def __init__(self):
            super().__init__()
            self.embed = k.layers.Embedding(50, 16, mask_zero=True)
            self.hidden = k.layers.Dense(32, activation="relu", name="hidden")
            self.out = k.layers.Dense(16, name="out")

        def call(self, inputs):
            return self.out(self.hidden(self.embed(inputs)))

    model = Net()
    rng = np.random.default_rng(0)
    batches = [rng.integers(1, 50, (4, length)).astype("int32") for length in (5, 9, 7)]
    model(batches[0])
    pruned = tfmot_asp.prune_trained_model(model, calibration_data=batches)
    assert_pattern(model, pruned)
    assert {kernel.rows for kernel in pruned.calibration.kernels} == {4 * (5 + 9 + 7)}


def text_model(k):
    k.utils.set_random_seed(0)
    x = k.Input((None,), dtype="int32")
    y = k.layers.Embedding(50, 16, mask_zero=True)(x)
    y = k.layers.LayerNormalization()(k.layers.MultiHeadAttention(2, 8)(y, y))
    return k.Model(x, k.layers.Dense(16, name="out")(k.layers.Dense(32, activation="relu", name="hidden")(y)))


@BOTH
def test_padding_that_keras_masks_does_not_count(k):
    rng = np.random.default_rng(0)
    texts = [rng.integers(1, 50, (1, length)).astype("int32") for length in (5, 9, 7)]
    padded = np.concatenate([np.pad(text, ((0, 0), (0, 12 - text.shape[1]))) for text in texts])
    weights = []
    for data in (texts, padded):
        model = text_model(k)
        policy = tfmot_asp.PruneForSparseTensorCores(kinds=("Dense", "EinsumDense"))
        pruned = tfmot_asp.prune_trained_model(model, policy=policy, calibration_data=data, permute=False)
        assert {kernel.rows for kernel in pruned.calibration.kernels} == {5 + 9 + 7}
        weights.append(model.get_weights())
    for one, other in zip(*weights, strict=True):
        assert np.mean(np.abs(one - other) > 0.01) < 0.1  # other rows are held out, no others are looked at


@BOTH
def test_padding_of_sample_weight_zero_does_not_count(k):
    def model():
        k.utils.set_random_seed(0)
        x = k.Input((None, 16))
        return k.Model(x, k.layers.Dense(16)(k.layers.Dense(32, activation="relu")(x)))

    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 10, 16)).astype("float32")
    weight = (np.arange(10) < rng.integers(3, 10, (6, 1))).astype("float32")
    filled = np.where(weight[..., None] > 0, x, 1e3).astype("float32")
    one, other = model(), model()
    first = tfmot_asp.prune_trained_model(one, calibration_data=[(filled, None, weight)], permute=False)
    assert {kernel.rows for kernel in first.calibration.kernels} == {int(weight.sum())}
    rows = x[weight > 0][None]
    tfmot_asp.prune_trained_model(other, calibration_data=[rows], permute=False)
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=0.01)


@BOTH
def test_the_same_data_gives_the_same_weights(k):
    found = []
    for _ in range(2):
        model = convnet(k)
        tfmot_asp.prune_trained_model(model, calibration_data=images())
        found.append(model.get_weights())
    assert_same(*found)


@BOTH
def test_inputs_of_rank_two_in_each_stripe_lose_nothing(k):
    rng = np.random.default_rng(0)
    mixing = np.zeros((8, 16))
    for stripe in range(4):
        mixing[2 * stripe : 2 * stripe + 2, 4 * stripe : 4 * stripe + 4] = rng.normal(size=(2, 4))
    x = (rng.normal(size=(256, 8)) @ mixing).astype("float32")
    model = k.Sequential([k.Input((16,)), k.layers.Dense(32)])
    expected = model(x)
    tfmot_asp.prune_trained_model(model, calibration_data=x, permute=False)
    change = tf.norm(model(x) - expected) / tf.norm(expected)
    assert change < 0.03  # damping alone


@BOTH
def test_scores_at_prune_time_choose_the_masks_of_the_permuted_model(k):
    model = convnet(k)
    rng = np.random.default_rng(0)
    given = {}

    def scores(kernel):
        given[id(kernel.tf_variable)] = rng.random(kernel.shape) * np.abs(read(kernel.tf_variable))
        return given[id(kernel.tf_variable)]

    kernels = kernels_by_name(layers_with_kernels(model))
    dense = {name: read(kernel.tf_variable) for name, kernel in kernels.items()}
    pruned = tfmot_asp.prune_trained_model(model, scores=scores)
    assert pruned.permutation.permuted > 0
    assert_pattern(model, pruned)
    for name, mask in pruned.masks.items():
        score, kept = given[id(kernels[name].tf_variable)], read(kernels[name].tf_variable)
        # Whatever the order, the mask keeps at least half of the scores in each column's stripes.
        origin = dict(zip(dense[name].ravel(), score.ravel(), strict=True))
        total = sum(origin[value] for value in kept[read(mask)])
        assert total > 0.5 * score.sum()
        assert read(mask).mean() == 0.5


@BOTH
@pytest.mark.parametrize("stage", ["permuting", "permuted", "reconstructing", "writing", "attaching", "last"])
def test_interrupted_at_any_stage_the_model_is_as_it_was(k, stage, monkeypatch):
    model = convnet(k)
    model.compile("adam", "mse")
    model.train_on_batch(images(4), np.zeros((4, 8)))
    before = state(model)
    target, name, after = {
        "permuting": (pipeline, "finish", 0),
        "permuted": (pipeline, "finish", 1),
        "reconstructing": (sequential, "reconstruct", 1),
        "writing": (trained, "PrunedModel", 0),
        "attaching": (trained, "attach_mask", 1),
        "last": (trained, "forget_traces", 1),
    }[stage]
    original, calls = getattr(target, name), []

    def interrupted(*arguments, **options):
        calls.append(name)
        if after and len(calls) <= after:
            original(*arguments, **options)
            if stage not in ("reconstructing", "attaching"):
                raise KeyboardInterrupt
            return original(*arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(target, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        tfmot_asp.prune_trained_model(model, calibration_data=images())
    monkeypatch.undo()
    assert calls
    assert_same(before, state(model))
    kernels = kernels_by_name(layers_with_kernels(model)).values()
    assert all(constraints.mask_of(kernel.variable) is None for kernel in kernels)
    tfmot_asp.prune_trained_model(model, calibration_data=images())  # and nothing is in its way


@BOTH
def test_data_that_does_not_do_leaves_the_model_alone(k):
    model = convnet(k)
    before = state(model)
    nan = images()
    nan[3, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        tfmot_asp.prune_trained_model(model, calibration_data=nan)
    with pytest.raises(ValueError, match="takes"):
        tfmot_asp.prune_trained_model(model, calibration_data=images(channels=3))
    huge = images() * 1e38
    with pytest.raises(ValueError, match=r"NaN or infinite"):
        tfmot_asp.prune_trained_model(model, calibration_data=huge)
    for option, value in (("method", "magic"), ("effort", "huge"), ("batch_norm", "none")):
        with pytest.raises(ValueError, match=f"{option} must be one of"):
            tfmot_asp.prune_trained_model(model, calibration_data=images(), **{option: value})
    with pytest.raises(ValueError, match="needs data: give calibration_data"):
        tfmot_asp.prune_trained_model(model, method="activation")
    assert_same(before, state(model))


@BOTH
def test_training_goes_on_sparsely(k):
    model = convnet(k)
    model.compile("adam", "mse")
    pruned = tfmot_asp.prune_trained_model(model, calibration_data=images())
    before = model.get_weights()
    model.fit(images(16), np.zeros((16, 8)), verbose=0)
    assert any((a != b).any() for a, b in zip(before, model.get_weights(), strict=True))
    assert_pattern(model, pruned)


def test_kernels_that_cannot_be_followed_keep_their_mask_by_magnitude_and_are_named():
    class Looping(tf_keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.inner = tf_keras.layers.Dense(16, name="inner")

        def build(self, shape):
            self.inner.build(shape)

        def call(self, x):
            return tf.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, self.inner(y)), (0, x))[1]

    x = tf_keras.Input((16,))
    model = tf_keras.Model(x, tf_keras.layers.Dense(8, name="head")(Looping()(x)))
    weight = model.layers[1].inner.kernel.numpy()
    pruned = tfmot_asp.prune_trained_model(model, calibration_data=images()[:, 0, 0], permute=False)
    first, second = pruned.calibration.kernels
    assert (first.name, first.rows, second.name) == ("inner", 0, "head")
    assert "kept its mask by magnitude: it is used inside of" in first.note
    np.testing.assert_array_equal(read(pruned.masks["inner"]), masks.m_by_n_mask(np.abs(weight), 0))
    assert "While" in str(pruned.calibration)


def test_a_shared_layer_is_seen_in_all_its_calls():
    shared = tf_keras.layers.Dense(16, name="shared")
    a, b = tf_keras.Input((16,)), tf_keras.Input((16,))
    model = tf_keras.Model([a, b], tf_keras.layers.Add()([shared(a), shared(b)]))
    x = images()[:, 0, 0]
    pruned = tfmot_asp.prune_trained_model(model, calibration_data=[x, x + 1], permute=False)
    assert pruned.calibration.kernels[0].rows == 2 * len(x)
    x = tf_keras.Input((16,))
    looped = tf_keras.Model(x, shared(tf_keras.layers.ReLU()(shared(x))))
    pruned.remove()
    pruned = tfmot_asp.prune_trained_model(looped, calibration_data=images()[:, 0, 0], permute=False)
    assert pruned.calibration.kernels[0].rows == 48  # what comes back to it is made by it


def test_without_data_a_model_with_batch_normalization_is_warned_of(caplog):
    tfmot_asp.prune_trained_model(convnet(tf_keras), permute=False)
    assert "Give calibration_data=" in caplog.text
    caplog.clear()
    tfmot_asp.prune_trained_model(convnet(tf_keras), permute=False, calibration_data=images())
    assert "calibration_data" not in caplog.text


@BOTH
def test_distillation_comes_nearer_on_samples_held_out_and_keeps_the_masks(k, monkeypatch):
    monkeypatch.setattr(distillation, "STEPS", 60)

    def net():
        k.utils.set_random_seed(0)
        x = y = k.Input((6, 16))
        for _ in range(2):
            y = k.layers.Add()([y, k.layers.Dense(16)(k.layers.Dense(32, activation="gelu")(y))])
            y = k.layers.LayerNormalization()(y)
        return k.Model(x, y)

    x = np.random.default_rng(0).normal(size=(96, 6, 16)).astype("float32")
    model = net()
    pruned = tfmot_asp.prune_trained_model(model, calibration_data=x, effort="thorough")
    assert_pattern(model, pruned)
    before, after = pruned.calibration.distillation
    assert after < before
    expected = net()(x)
    change = float(tf.norm(model(x) - expected) / tf.norm(expected))
    assert pruned.calibration.outputs[0].relative == pytest.approx(change, rel=1e-3)
    assert f"-> {after:.2%}" in str(pruned.calibration)


def test_what_does_not_fit_into_memory_goes_through_files(monkeypatch):
    found = []
    for memory in (sequential.MEMORY, 0):
        monkeypatch.setattr(sequential, "MEMORY", memory)
        model = convnet(tf_keras)
        tfmot_asp.prune_trained_model(model, calibration_data=images(), permute=False)
        found.append(model.get_weights())
    assert_same(*found)
