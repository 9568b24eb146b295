"""The table of docs/training.md: what comes back, through every door, from every way to save a run.

Each cell is tried: a run of two epochs, and one that is saved after the first and goes on in another build. "all" has
the same weights, masks and optimizer in the end, to the bit; "weights" the weights that were saved, and no more. Rows
without pruning say what Keras itself does.
"""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras

import tfmot_asp
from tfmot_asp.keras_models.constraints import mask_of

PAGE = Path(__file__).parents[2] / "docs" / "training.md"
LEGACY = tf_keras.optimizers.legacy.Adam
BATCHES = 3


def table():
    """The cells of the table: {(door, format): outcome}."""
    rows = [
        [cell.strip().replace("`", "") for cell in line.strip("| \n").split("|")]
        for line in PAGE.read_text().split("### Every door")[1].split("\n## ")[0].splitlines()
        if line.startswith("|")
    ]
    formats = rows[0][1:]
    return {(row[0], kind): cell for row in rows[2:] for kind, cell in zip(formats, row[1:], strict=True)}


def build(library, seed):
    library.utils.set_random_seed(seed)
    layers = library.layers
    x = library.Input((32,))
    y = layers.BatchNormalization()(layers.Dense(32, activation="relu")(x))
    return library.Model(x, layers.Dense(8)(y))


def wrapped(model):
    schedule = tfmot.sparsity.keras.PolynomialDecay(0.0, 0.5, 1, 2 * BATCHES, frequency=1)
    return tfmot_asp.prune_low_magnitude(model, schedule, permute=False)


def with_policy(model):
    return tfmot.sparsity.keras.prune_low_magnitude(
        model, pruning_policy=tfmot_asp.PruneForSparseTensorCores(), sparsity_m_by_n=(2, 4)
    )


def trained(model):
    tfmot_asp.prune_trained_model(model, permute=False)
    return model


def asp(optimizer, model):
    return tfmot_asp.AspOptimizerWrapperV2(optimizer, model, permute=False)


def nothing(model):
    return model


DOORS = {
    "no pruning, tf_keras": (tf_keras, tf_keras.optimizers.Adam, nothing),
    "no pruning, legacy optimizer": (tf_keras, LEGACY, nothing),
    "no pruning, Keras 3": (keras, keras.optimizers.Adam, nothing),
    "prune_low_magnitude": (tf_keras, tf_keras.optimizers.Adam, wrapped),
    "prune_low_magnitude, legacy optimizer": (tf_keras, LEGACY, wrapped),
    "tfmot's, our policy": (tf_keras, tf_keras.optimizers.Adam, with_policy),
    "prune_trained_model, tf_keras": (tf_keras, tf_keras.optimizers.Adam, trained),
    "prune_trained_model, legacy optimizer": (tf_keras, LEGACY, trained),
    "prune_trained_model, Keras 3": (keras, keras.optimizers.Adam, trained),
    "AspOptimizerWrapperV2": (tf_keras, tf_keras.optimizers.Adam, None),
    "AspOptimizerWrapperV2, legacy optimizer": (tf_keras, LEGACY, None),
}
FILES = {".keras": "m.keras", ".h5": "m.h5", "SavedModel": "saved", ".weights.h5": "m.weights.h5"}


def door(name, seed=0, *, without=False):
    """A model that is about to be trained, or one that is to go through the door yet."""
    library, make_optimizer, prune = DOORS[name]
    model, optimizer = build(library, seed), make_optimizer(0.01)
    if prune is None:
        optimizer = asp(optimizer, model)
    elif not without:
        model = prune(model)
    model.compile(optimizer, library.losses.MeanSquaredError())
    return model


def through_the_door(name, model):
    """The same for a model that was loaded from a file."""
    prune = DOORS[name][2]
    if prune is trained:
        trained(model)
    elif prune is None:
        model.compile(asp(model.optimizer, model), tf_keras.losses.MeanSquaredError())
    return model


def fit(name, model, epochs=1, *callbacks):
    generator = np.random.default_rng(0)
    x, y = (generator.normal(size=(8 * BATCHES, size)).astype("f") for size in (32, 8))
    if DOORS[name][2] is with_policy:
        callbacks += (tfmot.sparsity.keras.UpdatePruningStep(),)
    model.fit(x, y, batch_size=8, epochs=epochs, shuffle=False, verbose=0, callbacks=list(callbacks))


