"""Every door and every kind of wrong input: an error that names what works, and a model that stays as it was."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfmot_asp

DOORS = {
    "prune_low_magnitude": lambda model: tfmot_asp.prune_low_magnitude(model, permute=False),
    "prune_trained_model": lambda model: tfmot_asp.prune_trained_model(model, permute=False),
    "AspOptimizerWrapperV2": lambda model: tfmot_asp.AspOptimizerWrapperV2(
        tf_keras.optimizers.SGD(), model, permute=False
    ),
}


class Net(tf_keras.Model):
    def __init__(self):
        super().__init__(name="net")
        self.fc = tf_keras.layers.Dense(16)

    def call(self, inputs):
        return self.fc(inputs)


def subclassed():
    net = Net()
    net(tf.zeros((1, 16)))
    return net


def sequential(library=tf_keras, units=16):
    return library.Sequential([library.Input((16,)), library.layers.Dense(units, name="fc")])


def holding_nan():
    model = sequential()
    model.layers[0].kernel.assign(np.full((16, 16), np.nan, "f"))
    return model


TAKES = None  # the door takes it
TO_TRAINED = "prune_trained_model"
INPUTS = {  # what comes in, and for each door what its error must name
    "no model": (lambda: "model", ("takes a tf_keras", "takes a model or layer", "must be a tf_keras model")),
    "Keras 3": (lambda: sequential(keras), (TO_TRAINED, TAKES, TO_TRAINED)),
    "subclassed": (subclassed, (TO_TRAINED, TAKES, TAKES)),
    "not built": (lambda: tf_keras.Sequential([tf_keras.layers.Dense(16)]), ("is not built",) * 3),
    "NaN": (holding_nan, ("'fc' hold 256 NaN", "'fc' hold 256 NaN", TAKES)),
    "nothing to prune": (lambda: sequential(units=7), ("has 7 output features", "has 7 output features", TAKES)),
    "wrapped": (
        lambda: tfmot_asp.prune_low_magnitude(sequential(), permute=False),
        (TAKES, "strip_pruning", TAKES),
    ),
}


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize(("index", "door"), list(enumerate(DOORS)))
def test_the_error_names_what_works_and_nothing_changes(index, door, kind):
    make, answers = INPUTS[kind]
    thing = make()
    if answers[index] is TAKES:
        DOORS[door](thing)
        return
    weights = thing.weights if getattr(thing, "built", False) else []
    before = [(tf.convert_to_tensor(weight).numpy(), weight.constraint) for weight in weights]
    with pytest.raises((TypeError, ValueError), match=answers[index]):
        DOORS[door](thing)
    for (value, constraint), weight in zip(before, weights, strict=True):
        np.testing.assert_array_equal(value, tf.convert_to_tensor(weight).numpy())
        assert weight.constraint is constraint
