"""A small transformer with the projections of its attention layers pruned, and not only its Dense layers.

    python examples/transformer.py [--epochs 25] [--fine-tune-epochs 15] [--out DIR]

The policy takes attention layers if it is told to: their projections are EinsumDense kernels. The task is to read a
handwritten digit row by row, as eight tokens of eight pixels, so attention is what brings the rows together.
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


def build_model(width: int = 64, heads: int = 4, blocks: int = 2) -> tf_keras.Model:
    inputs = tf_keras.Input((8, 8))
    positions = layers.Embedding(8, width)(tf.range(8))
    x = layers.Dense(width)(inputs) + positions
    for _ in range(blocks):
        y = layers.LayerNormalization()(x)
        x += layers.MultiHeadAttention(heads, width // heads)(y, y)
        y = layers.Dense(4 * width, activation="gelu")(layers.LayerNormalization()(x))
        x += layers.Dropout(0.1)(layers.Dense(width)(y))
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return tf_keras.Model(inputs, layers.Dense(10)(x))


def train(model: tf_keras.Model, data: tuple, epochs: int, callbacks: tuple = ()) -> None:
    rate = tf_keras.optimizers.schedules.CosineDecay(1e-3, max(1, epochs) * -(-len(data[0]) // 32))
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf_keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    model.fit(*data, batch_size=32, epochs=epochs, verbose=2, callbacks=list(callbacks))


def accuracy(model: tf_keras.Model, images: np.ndarray, labels: np.ndarray) -> float:
    return 100 * float(np.mean(model.predict(images, verbose=0).argmax(-1) == labels))


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=25, help="of dense training")
    parser.add_argument("--fine-tune-epochs", type=int, default=15, help="of training with the 2:4 masks")
    parser.add_argument("--out", type=pathlib.Path, help="where the SavedModel goes (default: a temporary directory)")
    args = parser.parse_args(argv)
    tf_keras.utils.set_random_seed(0)
    out = args.out or pathlib.Path(tempfile.mkdtemp()) / "digits_2_4"

    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)
    x_train, x_test, y_train, y_test = train_test_split(images, digits.target, test_size=0.3, random_state=0)

    model = build_model()
    train(model, (x_train, y_train), args.epochs)
    results = {"dense": accuracy(model, x_test, y_test)}

    policy = tfmot_asp.PruneForSparseTensorCores(kinds=("Dense", "EinsumDense"))
    report = tfmot_asp.permute(model, policy=policy)
    pruned = tfmot_asp.prune_low_magnitude(model, pruning_policy=policy, permute=False)
    results["2:4, one shot"] = accuracy(tfmot_asp.strip_pruning(pruned), x_test, y_test)

    train(pruned, (x_train, y_train), args.fine_tune_epochs, [tfmot_asp.UpdatePruningStep()])
    final = tfmot_asp.strip_pruning(pruned)
    results["2:4, fine-tuned"] = accuracy(final, x_test, y_test)

    print(f"\n{report}\n\n{tfmot_asp.sparsity_report(final, policy=policy, batch_size=64)}\n")
    check = tfmot_asp.export.saved_model(final, out)
    print(f"{check}\n")
    if not check.ok:
        raise SystemExit("the written file is not 2:4")
    for name, value in results.items():
        print(f"{name:<20}{value:6.2f} % of {len(x_test)} test digits")
    return results


if __name__ == "__main__":
    main()