def state(model):
    """Weights; then masks that are no weights, and all of the optimizer."""
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    if isinstance(optimizer, LEGACY):  # which lists them as they came
        kept = [optimizer.get_slot(weight, slot) for weight in model.trainable_weights for slot in "mv"]
        kept = [optimizer.iterations, *kept]
    else:
        kept = optimizer.variables
    masks = [mask_of(weight) for weight in model.trainable_weights]
    weights = [np.array(weight) for weight in model.weights]
    return weights, [np.array(mask) for mask in masks if mask is not None], [np.array(slot) for slot in kept]


def equal(ours, theirs):
    return len(ours) == len(theirs) and all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def backup(name, folder, **options):
    return DOORS[name][0].callbacks.BackupAndRestore(str(folder), **options)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """For a door: the folder of what a run saved after an epoch, its weights there, and its state after another."""
    found = {}

    def run(name):
        if name not in found:
            folder = tmp_path_factory.mktemp("run")
            build(DOORS[name][0], 2)  # so that automatic names differ in the other build
            model = door(name)
            fit(name, model, 1, backup(name, folder / "b.weights.h5" if "Keras 3" in name else folder / "backup",
                                       delete_checkpoint=False))  # fmt: skip
            model._training_state = None  # tf_keras forgets to
            for kind, file in FILES.items():
                if kind != "SavedModel" or "Keras 3" not in name:
                    model.save_weights(folder / file) if "weights" in kind else model.save(folder / file)
            if "Keras 3" not in name:
                model.save_weights(folder / "checkpoint of the model")
            tf.train.Checkpoint(model=model, optimizer=model.optimizer).write(folder / "checkpoint")
            saved = state(model)[0]
            fit(name, model)
            found[name] = folder, saved, state(model)
        return found[name]

    return run


def restored(name, kind, folder):
    """Another build with what was saved in it; and the epochs that `fit` is to be told."""
    library = DOORS[name][0]
    if kind in (".keras", ".h5", "SavedModel"):
        with tfmot_asp.prune_scope(), tfmot.sparsity.keras.prune_scope():
            return through_the_door(name, library.models.load_model(folder / FILES[kind]))
    later = kind == ".weights.h5" and DOORS[name][2] is trained  # they have no masks
    model = door(name, seed=1, without=later)
    if DOORS[name][1] is not LEGACY:
        model.optimizer.build(model.trainable_variables)  # what is not there is not restored
    if kind == "tf.train.Checkpoint":
        tf.train.Checkpoint(model=model, optimizer=model.optimizer).read(folder / "checkpoint")
    elif kind == ".weights.h5":
        model.load_weights(folder / FILES[kind])
    elif kind == "save_weights(prefix)":
        model.load_weights(folder / "checkpoint of the model")
    return through_the_door(name, model) if later else model


def outcome(name, kind, runs):
    folder, saved, expected = runs(name)
    try:
        model = restored(name, kind, folder)
        if kind == "BackupAndRestore":
            fit(name, model, 2, backup(name, folder / ("b.weights.h5" if "Keras 3" in name else "backup"),
                                       delete_checkpoint=False))  # fmt: skip
            at_once = True
        else:
            at_once = equal([np.array(weight) for weight in model.weights], saved)
            fit(name, model)
    except (ValueError, OSError, TypeError, AttributeError, KeyError) as error:
        return f"no: {type(error).__name__} {error}"[:300]
    if all(equal(ours, theirs) for ours, theirs in zip(state(model), expected, strict=True)):
        return "all"
    return "weights" if at_once else "none"


CELLS = [place for place, cell in table().items() if cell in ("all", "weights", "no")]
QUICK = {("prune_trained_model, Keras 3", ".weights.h5"), ("AspOptimizerWrapperV2", ".keras")}


@pytest.mark.parametrize(
    ("name", "kind"), [pytest.param(*cell, marks=() if cell in QUICK else pytest.mark.slow) for cell in CELLS]
)
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_a_cell(name, kind, runs):
    found = outcome(name, kind, runs)
    assert found.partition(":")[0] == table()[name, kind], found


def test_the_table_has_every_door():
    assert {door for door, _ in table()} == set(DOORS)
    assert len(table()) == 7 * len(DOORS)
