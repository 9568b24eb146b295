"""A subclassed model in a training loop of its own: one call prunes it, and the loop stays as it is.

    python examples/trained_subclassed.py [--epochs 15] [--fine-tune-epochs 10] [--out DIR]

tfmot cannot wrap the layers of a subclassed model. ``prune_trained_model`` needs no wrapper and no callback: its masks
are constraints of the kernel variables, and every optimizer applies them as part of its step.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import digits
import numpy as np
import tensorflow as tf
import tf_keras
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


def main(argv: list[str] | None = None) -> dict[str, float]:
    args = digits.arguments(__doc__, epochs=15, fine_tune_epochs=10, out="digits_2_4").parse_args(argv)
    tf_keras.utils.set_random_seed(0)

    (x_train, y_train), (x_test, y_test) = digits.load()

    model = Classifier()
    model(x_train[:1])  # builds it: a subclassed model has no weights before its first call
    train(model, x_train, y_train, args.epochs, 1e-3)
    results = {"dense": digits.accuracy(model(x_test).numpy(), y_test)}

    pruned = tfmot_asp.prune_trained_model(model)  # permutes, prunes and masks, in place
    results["2:4, one shot"] = digits.accuracy(model(x_test).numpy(), y_test)

    train(model, x_train, y_train, args.fine_tune_epochs, 5e-4)
    results["2:4, fine-tuned"] = digits.accuracy(model(x_test).numpy(), y_test)

    print(f"\n{pruned.report}\n")
    check = tfmot_asp.export.saved_model(model, digits.target(args))
    print(f"{check}\n")
    if not check.ok:
        raise SystemExit("the written file is not 2:4")
    digits.show(results, len(x_test))
    return results


if __name__ == "__main__":
    main()
