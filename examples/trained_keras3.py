"""A Keras 3 model: pruned in place, trained by its own ``fit``, saved as ``.keras``, and the file verified.

    python examples/trained_keras3.py [--epochs 15] [--fine-tune-epochs 10] [--out FILE.keras]

tfmot knows Keras 2 only. ``prune_trained_model`` works on Keras 3 models with the TensorFlow backend, and importing it
does not switch ``tf.keras`` to Keras 2, as importing tfmot does.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")  # before Keras is imported

import digits
import keras
from keras import layers

import tfmot_asp


def build_model() -> keras.Model:
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(32, 3, padding="same", activation="relu")(inputs)
    y = layers.Conv2D(32, 3, padding="same", use_bias=False)(x)
    x = layers.ReLU()(layers.Add()([x, layers.BatchNormalization(momentum=0.9)(y)]))
    x = layers.MaxPooling2D()(x)
    x = layers.Conv2D(64, 3, padding="same", activation="relu")(x)
    x = layers.Dropout(0.3)(layers.Flatten()(x))
    return keras.Model(inputs, layers.Dense(10)(layers.Dense(64, activation="relu")(x)))


def main(argv: list[str] | None = None) -> dict[str, float]:
    args = digits.arguments(__doc__, epochs=15, fine_tune_epochs=10, out="digits_2_4.keras").parse_args(argv)
    keras.utils.set_random_seed(0)
    out = digits.target(args)

    (x_train, y_train), (x_test, y_test) = digits.load()

    model = build_model()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    model.fit(x_train, y_train, batch_size=32, epochs=args.epochs, verbose=2)
    results = {"dense": digits.accuracy(model.predict(x_test, verbose=0), y_test)}

    pruned = tfmot_asp.prune_trained_model(model)  # permutes, prunes and masks, in place; the model stays compiled
    results["2:4, one shot"] = digits.accuracy(model.predict(x_test, verbose=0), y_test)

    model.fit(x_train, y_train, batch_size=32, epochs=args.fine_tune_epochs, verbose=2)
    results["2:4, fine-tuned"] = digits.accuracy(model.predict(x_test, verbose=0), y_test)

    print(f"\n{pruned.report}\n")
    model.save(out)  # an ordinary Keras file: whoever loads it needs nothing of this package
    check = tfmot_asp.export.verify(out)
    print(f"{check}\n")
    if not check.ok:
        raise SystemExit("the written file is not 2:4")
    digits.show(results, len(x_test))
    return results


if __name__ == "__main__":
    main()
