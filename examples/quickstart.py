"""Train, permute, prune to 2:4, fine-tune, export and check a small residual network on handwritten digits.

    python examples/quickstart.py [--epochs 20] [--fine-tune-epochs 10] [--out DIR]

The digits are scikit-learn's, real data that the package ships, so nothing is downloaded.
"""

from __future__ import annotations

import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import digits
import numpy as np
import tensorflow as tf
import tf_keras
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


def copy_of(model: tf_keras.Model) -> tf_keras.Model:
    """A model of its own with the same weights, for what must not change the original."""
    copy = tf_keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


def one_shot(model: tf_keras.Model) -> tf_keras.Model:
    """2:4 without any training."""
    return tfmot_asp.strip_pruning(tfmot_asp.prune_low_magnitude(copy_of(model), permute=False))


def main(argv: list[str] | None = None) -> dict[str, float]:
    args = digits.arguments(__doc__, epochs=20, fine_tune_epochs=10, out="digits_2_4").parse_args(argv)
    started = time.monotonic()
    tf_keras.utils.set_random_seed(0)

    (x_train, y_train), (x_test, y_test) = digits.load()
    steps = -(-len(x_train) // 32)

    print("1. Train the dense model")
    model = build_model()
    compile_model(model, 2e-3, args.epochs * steps)
    model.fit(x_train, y_train, batch_size=32, epochs=args.epochs, verbose=2)
    results = {
        "dense": digits.accuracy(model.predict(x_test, verbose=0), y_test),
        "one-shot 2:4": digits.accuracy(one_shot(model).predict(x_test, verbose=0), y_test),
    }

    print("2. Permute: the same function, with the channels in an order that 2:4 likes")
    before = model.predict(x_test, verbose=0)
    report = tfmot_asp.permute(model)
    change = np.abs(model.predict(x_test, verbose=0) - before).max() / np.abs(before).max()
    results["one-shot 2:4, permuted"] = digits.accuracy(one_shot(model).predict(x_test, verbose=0), y_test)

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
    results["2:4, permuted, fine-tuned"] = digits.accuracy(final.predict(x_test, verbose=0), y_test)

    print("4. Export, and read the files back")
    out = digits.target(args)
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
    print()
    digits.show(results, len(x_test))
    print(f"\n{time.monotonic() - started:.0f} s in all")
    return results


if __name__ == "__main__":
    main()
