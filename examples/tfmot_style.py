"""A tfmot pruning script, made 2:4 by its import: schedule, callbacks and stripping stay as they are.

    python examples/tfmot_style.py [--epochs 15] [--fine-tune-epochs 10] [--out DIR]

Sparsity rises to one half along a PolynomialDecay while the model trains, and ends exactly 2:4. What differs from the
script that tfmot's guide would have is the import, and that the model is permuted first.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import digits
import tensorflow_model_optimization as tfmot
import tf_keras
from tf_keras import layers

import tfmot_asp


def build_model() -> tf_keras.Model:
    return tf_keras.Sequential(
        [
            layers.Input((8, 8, 1)),
            layers.Conv2D(32, 3, padding="same", activation="relu"),  # one input channel: stays dense
            layers.Conv2D(64, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dropout(0.3),
            layers.Dense(10),  # 10 outputs, no multiple of 8: stays dense
        ]
    )


def train(model: tf_keras.Model, data: tuple, epochs: int, callbacks: tuple = ()) -> None:
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf_keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    model.fit(*data, batch_size=32, epochs=epochs, verbose=2, callbacks=list(callbacks))


def main(argv: list[str] | None = None) -> dict[str, float]:
    args = digits.arguments(__doc__, epochs=15, fine_tune_epochs=10, out="digits_2_4").parse_args(argv)
    tf_keras.utils.set_random_seed(0)
    train_data, (x_test, y_test) = digits.load()
    steps = -(-len(train_data[0]) // 32)

    model = build_model()
    train(model, train_data, args.epochs)
    results = {"dense": digits.accuracy(model.predict(x_test, verbose=0), y_test)}

    tfmot_asp.permute(model)  # the same function; and now two of every four weights matter less
    copy = tf_keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    one_shot = tfmot_asp.strip_pruning(tfmot_asp.prune_low_magnitude(copy, permute=False))
    results["2:4, one shot"] = digits.accuracy(one_shot.predict(x_test, verbose=0), y_test)

    halfway = args.fine_tune_epochs * steps // 2
    schedule = tfmot.sparsity.keras.PolynomialDecay(0.0, 0.5, begin_step=0, end_step=halfway, frequency=10)
    pruned = tfmot_asp.prune_low_magnitude(model, pruning_schedule=schedule, permute=False)
    train(pruned, train_data, args.fine_tune_epochs, [tfmot_asp.UpdatePruningStep()])
    final = tfmot_asp.strip_pruning(pruned)
    results["2:4, fine-tuned"] = digits.accuracy(final.predict(x_test, verbose=0), y_test)

    check = tfmot_asp.export.saved_model(final, digits.target(args))
    print(f"\n{check}\n")
    if not check.ok:
        raise SystemExit("the written file is not 2:4")
    digits.show(results, len(x_test))
    return results


if __name__ == "__main__":
    main()
