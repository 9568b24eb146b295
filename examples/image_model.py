"""A stock image model: see what pruning could gain before doing it, prune where it can, fine-tune, export.

    python examples/image_model.py [--model MobileNetV2] [--min-channels N] [--epochs 12] [--out DIR]

Any name of ``tf_keras.applications`` will do. A compact network such as this one loses most in one shot, and gets it
back by fine-tuning. To need no download it starts from random weights and learns handwritten digits; with your own
data, start from ``weights="imagenet"`` and leave out the first training.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import digits
import numpy as np
import tensorflow as tf
import tf_keras

import tfmot_asp


def build_model(name: str, size: int) -> tf_keras.Model:
    build = getattr(tf_keras.applications, name)
    model = build(weights=None, input_shape=(size, size, 3), classes=10, classifier_activation=None)
    for layer in model.layers:
        if isinstance(layer, tf_keras.layers.BatchNormalization):
            layer.momentum = 0.9  # the default is for training runs of millions of images
    return model


def train(model: tf_keras.Model, data: tuple, epochs: int, callbacks: tuple = ()) -> None:
    rate = tf_keras.optimizers.schedules.CosineDecay(1e-3, max(1, epochs) * -(-len(data[0]) // 32))
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf_keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    model.fit(*data, batch_size=32, epochs=epochs, verbose=2, callbacks=list(callbacks))


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = digits.arguments(__doc__, epochs=12, fine_tune_epochs=6, out="digits_2_4")
    parser.add_argument("--model", default="MobileNetV2", help="a name of tf_keras.applications")
    parser.add_argument("--min-channels", type=int, help="keep kernels dense that have fewer input or output channels")
    parser.add_argument("--size", type=int, default=32, help="of the images")
    parser.add_argument("--images", type=int, default=1797, help="how many of the digits to use")
    args = parser.parse_args(argv)
    tf_keras.utils.set_random_seed(0)

    (x_train, y_train), (x_test, y_test) = digits.load(args.images)
    x_train, x_test = (np.repeat(tf.image.resize(x, (args.size, args.size)), 3, axis=-1) for x in (x_train, x_test))

    model = build_model(args.model, args.size)
    policy = tfmot_asp.PruneForSparseTensorCores(min_channels=args.min_channels)
    print("What could be gained, for batches of 32:")
    print(tfmot_asp.sparsity_report(model, policy=policy, batch_size=32), "\n")

    train(model, (x_train, y_train), args.epochs)
    results = {"dense": digits.accuracy(model.predict(x_test, verbose=0), y_test)}

    pruned = tfmot_asp.prune_low_magnitude(model, pruning_policy=policy)  # permutes first
    one_shot = tfmot_asp.strip_pruning(pruned)
    results["2:4, one shot"] = digits.accuracy(one_shot.predict(x_test, verbose=0), y_test)

    train(pruned, (x_train, y_train), args.fine_tune_epochs, [tfmot_asp.UpdatePruningStep()])
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
