"""A Keras 3 model: pruned in place, trained by its own ``fit``, saved as ``.keras``, and the file verified.

    python examples/trained_keras3.py [--epochs 15] [--fine-tune-epochs 10] [--out FILE.keras]

tfmot knows Keras 2 only. ``prune_trained_model`` works on Keras 3 models with the TensorFlow backend, and importing it
does not switch ``tf.keras`` to Keras 2, as importing tfmot does.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")  # before Keras is imported

import keras
import numpy as np
from keras import layers
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

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


def accuracy(model: keras.Model, images: np.ndarray, labels: np.ndarray) -> float:
    return 100 * float(np.mean(model.predict(images, verbose=0).argmax(-1) == labels))


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=15, help="of dense training")
    parser.add_argument("--fine-tune-epochs", type=int, default=10, help="of training with the 2:4 masks")
    parser.add_argument("--out", type=pathlib.Path, help="the .keras file to write (default: in a temporary directory)")
    args = parser.parse_args(argv)
    keras.utils.set_random_seed(0)
    out = args.out or pathlib.Path(tempfile.mkdtemp()) / "digits_2_4.keras"

    digits = load_digits()
    images = (digits.images[..., None] / 16).astype(np.float32)
    x_train, x_test, y_train, y_test = train_test_split(images, digits.target, test_size=0.3, random_state=0)

    model = build_model()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    model.fit(x_train, y_train, batch_size=32, epochs=args.epochs, verbose=2)
    results = {"dense": accuracy(model, x_test, y_test)}

    pruned = tfmot_asp.prune_trained_model(model)  # permutes, prunes and masks, in place; the model stays compiled
    results["2:4, one shot"] = accuracy(model, x_test, y_test)

    model.fit(x_train, y_train, batch_size=32, epochs=args.fine_tune_epochs, verbose=2)
    results["2:4, fine-tuned"] = accuracy(model, x_test, y_test)

    print(f"\n{pruned.report}\n")
    model.save(out)  # an ordinary Keras file: whoever loads it needs nothing of this package
    check = tfmot_asp.export.verify(out)
    print(f"{check}\n")
    if not check.ok:
        raise SystemExit("the written file is not 2:4")
    for name, value in results.items():
        print(f"{name:<20}{value:6.2f} % of {len(x_test)} test digits")
    return results


if __name__ == "__main__":
    main()
