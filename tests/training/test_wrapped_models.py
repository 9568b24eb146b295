"""What wrapping does to models of many kinds: they train, strip and export, or are refused and stay untouched."""

import logging

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
from tf_keras import layers

import tfmot_asp
from tests.small_models import is_sparse
from tfmot_asp import masks

PolynomialDecay = tfmot.sparsity.keras.PolynomialDecay


def data(count=32):
    generator = np.random.default_rng(0)
    return generator.normal(size=(count, 32)).astype("f"), generator.normal(size=(count, 8)).astype("f")


def fit(model, optimizer="adam", steps=2, **options):
    model.compile(optimizer, "mse", **options)
    x, y = data(8 * steps)
    model.fit(x, y, batch_size=8, verbose=0)
    return model


class Block(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = layers.Dense(32, name="inner")

    def call(self, inputs):
        return self.inner(inputs)


# Layers in inference mode -----------------------------------------------------------------------------------------


def with_base(trainable=True):
    base = tf_keras.Sequential([layers.Input((32,)), layers.Dense(32, "relu"), layers.Dense(32)], name="base")
    base.trainable = trainable
    x = layers.Input((32,))
    return tf_keras.Model(x, layers.Dense(8)(base(x, training=False)))


def test_a_base_in_inference_mode_follows_the_schedule_step_by_step():
    model = tfmot_asp.prune_low_magnitude(with_base(), PolynomialDecay(0.0, 0.5, 1, 4, frequency=1), permute=False)
    wrappers = [layer for layer in model._flatten_layers() if hasattr(layer, "pruning_vars")]
    model.compile("adam", "mse")
    for step in range(1, 7):
        model.train_on_batch(*data(8))
        assert [int(wrapper.pruning_step) for wrapper in wrappers] == [step] * 3
        shares = [float(np.mean(~wrapper.pruning_vars[0][1].numpy())) for wrapper in wrappers]
        assert shares == pytest.approx(shares[:1] * 3, abs=0.01)
        for wrapper in wrappers:
            weight, mask, _ = wrapper.pruning_vars[0]
            assert not weight.numpy()[~mask.numpy()].any()
    assert is_sparse(model)


@pytest.mark.parametrize("optimizer", ["adam", tf_keras.optimizers.legacy.SGD(0.1)])
@pytest.mark.parametrize("options", [{}, {"run_eagerly": True}, {"jit_compile": True}], ids=str)
def test_a_base_in_inference_mode_is_masked_however_it_is_trained(optimizer, options):
    model = tfmot_asp.prune_low_magnitude(with_base(), permute=False)
    fit(
        model,
        tf_keras.optimizers.deserialize(tf_keras.optimizers.serialize(optimizer)) if optimizer != "adam" else optimizer,
        **options,
    )
    assert is_sparse(model)


def test_a_frozen_base_is_masked_once_it_is_thawed():
    model = fit(tfmot_asp.prune_low_magnitude(with_base(trainable=False), permute=False))
    base = model.get_layer("base")
    base.trainable = True
    assert is_sparse(fit(model))


@pytest.mark.parametrize("forward_traced", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_custom_loops_count_each_step_once_in_both_modes(training, forward_traced):
    """Whether a call or an update counts it, and whether they are traced together or not."""
    model = tfmot_asp.prune_low_magnitude(with_base(), PolynomialDecay(0.0, 0.5, 1, 4, frequency=1), permute=False)
    optimizer = tf_keras.optimizers.SGD(0.01)
    x, y = data(8)
    call = tf.function(model) if forward_traced else model
    for step in range(1, 5):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((call(x, training=training) - y) ** 2)
        optimizer.apply_gradients(
            zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables, strict=True)
        )
        steps = {int(layer.pruning_step) for layer in model._flatten_layers() if hasattr(layer, "pruning_vars")}
        assert steps == {step}
    assert is_sparse(model)


def test_every_projection_of_an_attention_layer_in_inference_mode_counts_a_step_once():
    x = layers.Input((6, 32))
    attend = layers.MultiHeadAttention(2, 16)
    model = tf_keras.Model(x, layers.Dense(8)(attend(x, x, training=False)))
    policy = tfmot_asp.PruneForSparseTensorCores(kinds=("EinsumDense",))
    pruned = tfmot_asp.prune_low_magnitude(model, policy=policy, permute=False)
    pruned.compile("sgd", "mse", run_eagerly=True)
    for step in range(1, 4):
        pruned.train_on_batch(np.ones((2, 6, 32), "f"), np.ones((2, 6, 8), "f"))
        assert int(pruned.layers[1].pruning_step) == step
    assert is_sparse(pruned)


def test_a_model_in_inference_mode_is_not_pruned_by_calls():
    model = tfmot_asp.prune_low_magnitude(with_base(), permute=False)
    x, _ = data(8)
    with tf.GradientTape() as tape:
        inputs = tf.constant(x)
        tape.watch(inputs)
        model(inputs, training=False)
    model.predict(x, verbose=0)
    assert not is_sparse(model)


# Models that cannot be wrapped, and the layers that are not --------------------------------------------------------


class OwnStep(tf_keras.Sequential):
    def train_step(self, data):
        return super().train_step(data)


def with_loss():
    x = layers.Input((32,))
    y = layers.Dense(32)(x)
    model = tf_keras.Model(x, layers.Dense(8)(y))
    model.add_loss(tf.reduce_mean(y**2))
    return model


def subclassed():
    class Net(tf_keras.Model):
        def __init__(self):
            super().__init__()
            self.first, self.head = layers.Dense(32), layers.Dense(8)

        def call(self, inputs):
            return self.head(self.first(inputs))

    net = Net()
    net(data()[0])
    return net


REFUSED = {
    "add_loss": with_loss,
    "train_step": lambda: OwnStep([layers.Input((32,)), layers.Dense(32), layers.Dense(8)]),
    "subclassed": subclassed,
    "inside": lambda: tf_keras.Sequential([layers.Input((32,)), layers.Dense(32), subclassed()]),
    "only custom layers": lambda: tf_keras.Sequential([layers.Input((32,)), Block(), Block()]),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_models_that_wrapping_would_damage_are_refused_and_the_door_that_is_named_takes_them(kind):
    model = REFUSED[kind]()
    nodes = [(len(part._inbound_nodes), len(part._outbound_nodes)) for part in model._flatten_layers()]
    with pytest.raises(ValueError, match="prune_trained_model"):
        tfmot_asp.prune_low_magnitude(model)
    with pytest.raises(ValueError, match="can only prune" if kind == "subclassed" else "prune_trained_model"):
        tfmot.sparsity.keras.prune_low_magnitude(
            model, pruning_policy=tfmot_asp.PruneForSparseTensorCores(), sparsity_m_by_n=(2, 4)
        )
    assert nodes == [(len(part._inbound_nodes), len(part._outbound_nodes)) for part in model._flatten_layers()]
    tfmot_asp.prune_trained_model(model, permute=False)
    if kind == "only custom layers":
        model = tf_keras.Sequential([model, layers.Dense(8)])
    fit(model)
    dense = [layer for layer in model._flatten_layers() if isinstance(layer, layers.Dense)]
    assert sum(masks.violations(layer.kernel.numpy(), 0) == 0 for layer in dense) >= 2


def test_a_functional_subclass_with_keras_own_constructor_keeps_its_train_step():
    class Counts(tf_keras.Model):
        steps = 0

        def train_step(self, data):
            type(self).steps += 1
            return super().train_step(data)

    x = layers.Input((32,))
    fit(tfmot_asp.prune_low_magnitude(Counts(x, layers.Dense(8)(x)), permute=False))
    assert Counts.steps


def test_a_call_that_is_refused_halfway_leaves_no_trace():
    model = tf_keras.Sequential([layers.Input((32,)), layers.Dense(32), layers.Dense(8)])
    before = [(len(part._inbound_nodes), len(part._outbound_nodes)) for part in model._flatten_layers()]
    with pytest.raises(ValueError, match="effort"):
        tfmot_asp.prune_low_magnitude(model, permute={"effort": "thorouh"})
    with pytest.raises(ValueError, match="NaN"):
        tfmot_asp.prune_low_magnitude(model, calibration_data=np.full((8, 32), np.nan, "f"))
    assert before == [(len(part._inbound_nodes), len(part._outbound_nodes)) for part in model._flatten_layers()]
    assert all(weight.constraint is None for weight in model.weights)
    assert not any(hasattr(layer, "get_prunable_weights") for layer in model.layers)


def test_activity_regularizers_count_once_and_stay(tmp_path):
    x, y = data(8)
    plain = tf_keras.Sequential([layers.Input((32,)), layers.Dense(32, activity_regularizer="l1"), layers.Dense(8)])
    plain.compile("sgd", "mse")
    expected = plain.evaluate(x, y, verbose=0)
    pruned = tfmot_asp.prune_low_magnitude(plain, permute=False)
    pruned.compile("sgd", "mse")
    assert pruned.evaluate(x, y, verbose=0) == pytest.approx(expected, rel=1e-6)
    fit(pruned)
    expected = pruned.evaluate(x, y, batch_size=8, verbose=0)
    stripped = tfmot_asp.strip_pruning(pruned)
    stripped.compile("sgd", "mse")
    assert stripped.evaluate(x, y, batch_size=8, verbose=0) == pytest.approx(expected, rel=1e-5)


@pytest.fixture
def said():
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("tfmot_asp")
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


def test_layers_that_stay_dense_for_one_reason_share_it(said):
    x = y = layers.Input((8, 8, 16))
    for i in range(6):
        y = layers.DepthwiseConv2D(3, padding="same", name=f"dw{i}")(layers.Conv2D(16, 1, name=f"pw{i}")(y))
    tfmot_asp.prune_low_magnitude(tf_keras.Model(x, layers.Conv2D(7, 1, name="head")(y)), permute=False)
    (line,) = said
    assert "'dw0', 'dw1', 'dw2', 'dw3' and 2 more: each has a depthwise kernel, which sums over no channels" in line
    assert line.count("depthwise kernel") == 1
    assert "'head' has 7 output channels" in line
    assert line.endswith(" (sparsity_report(model) lists all)")


def test_one_line_says_what_stays_dense_and_why_and_what_takes_it(said):
    model = tf_keras.Sequential(
        [layers.Input((32,)), Block(name="block"), layers.Dense(16, name="fc"), layers.Dense(7, name="head")]
    )
    tfmot_asp.prune_low_magnitude(model, permute=False)
    (line,) = said
    assert line.startswith("1 of 3 layers with kernels in model")
    assert "'block/inner': inside a custom layer, where no wrapper reaches; tfmot_asp.prune_trained_model" in line
    assert "'head' has 7 output features; sparse Tensor Cores need a multiple of 8" in line
    assert "'fc'" not in line
    assert "\n" not in line
    said.clear()
    tfmot.sparsity.keras.prune_low_magnitude(
        model, pruning_policy=tfmot_asp.PruneForSparseTensorCores(), sparsity_m_by_n=(2, 4)
    )
    assert said == [line]
    said.clear()
    tfmot_asp.prune_low_magnitude(tf_keras.Sequential([layers.Input((32,)), layers.Dense(8)]), permute=False)
    assert said == []


# Wrappers where a model creates its layers -------------------------------------------------------------------------


class HoldsWrappers(tf_keras.Model):
    def __init__(self):
        super().__init__()
        self.first = tfmot_asp.prune_low_magnitude(layers.Dense(32))
        self.listed = [tfmot_asp.prune_low_magnitude(layers.Dense(32)), layers.ReLU()]
        self.named = {"x": (tfmot_asp.prune_low_magnitude(layers.Dense(16)),)}
        self.net = tf_keras.Sequential([tfmot_asp.prune_low_magnitude(layers.Dense(16)), layers.ReLU()])
        self.block = Block()
        self.block.inner = tfmot_asp.prune_low_magnitude(self.block.inner)
        self.head = layers.Dense(8)

    def call(self, inputs):
        x = self.first(inputs)
        for layer in self.listed:
            x = layer(x)
        return self.head(self.block(self.net(self.named["x"][0](x))))


def test_single_wrapped_layers_of_a_subclassed_model_train_strip_and_export(tmp_path):
    model = HoldsWrappers()
    model.compile("adam", "mse")
    x, y = data()
    model.fit(x, y, verbose=0, epochs=2, callbacks=[tfmot_asp.UpdatePruningStep()])
    assert is_sparse(model)
    expected = model.predict(x, verbose=0)
    with pytest.raises(ValueError, match="strip_pruning"):
        tfmot_asp.export.onnx(model, tmp_path / "wrapped.onnx")
    stripped = tfmot_asp.strip_pruning(model)
    assert stripped is model
    assert not any(hasattr(part, "pruning_vars") for part in model._flatten_layers())
    np.testing.assert_allclose(stripped.predict(x, verbose=0), expected, atol=1e-6)
    assert tfmot_asp.export.onnx(stripped, tmp_path / "plain.onnx").ok
    tfmot_asp.prune_trained_model(stripped, permute=False)
    fit(stripped)
    stripped.save_weights(tmp_path / "weights.h5")


def test_strip_takes_unbuilt_models_and_warns_of_nan():
    unbuilt = tf_keras.Sequential([tfmot_asp.prune_low_magnitude(layers.Dense(32)), layers.Dense(8)])
    stripped = tfmot_asp.strip_pruning(unbuilt)
    assert [type(layer) for layer in stripped.layers] == [layers.Dense, layers.Dense]
    assert stripped(data()[0]).shape == (32, 8)
    model = tf_keras.Sequential([layers.Input((32,)), layers.Dense(8, name="bad")])
    pruned = tfmot_asp.prune_low_magnitude(model, permute=False)
    model.layers[0].kernel.assign(np.full((32, 8), np.nan, "f"))
    with pytest.warns(UserWarning, match="'bad' hold NaN"):
        assert not hasattr(tfmot_asp.strip_pruning(pruned).layers[0], "get_prunable_weights")


def test_keras_3_models_are_sent_to_the_door_that_takes_them():
    import keras

    model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(16)])
    for door in (tfmot_asp.prune_low_magnitude, tfmot_asp.strip_pruning):
        with pytest.raises(ValueError, match="prune_trained_model"):
            door(model)
