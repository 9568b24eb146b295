"""Train, permute, prune to 2:4, fine-tune, export and check a small residual network on handwritten digits.

    python examples/quickstart.py [--epochs 20] [--fine-tune-epochs 10] [--out DIR]

The digits are scikit-learn's (1,797 scans of 8 × 8 pixels, real data that the package ships), so nothing is downloaded.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
import tf_keras
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tf_keras import layers

import tfmot_asp


def build_model(width: int = 32) -> tf_keras.Model:
    """A residual network with what makes permutation interesting: batch norm, a shortcut, a concat and a flatten."""

    def conv(x, filters, size, activation=True):
        x = layers.Conv2D(filters, size, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization()(x)
        return layers.ReLU()(x) if activation else x

    inputs = tf_keras.Input((8, 8, 1))
    x = conv(inputs, width, 3)
    for _ in range(2):
        shortcut = x
        x = conv(x, width, 3)
        x = conv(x, width, 3, activation=False)
        x = layers.ReLU()(layers.Add()([x, shortcut]))
    x = layers.Concatenate()([conv(x, width, 1), conv(x, width, 3)])
    x = layers.MaxPooling2D()(x)
    x = conv(x, 2 * width, 3)
    x = layers.Flatten()(layers.MaxPooling2D()(x))
    x = layers.Dropout(0.3)(layers.Dense(64, activation="relu")(x))
    return tf_keras.Model(inputs, layers.Dense(10)(x))


def compile_model(model: tf_keras.Model, learning_rate: float, steps: int) -> None:
    model.compile(
        # Weight decay makes the magnitude of a weight say more about its importance.
        tf_keras.optimizers.AdamW(tf_keras.optimizers.schedules.CosineDecay(learning_rate, steps), weight_decay=1.0),
        tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )


def accuracy(model: tf_keras.Model, images: np.ndarray, labels: np.ndarray) -> float:
    return 100 * float(np.mean(model.predict(images, verbose=0).argmax(-1) == labels))


def copy_of(model: tf_keras.Model) -> tf_keras.Model:
    """A model of its own with the same weights, for what must not change the original."""
    copy = tf_keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


def one_shot(model: tf_keras.Model, permute: bool) -> tf_keras.Model:
    """2:4 without any training."""
    return tfmot_asp.strip_pruning(tfmot_asp.prune_low_magnitude(copy_of(model), permute=permute))


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20, help="of dense training")
    parser.add_argument("--fine-tune-epochs", type=int, default=10, help="of training with the 2:4 masks")
    parser.add_argument("--out", type=pathlib.Path, help="where the SavedModel goes (default: a temporary directory)")
    args = parser.parse_args(argv)
    started = time.monotonic()
    tf_keras.utils.set_random_seed(0)

    digits = load_digits()
    images = (digits.images[..., None] / 16).astype(np.float32)
    x_train, x_test, y_train, y_test = train_test_split(
        images, digits.target, test_size=0.3, random_state=0, stratify=digits.target
    )
    steps = -(-len(x_train) // 32)

    print("1. Train the dense model")
    model = build_model()
    compile_model(model, 2e-3, args.epochs * steps)
    model.fit(x_train, y_train, batch_size=32, epochs=args.epochs, verbose=2)
    results = {
        "dense": accuracy(model, x_test, y_test),
        "one-shot 2:4": accuracy(one_shot(model, permute=False), x_test, y_test),
    }

    print("2. Permute: the same function, with the channels in an order that 2:4 likes")
    before = model.predict(x_test, verbose=0)
    report = tfmot_asp.permute(model)
    change = np.abs(model.predict(x_test, verbose=0) - before).max() / np.abs(before).max()
    results["one-shot 2:4, permuted"] = accuracy(one_shot(model, permute=False), x_test, y_test)

    print("3. Prune to 2:4 and fine-tune")
    pruned = tfmot_asp.prune_low_magnitude(model, permute=False)  # permuted already, to show the report
    compile_model(pruned, 1e-3, args.fine_tune_epochs * steps)
    pruned.fit(
        x_train,
        y_train,
        batch_size=32,
        epochs=args.fine_tune_epochs,
        verbose=2,
        callbacks=[tfmot_asp.UpdatePruningStep()],
    )
    final = tfmot_asp.strip_pruning(pruned)
    results["2:4, permuted, fine-tuned"] = accuracy(final, x_test, y_test)

    print("4. Export, and read the files back")
    out = args.out or pathlib.Path(tempfile.mkdtemp()) / "digits_2_4"
    tfmot_asp.export.saved_model(final, out)
    check = tfmot_asp.export.verify(out)
    signature = tf.saved_model.load(str(out)).signatures["serving_default"]
    (served,) = signature(tf.constant(x_test)).values()
    difference = np.abs(served.numpy() - final.predict(x_test, verbose=0)).max()
    if not np.array_equal(served.numpy().argmax(-1), final.predict(x_test, verbose=0).argmax(-1)):
        raise SystemExit("the SavedModel predicts something else than the model")

    print("\nLayers, and the share of their weight magnitude that 2:4 keeps before and after permutation")
    print(report)
    print(f"\nPermutation changed the outputs by {change:.1e} of their size.")
    print(f"\nSavedModel {out}: predictions as the model's (largest difference {difference:.1e})")
    print(check)
    print(f"\n{'model':<28}test accuracy ({len(x_test)} digits)")
    for name, value in results.items():
        print(f"{name:<28}{value:6.2f} %")
    print(f"\n{time.monotonic() - started:.0f} s in all")
    return results


if __name__ == "__main__":
    main()
