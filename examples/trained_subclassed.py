"""A subclassed model in a training loop of its own: one call prunes it, and the loop stays as it is.

    python examples/trained_subclassed.py [--epochs 15] [--fine-tune-epochs 10] [--out DIR]

tfmot cannot wrap the layers of a subclassed model. ``prune_trained_model`` needs no wrapper and no callback: its masks
are constraints of the kernel variables, and every optimizer applies them as part of its step.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
import tf_keras
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tf_keras import layers

import tfmot_asp


class Residual(layers.Layer):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = layers.LayerNormalization()
        self.up, self.down = layers.Dense(4 * width, activation="gelu"), layers.Dense(width)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return x + self.down(self.up(self.norm(x)))


class Classifier(tf_keras.Model):
    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.embed = layers.Dense(width)
        self.blocks = [Residual(width) for _ in range(3)]
        self.dropout, self.head = layers.Dropout(0.2), layers.Dense(10)

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        x = self.embed(tf.reshape(images, (-1, 64)))
        for block in self.blocks:
            x = block(x)
        return self.head(self.dropout(x, training=training))


def train(model: Classifier, images: np.ndarray, labels: np.ndarray, epochs: int, learning_rate: float) -> None:
    optimizer = tf_keras.optimizers.Adam(learning_rate)
    loss_function = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @tf.function  # traced after pruning, so that it knows the masks
    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = loss_function(y, model(x, training=True))
        variables = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    batches = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(len(images), seed=0).batch(32)
    for epoch in range(epochs):
        losses = [float(step(x, y)) for x, y in batches]
        print(f"epoch {epoch + 1} of {epochs}: loss {np.mean(losses):.4f}")


def accuracy(model: Classifier, images: np.ndarray, labels: np.ndarray) -> float:
    return 100 * float(np.mean(model(images).numpy().argmax(-1) == labels))


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=15, help="of dense training")
    parser.add_argument("--fine-tune-epochs", type=int, default=10, help="of training with the 2:4 masks")
    parser.add_argument("--out", type=pathlib.Path, help="where the SavedModel goes (default: a temporary directory)")
    args = parser.parse_args(argv)
    tf_keras.utils.set_random_seed(0)
    out = args.out or pathlib.Path(tempfile.mkdtemp()) / "digits_2_4"

    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)
    x_train, x_test, y_train, y_test = train_test_split(images, digits.target, test_size=0.3, random_state=0)

    model = Classifier()
    model(x_train[:1])  # builds it: a subclassed model has no weights before its first call
    train(model, x_train, y_train, args.epochs, 1e-3)
    results = {"dense": accuracy(model, x_test, y_test)}

    pruned = tfmot_asp.prune_trained_model(model)  # permutes, prunes and masks, in place
    results["2:4, one shot"] = accuracy(model, x_test, y_test)

    train(model, x_train, y_train, args.fine_tune_epochs, 5e-4)
    results["2:4, fine-tuned"] = accuracy(model, x_test, y_test)

    print(f"\n{pruned.report}\n")
    check = tfmot_asp.export.saved_model(model, out)
    print(f"{check}\n")
    if not check.ok:
        raise SystemExit("the written file is not 2:4")
    for name, value in results.items():
        print(f"{name:<20}{value:6.2f} % of {len(x_test)} test digits")
    return results


if __name__ == "__main__":
    main()
