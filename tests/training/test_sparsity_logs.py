"""Sparsity in Keras' logs: what History and CSVLogger record is what the weights are, however they were pruned."""

import csv

import keras
import numpy as np
import pytest
import tensorflow_model_optimization as tfmot
import tf_keras

import tfmot_asp
from tests import naive_masks
from tests.small_models import compiled, data, mlp

RNG = np.random.default_rng(0)


def dense():
    return compiled(mlp())


def wrapped():
    schedule = tfmot.sparsity.keras.PolynomialDecay(0.0, 0.5, begin_step=0, end_step=4, frequency=1)
    return compiled(tfmot_asp.prune_low_magnitude(mlp(), schedule, permute=False))


def wrapped_by_tfmot():
    policy = tfmot_asp.PruneForSparseTensorCores()
    prune = tfmot.sparsity.keras.prune_low_magnitude
    return compiled(prune(mlp(), pruning_policy=policy, sparsity_m_by_n=(2, 4)))


def constrained():
    model = compiled(mlp())
    tfmot_asp.prune_trained_model(model, permute=False)
    return model


def optimized():
    model = mlp()
    optimizer = tfmot_asp.AspOptimizerWrapperV2(tf_keras.optimizers.Adam(), model, permute=False)
    return compiled(model, optimizer)


def keras_3():
    layers = [keras.layers.Dense(32, activation="relu", name="first"), keras.layers.Dense(8, name="second")]
    model = keras.Sequential([keras.Input((16,)), *layers])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    tfmot_asp.prune_trained_model(model, permute=False)
    return model


def kernels(model):
    """Of a model that was pruned in any way, by the names of its layers."""
    layers = [getattr(layer, "layer", layer) for layer in model.layers]
    return {layer.name: np.asarray(layer.kernel) for layer in layers if hasattr(layer, "kernel")}


@pytest.mark.parametrize("build", [dense, wrapped, wrapped_by_tfmot, constrained, optimized, keras_3])
def test_what_is_recorded_is_what_the_weights_are(build, tmp_path):
    model = build()
    loggers = (keras if build is keras_3 else tf_keras).callbacks
    updates = [tfmot_asp.UpdatePruningStep()] if build.__name__.startswith("wrapped") else []
    logs = tfmot_asp.SparsityLogs(per_layer=True)
    images, labels = data(mlp())
    callbacks = [*updates, logs, loggers.CSVLogger(str(tmp_path / "training.csv"))]
    history = model.fit(images, labels, epochs=5, callbacks=callbacks, verbose=0).history
    found = kernels(model)
    kept = {name: np.abs(kernel * naive_masks.mask(np.abs(kernel), 0, (2, 4))).sum() for name, kernel in found.items()}
    zeros = {name: np.mean(kernel == 0) for name, kernel in found.items()}
    sizes = [kernel.size for kernel in found.values()]
    assert history["sparsity"][-1] == pytest.approx(np.average(list(zeros.values()), weights=sizes))
    share = sum(kept.values()) / sum(np.abs(kernel).sum() for kernel in found.values())
    assert history["kept_magnitude"][-1] == pytest.approx(share, rel=1e-6)
    for name, kernel in found.items():
        assert history[f"sparsity/{name}"][-1] == pytest.approx(zeros[name])
        of_layer = kept[name] / np.abs(kernel).sum()
        assert history[f"kept_magnitude/{name}"][-1] == pytest.approx(of_layer, rel=1e-6)
    assert history["sparsity"][-1] == (0.0 if build is dense else 0.5)
    rows = list(csv.DictReader((tmp_path / "training.csv").open()))
    for key in ("sparsity", "kept_magnitude"):
        assert [float(row[key]) for row in rows] == pytest.approx(history[key])
    if build is wrapped:  # a schedule's way there
        assert history["sparsity"] == sorted(history["sparsity"])
        assert history["kept_magnitude"] == sorted(history["kept_magnitude"])
        assert history["sparsity"][0] < 0.5
        assert history["kept_magnitude"][0] < 1


def test_it_counts_what_the_policy_prunes():
    model = constrained()
    policy = tfmot_asp.PruneForSparseTensorCores(skip=[model.layers[0]])
    logs = {}
    callback = tfmot_asp.SparsityLogs(policy, "1:4", per_layer=True)
    callback.set_model(model)
    callback.on_train_begin()
    callback.on_epoch_end(0, logs)
    kernel = np.abs(kernels(model)["second"])
    assert logs["sparsity"] == logs["sparsity/second"] == 0.5
    assert logs["kept_magnitude"] == pytest.approx(kernel.reshape(8, 4, 8).max(1).sum() / kernel.sum())
    assert set(logs) == {"sparsity", "kept_magnitude", "sparsity/second", "kept_magnitude/second"}


def test_a_subclassed_model_is_looked_at_once_it_is_built():
    class Model(tf_keras.Model):
        def __init__(self):
            super().__init__()
            self.fc = tf_keras.layers.Dense(8)

        def call(self, inputs):
            return self.fc(inputs)

    history = compiled(Model()).fit(*data(mlp()), callbacks=[tfmot_asp.SparsityLogs()], verbose=0).history
    assert history["sparsity"] == [0.0]


def test_a_model_with_nothing_to_prune_is_refused_before_it_trains():
    model = compiled(tf_keras.Sequential([tf_keras.layers.Input((3,)), tf_keras.layers.Dense(8, name="few")]))
    before = model.get_weights()
    with pytest.raises(ValueError, match=r"no layer to prune(.|\n)*few"):
        model.fit(RNG.normal(size=(8, 3)), np.zeros(8), callbacks=[tfmot_asp.SparsityLogs()], verbose=0)
    assert all(np.array_equal(*pair) for pair in zip(before, model.get_weights(), strict=True))
