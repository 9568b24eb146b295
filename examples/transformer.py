"""A small transformer with the projections of its attention layers pruned, and not only its Dense layers.

    python examples/transformer.py [--epochs 25] [--fine-tune-epochs 15] [--out DIR]

The policy takes attention layers too: their projections are EinsumDense kernels. The task is to read a
handwritten digit row by row, as eight tokens of eight pixels, so attention is what brings the rows together.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import digits
import tensorflow as tf
import tf_keras
from tf_keras import layers

import tfmot_asp


def build_model(width: int = 64, heads: int = 4, blocks: int = 2) -> tf_keras.Model:
    inputs = tf_keras.Input((8, 8, 1))
    positions = layers.Embedding(8, width)(tf.range(8))
    x = layers.Dense(width)(layers.Reshape((8, 8))(inputs)) + positions
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


def main(argv: list[str] | None = None) -> dict[str, float]:
    args = digits.arguments(__doc__, epochs=25, fine_tune_epochs=15, out="digits_2_4").parse_args(argv)
    tf_keras.utils.set_random_seed(0)

    train_data, (x_test, y_test) = digits.load()

    model = build_model()
    train(model, train_data, args.epochs)
    results = {"dense": digits.accuracy(model.predict(x_test, verbose=0), y_test)}

    policy = tfmot_asp.PruneForSparseTensorCores()
    report = tfmot_asp.permute(model, policy=policy)
    pruned = tfmot_asp.prune_low_magnitude(model, pruning_policy=policy, permute=False)
    results["2:4, one shot"] = digits.accuracy(tfmot_asp.strip_pruning(pruned).predict(x_test, verbose=0), y_test)

    train(pruned, train_data, args.fine_tune_epochs, [tfmot_asp.UpdatePruningStep()])
    final = tfmot_asp.strip_pruning(pruned)
    results["2:4, fine-tuned"] = digits.accuracy(final.predict(x_test, verbose=0), y_test)

    print(f"\n{report}\n\n{tfmot_asp.sparsity_report(final, policy=policy, batch_size=64)}\n")
    check = tfmot_asp.export.saved_model(final, digits.target(args))
    print(f"{check}\n")
    if not check.ok:
        raise SystemExit("the written file is not 2:4")
    digits.show(results, len(x_test))
    return results


if __name__ == "__main__":
    main()
