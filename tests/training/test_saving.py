"""Wrapped models survive every way to save them, and stripped ones need no trace of this package."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
from tf_keras import layers

import tfmot_asp
from tests.small_models import CheckEveryBatch, compiled, convnet, data, is_sparse, mlp, violations
from tfmot_asp.training.wrapper import PruneLowMagnitude


@pytest.fixture(scope="module")
def trained():
    pruned = compiled(tfmot_asp.prune_low_magnitude(convnet(), sparsity_m_by_n=(2, 4), permute=False))
    x, y = data(pruned)
    pruned.fit(x, y, batch_size=8, verbose=0, callbacks=[tfmot_asp.UpdatePruningStep()])
    return pruned, x, y


def test_config_round_trip():
    wrapper = tfmot_asp.prune_low_magnitude(layers.Dense(8), sparsity_m_by_n=(3, 8))
    config = wrapper.get_config()
    assert config["sparsity_m_by_n"] == (3, 8)
    again = PruneLowMagnitude.from_config(config)
    assert again.sparsity_m_by_n == (3, 8)
    assert again.pruning_schedule.get_config() == wrapper.pruning_schedule.get_config()


def test_cloning_keeps_the_pattern(trained):
    clone = tf_keras.models.clone_model(trained[0])
    assert [layer.sparsity_m_by_n for layer in clone.layers if isinstance(layer, PruneLowMagnitude)] == [(2, 4)] * 3
    compiled(clone).fit(*trained[1:], batch_size=8, verbose=0, callbacks=[CheckEveryBatch()])


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("name", ["model.keras", "model.h5", "model"])
def test_every_format_brings_back_weights_masks_steps_and_pattern(trained, tmp_path, name):
    pruned, x, y = trained
    pruned.save(tmp_path / name)
    with tfmot_asp.prune_scope():
        loaded = tf_keras.models.load_model(tmp_path / name)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), pruned.predict(x, verbose=0))
    assert set(violations(loaded)) == set(violations(pruned))
    for old, new in zip(pruned.layers, loaded.layers, strict=True):
        assert type(old) is type(new)
        if isinstance(new, PruneLowMagnitude):
            assert new.sparsity_m_by_n == (2, 4)
            assert int(new.pruning_step) == int(old.pruning_step) == 4
            np.testing.assert_array_equal(new.pruning_vars[0][1].numpy(), old.pruning_vars[0][1].numpy())
    loaded.fit(x, y, batch_size=8, verbose=0, callbacks=[CheckEveryBatch(), tfmot_asp.UpdatePruningStep()])


def test_attention_is_loaded_with_its_four_masks(tmp_path):
    def make():
        x = layers.Input((6, 16))
        attended = layers.MultiHeadAttention(2, 8, name="attention")(x, value=x)
        model = tf_keras.Model(x, layers.GlobalAveragePooling1D()(attended))
        policy = tfmot_asp.PruneForSparseTensorCores(kinds="EinsumDense")
        return compiled(tfmot_asp.prune_low_magnitude(model, pruning_policy=policy, permute=False))

    pruned = make()
    images, labels = data(pruned)
    pruned.fit(images, labels, verbose=0)
    pruned.save(tmp_path / "attention.keras")
    with tfmot_asp.prune_scope():
        loaded = tf_keras.models.load_model(tmp_path / "attention.keras")
    restored = make()
    tf.train.Checkpoint(model=restored).restore(
        tf.train.Checkpoint(model=pruned).save(tmp_path / "ckpt")
    ).expect_partial()
    for other in (loaded, restored):
        np.testing.assert_array_equal(other.predict(images, verbose=0), pruned.predict(images, verbose=0))
        assert is_sparse(other)
        before, after = (model.get_layer("prune_low_magnitude_attention").pruning_vars for model in (pruned, other))
        assert len(after) == 4
        for old, new in zip(before, after, strict=True):
            np.testing.assert_array_equal(new[1].numpy(), old[1].numpy())


def test_a_run_resumed_from_a_checkpoint_goes_on_as_if_it_had_not_stopped(tmp_path):
    x, y = data(mlp())

    def run(model, epochs):
        return model.fit(
            x, y, batch_size=8, epochs=epochs, shuffle=False, verbose=0, callbacks=[tfmot_asp.UpdatePruningStep()]
        ).history["loss"]

    steps = tfmot.sparsity.keras.PolynomialDecay(0.0, 0.5, begin_step=1, end_step=14, frequency=2)

    def make():
        return compiled(tfmot_asp.prune_low_magnitude(mlp(), pruning_schedule=steps, permute=False))

    through = make()
    run(through, 2)
    path = tf.train.Checkpoint(model=through, optimizer=through.optimizer).save(tmp_path / "ckpt")
    resumed = make()
    tf.train.Checkpoint(model=resumed, optimizer=resumed.optimizer).restore(path)
    np.testing.assert_allclose(run(resumed, 3), run(through, 3), rtol=1e-6)
    for old, new in zip(through.layers, resumed.layers, strict=True):
        np.testing.assert_array_equal(new.pruning_vars[0][1].numpy(), old.pruning_vars[0][1].numpy())
    assert is_sparse(resumed)


def test_checkpoints_in_the_middle_of_an_epoch_are_sparse_whatever_the_order_of_callbacks(tmp_path):
    pruned = compiled(tfmot_asp.prune_low_magnitude(mlp(), permute=False))
    x, y = data(pruned)
    save = tf_keras.callbacks.ModelCheckpoint(str(tmp_path / "step-{batch}.keras"), save_freq=1)
    pruned.fit(x, y, batch_size=8, verbose=0, callbacks=[save, tfmot_asp.UpdatePruningStep()])
    files = sorted(tmp_path.glob("*.keras"))
    assert len(files) == 4
    with tfmot_asp.prune_scope():
        assert all(is_sparse(tf_keras.models.load_model(file)) for file in files)


def test_weights_only_files_restore_masks(trained, tmp_path):
    pruned, x, _ = trained
    pruned.save_weights(tmp_path / "only.weights.h5")
    fresh = tfmot_asp.prune_low_magnitude(convnet(), permute=False)
    fresh.load_weights(tmp_path / "only.weights.h5")
    np.testing.assert_array_equal(fresh.predict(x, verbose=0), pruned.predict(x, verbose=0))
    assert is_sparse(fresh)


def test_models_that_tfmot_wrapped_load_in_our_scope(tmp_path):
    theirs = tfmot.sparsity.keras.prune_low_magnitude(mlp())
    x, _ = data(theirs)
    theirs.save(tmp_path / "theirs.keras")
    with tfmot_asp.prune_scope():
        loaded = tf_keras.models.load_model(tmp_path / "theirs.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), theirs.predict(x, verbose=0))
    assert [layer.sparsity_m_by_n for layer in loaded.layers] == [None, None]


def test_stripped_models_load_without_this_package_or_tfmot(trained, tmp_path):
    pruned, x, _ = trained
    plain = tfmot_asp.strip_pruning(pruned)
    plain.save(tmp_path / "plain.keras")
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", plain.predict(x, verbose=0))
    code = f"""
        import sys
        sys.modules["tfmot_asp"] = sys.modules["tensorflow_model_optimization"] = None
        import numpy as np, tf_keras
        model = tf_keras.models.load_model({str(tmp_path / "plain.keras")!r})
        got = model.predict(np.load({str(tmp_path / "x.npy")!r}), verbose=0)
        assert np.array_equal(got, np.load({str(tmp_path / "y.npy")!r}))
        print("same predictions")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert "same predictions" in done.stdout, done.stderr[-3000:]
