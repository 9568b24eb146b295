"""A stock image model: see what pruning could gain before doing it, prune where it can, fine-tune, export.

    python examples/image_model.py [--model MobileNetV2] [--min-channels N] [--epochs 12] [--out DIR]

Any name of ``tf_keras.applications`` will do. A compact network such as this one loses most in one shot, and gets it
back by fine-tuning. To need no download it starts from random weights and learns handwritten digits; with your own
data, start from ``weights="imagenet"`` and leave out the first training.
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


def accuracy(model: tf_keras.Model, images: np.ndarray, labels: np.ndarray) -> float:
    return 100 * float(np.mean(model.predict(images, verbose=0).argmax(-1) == labels))


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="MobileNetV2", help="a name of tf_keras.applications")
    parser.add_argument("--min-channels", type=int, help="keep kernels dense that have fewer input or output channels")
    parser.add_argument("--size", type=int, default=32, help="of the images")
    parser.add_argument("--images", type=int, default=1797, help="how many of the digits to use")
    parser.add_argument("--epochs", type=int, default=12, help="of dense training")
    parser.add_argument("--fine-tune-epochs", type=int, default=6, help="of training with the 2:4 masks")
    parser.add_argument("--out", type=pathlib.Path, help="where the SavedModel goes (default: a temporary directory)")
    args = parser.parse_args(argv)
    tf_keras.utils.set_random_seed(0)
    out = args.out or pathlib.Path(tempfile.mkdtemp()) / "digits_2_4"

    digits = load_digits()
    images = tf.image.resize(digits.images[: args.images, ..., None] / 16, (args.size, args.size))
    images = np.repeat(images.numpy(), 3, axis=-1)
    labels = digits.target[: args.images]
    x_train, x_test, y_train, y_test = train_test_split(images, labels, test_size=0.3, random_state=0)

    model = build_model(args.model, args.size)
    policy = tfmot_asp.PruneForSparseTensorCores(min_channels=args.min_channels)
    print("What could be gained, for batches of 32:")
    print(tfmot_asp.sparsity_report(model, policy=policy, batch_size=32), "\n")

    train(model, (x_train, y_train), args.epochs)
    results = {"dense": accuracy(model, x_test, y_test)}

    pruned = tfmot_asp.prune_low_magnitude(model, pruning_policy=policy)  # permutes first
    one_shot = tfmot_asp.strip_pruning(pruned)
    results["2:4, one shot"] = accuracy(one_shot, x_test, y_test)

    train(pruned, (x_train, y_train), args.fine_tune_epochs, [tfmot_asp.UpdatePruningStep()])
    final = tfmot_asp.strip_pruning(pruned)
    results["2:4, fine-tuned"] = accuracy(final, x_test, y_test)

    check = tfmot_asp.export.saved_model(final, out)
    print(f"\n{check}\n")
    if not check.ok:
        raise SystemExit("the written file is not 2:4")
    for name, value in results.items():
        print(f"{name:<20}{value:6.2f} % of {len(x_test)} test digits")
    return results


if __name__ == "__main__":
    main()
