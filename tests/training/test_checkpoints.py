"""Masks are found by position: a run goes on to the bit in the same model built again, through every door."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
from tf_keras import layers

import tfmot_asp
from tfmot_asp import masks
from tfmot_asp.keras_models.kernels import kernels_by_name, layers_with_kernels

BATCH = 8


def build(keras=tf_keras, seed=0):
    keras.utils.set_random_seed(seed)
    stack = keras.layers
    inner = keras.Sequential([keras.Input((32,)), stack.Dense(32, "relu"), stack.Dense(32)])
    return keras.Sequential([keras.Input((32,)), stack.Dense(32), inner, stack.Dense(8)])


def door(name, seed=0):
    """A model that is about to be trained, and its optimizer."""
    if name == "trained, Keras 3":
        import keras

        model = build(keras, seed)
        tfmot_asp.prune_trained_model(model, permute=False)
        model.compile(keras.optimizers.Adam(0.01), "mse")
        return model
    model = build(seed=seed)
    optimizer = tf_keras.optimizers.Adam(0.01)
    if name == "wrapper":
        schedule = tfmot.sparsity.keras.PolynomialDecay(0.0, 0.5, 1, 6, frequency=1)
        model = tfmot_asp.prune_low_magnitude(model, schedule, permute=False)
    elif name == "trained":
        tfmot_asp.prune_trained_model(model, permute=False)
    elif name == "optimizer":
        optimizer = tfmot_asp.AspOptimizerWrapperV2(optimizer, model, permute=False)
    elif name == "legacy optimizer":
        optimizer = tfmot_asp.AspOptimizerWrapperV2(tf_keras.optimizers.legacy.Adam(0.01), model, permute=False)
    model.compile(optimizer, "mse")
    return model


def batches(first, count):
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(64, BATCH, 32)).astype("f"), generator.normal(size=(64, BATCH, 8)).astype("f")
    return zip(x[first : first + count], y[first : first + count], strict=True)


def train(model, first, count):
    for x, y in batches(first, count):
        model.train_on_batch(x, y)


def values(model):
    return [tf.convert_to_tensor(k.tf_variable).numpy() for k in kernels_by_name(layers_with_kernels(model)).values()]


DOORS = ("wrapper", "trained", "trained, Keras 3", "optimizer", "legacy optimizer")


@pytest.mark.parametrize("fresh_names", [False, True])
@pytest.mark.parametrize("name", DOORS)
def test_a_checkpoint_restores_into_the_same_model_built_again(name, fresh_names, tmp_path):
    """With other automatic names, as a second build in one process has them, and with those of a new process."""
    build()  # so that names differ where they start again
    model = door(name)
    train(model, 0, 3)
    path = tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(tmp_path / "run")
    train(model, 3, 4)
    if fresh_names:
        tf_keras.backend.reset_uids()
    again = door(name, seed=1)
    again.optimizer.build(again.trainable_variables) if "Keras 3" in name else train(again, 9, 1)
    restored = tf.train.Checkpoint(model=again, optimizer=again.optimizer).restore(path)
    restored.assert_existing_objects_matched()
    train(again, 3, 4)
    for ours, theirs in zip(values(again), values(model), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert masks.violations(ours, 0) == 0


@pytest.mark.parametrize("name", [name for name in DOORS if "Keras 3" not in name])
def test_backup_and_restore_goes_on_where_a_run_stopped(name, tmp_path):
    class Stop(tf_keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise InterruptedError

    x, y = (np.concatenate(parts) for parts in zip(*batches(0, 3), strict=True))

    def fit(model, *callbacks):
        backup = tf_keras.callbacks.BackupAndRestore(str(tmp_path))
        options = {"batch_size": BATCH, "epochs": 4, "shuffle": False, "verbose": 0}
        model.fit(x, y, callbacks=[backup, *callbacks], **options)

    expected = door(name)
    expected.fit(x, y, batch_size=BATCH, epochs=4, shuffle=False, verbose=0)
    with pytest.raises(InterruptedError):
        fit(door(name), Stop())
    again = door(name, seed=1)
    fit(again)
    for ours, theirs in zip(values(again), values(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert masks.violations(ours, 0) == 0


def test_masks_that_were_saved_by_name_are_still_read(tmp_path):
    class ByName(tf.Module):
        def __init__(self, values):
            super().__init__()
            self.masks = {name: tf.Variable(value) for name, value in values.items()}

    model = build()
    pruned = tfmot_asp.prune_trained_model(model, permute=False)
    other = {name: np.roll(mask.numpy(), 1, axis=1) for name, mask in pruned.masks.items()}
    path = tf.train.Checkpoint(masks=ByName(other)).save(tmp_path / "old")
    tf.train.Checkpoint(masks=pruned).restore(path).assert_consumed()
    for name, mask in pruned.masks.items():
        np.testing.assert_array_equal(mask.numpy(), other[name])


def test_saved_models_and_files_hold_no_masks(tmp_path):
    model = door("trained")
    train(model, 0, 1)
    for name in ("model.keras", "model.h5", "model"):
        model.save(tmp_path / name)
        loaded = tf_keras.models.load_model(tmp_path / name)
        assert len(loaded.weights) == len(model.weights)
    plain = tf.saved_model.load(str(tmp_path / "model"))
    assert not any(variable.dtype == tf.bool for variable in plain.variables)


def test_remove_takes_the_masks_out_of_checkpoints():
    model = build()
    pruned = tfmot_asp.prune_trained_model(model, permute=False)
    assert "pruning_masks" in model._trackable_children()
    pruned.remove()
    assert "pruning_masks" not in model._trackable_children()


# Models within models, and optimizers -----------------------------------------------------------------------------


def outer_models(keras):
    class Subclassed(keras.Model):
        def __init__(self, encoder):
            super().__init__()
            self.parts = {"encoder": encoder}
            self.head = keras.layers.Dense(8)

        def call(self, inputs):
            return self.head(self.parts["encoder"](inputs))

    class OwnStep(Subclassed):
        def train_step(self, data):
            return super().train_step(data)

    def functional(encoder):
        x = keras.Input((32,))
        return keras.Model(x, keras.layers.Dense(8)(encoder(x)))

    return {"functional": functional, "subclassed": Subclassed, "train_step": OwnStep}


@pytest.mark.parametrize("which", ["tf_keras", "keras"])
@pytest.mark.parametrize("outer", ["functional", "subclassed", "train_step"])
@pytest.mark.parametrize("part", ["model", "layer"])
def test_pruning_a_part_reaches_the_fit_of_every_model_that_holds_it(which, outer, part):
    keras = pytest.importorskip(which)
    encoder = keras.Sequential([keras.Input((32,)), keras.layers.Dense(64), keras.layers.Dense(64)])
    model = outer_models(keras)[outer](encoder)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse")
    x, y = next(batches(0, 1))
    model.fit(x, y, verbose=0)
    pruned = tfmot_asp.prune_trained_model(encoder if part == "model" else encoder.layers[0], permute=False)
    model.fit(x, y, verbose=0)
    sparse = [masks.violations(value, 0) == 0 for value in values(encoder)]
    assert sparse == [True, part == "model"]
    pruned.remove()
    model.fit(x, y, verbose=0)
    assert all(masks.violations(value, 0) for value in values(encoder))


def test_slots_of_an_outer_models_optimizer_move_with_an_inner_models_weights():
    encoder = build()
    x = tf_keras.Input((32,))
    model = tf_keras.Model(x, layers.Dense(8)(encoder(x)))
    model.compile(tf_keras.optimizers.SGD(0.01, momentum=0.9), "mse")
    train(model, 0, 2)
    check_that_slots_move(model.trainable_variables, model.optimizer, lambda: tfmot_asp.permute(encoder, effort="fast"))


def check_that_slots_move(variables, optimizer, reorder):
    """With momentum made a function of the weights, it stays that function."""
    if hasattr(optimizer, "momentums"):
        slots = optimizer.momentums
    else:
        slots = [optimizer.get_slot(variable, "momentum") for variable in variables]
    before = [np.array(variable) for variable in variables]
    for slot, value in zip(slots, before, strict=True):
        slot.assign(3 * value)
    reorder()
    after = [np.array(variable) for variable in variables]
    assert any(not np.array_equal(old, new) for old, new in zip(before, after, strict=True))
    for slot, value in zip(slots, after, strict=True):
        kept = value != 0  # pruning zeroes weights, not slots
        np.testing.assert_array_equal(np.array(slot)[kept], 3 * value[kept])


@pytest.mark.parametrize("kind", ["current", "legacy", "Keras 3"])
@pytest.mark.parametrize("way", ["permute", "prune_trained_model", "AspOptimizerWrapperV2"])
def test_slots_of_an_optimizer_that_is_given_move_in_a_loop_of_ones_own(kind, way):
    if (kind, way) == ("Keras 3", "AspOptimizerWrapperV2"):
        pytest.skip("takes tf_keras only")
    keras = pytest.importorskip("keras") if kind == "Keras 3" else tf_keras
    model = build(keras)
    optimizer = (keras.optimizers.legacy if kind == "legacy" else keras.optimizers).SGD(0.01, momentum=0.9)
    variables = model.trainable_variables
    optimizer.apply_gradients([(tf.ones(variable.shape), variable) for variable in variables])
    ways = {
        "permute": lambda: tfmot_asp.permute(model, effort="fast", optimizer=[optimizer]),
        "prune_trained_model": lambda: tfmot_asp.prune_trained_model(model, optimizer=optimizer),
        "AspOptimizerWrapperV2": lambda: tfmot_asp.AspOptimizerWrapperV2(optimizer, model),
    }
    check_that_slots_move(variables, optimizer, ways[way])


def test_what_is_no_optimizer_is_refused_before_anything_is_done():
    model = build()
    before = values(model)
    for call in (tfmot_asp.permute, tfmot_asp.prune_trained_model):
        with pytest.raises(TypeError, match=r"optimizer must be an optimizer of tf_keras or Keras 3, .* got 'adam'"):
            call(model, optimizer="adam")
    assert all(np.array_equal(old, new) for old, new in zip(before, values(model), strict=True))


@pytest.mark.parametrize("kind", ["optimizer", "legacy optimizer"])
def test_an_optimizer_for_one_model_warns_when_it_trains_another(kind, recwarn):
    model = door(kind)
    clone = tf_keras.models.clone_model(model)
    clone.compile(model.optimizer, "mse")
    with pytest.warns(UserWarning, match="was made for 'sequential.*' but trains other variables"):
        train(clone, 0, 1)
    head = door(kind)
    for layer in head.layers[:-1]:
        layer.trainable = False
    head.compile(head.optimizer, "mse")
    recwarn.clear()
    train(head, 0, 1)
    assert not [warning for warning in recwarn if "was made for" in str(warning.message)]


@pytest.mark.parametrize("legacy", [False, True])
def test_an_optimizer_that_is_wrapped_can_be_wrapped_again(legacy):
    make = (tf_keras.optimizers.legacy if legacy else tf_keras.optimizers).SGD
    model, other = build(), build()
    first = tfmot_asp.AspOptimizerWrapperV2(make(0.01), model, permute=False)
    again = tfmot_asp.AspOptimizerWrapperV2(first, model, permute=False)
    assert again.inner_optimizer is first.inner_optimizer
    if legacy:
        both = tfmot_asp.AspOptimizerWrapperV2(again, other, permute=False)
        joined = tf_keras.Sequential([tf_keras.Input((32,)), layers.Dense(32), model, layers.Dense(32), other])
        joined.compile(both, "mse")
        train(joined, 0, 2)
        assert not any(masks.violations(value, 0) for value in (*values(model), *values(other)))
    else:
        model.compile(again, "mse")
        train(model, 0, 2)
        assert not any(masks.violations(value, 0) for value in values(model))


def test_a_train_step_that_was_traced_on_its_own_is_named():
    class Own(tf_keras.Model):
        @tf.function
        def train_step(self, data):
            return super().train_step(data)

    x = tf_keras.Input((32,))
    model = Own(x, layers.Dense(8)(x))
    model.compile("sgd", "mse")
    train(model, 0, 1)
    with pytest.warns(UserWarning, match=r"Own 'own' has trained with a train_step that is a tf\.function"):
        tfmot_asp.prune_trained_model(model, permute=False)
