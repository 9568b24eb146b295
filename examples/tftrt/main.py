"""Make, train, prune, fine-tune and export a small convolutional network; `tftrt_infer.py` serves the result.

    python examples/tftrt/main.py [--width 64] [--image-size 32] [--out exported_model]

The first of two steps of TF-ASP's demo, with its optimizer wrapper. The data are scikit-learn's handwritten digits, so
nothing is downloaded.
"""

from __future__ import annotations

import argparse
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
import tf_keras
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tf_keras import layers

import tfmot_asp


def build_model(image_size: int, width: int) -> tf_keras.Model:
    """Convolutions with batch norm, which is folded on export, and two Dense layers."""
    x = inputs = tf_keras.Input((image_size, image_size, 1), name="image")
    for channels in (width, 2 * width, 4 * width):
        for _ in range(2):
            x = layers.Conv2D(channels, 3, padding="same", use_bias=False)(x)
            x = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.MaxPooling2D()(x)
    x = layers.Dense(4 * width, activation="relu")(layers.GlobalAveragePooling2D()(x))
    return tf_keras.Model(inputs, layers.Dense(16, name="logits")(x))  # 10 classes, padded to a multiple of 8


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=32, help="digits are scaled to this size")
    parser.add_argument(
        "--width", type=int, default=64, help="channels of the first stage; the last has four times as many"
    )
    parser.add_argument("--epochs", type=int, default=5, help="of dense training")
    parser.add_argument("--fine-tune-epochs", type=int, default=3, help="of training with the 2:4 masks")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("exported_model"))
    args = parser.parse_args(argv)
    tf_keras.utils.set_random_seed(0)

    digits = load_digits()
    size = (args.image_size, args.image_size)
    images = tf.image.resize(digits.images[..., None] / 16, size).numpy().astype(np.float32)
    x_train, x_test, y_train, y_test = train_test_split(images, digits.target, test_size=0.3, random_state=0)
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    model = build_model(args.image_size, args.width)
    model.compile("adam", loss, metrics=["accuracy"])
    model.fit(x_train, y_train, args.batch_size, args.epochs, verbose=2)
    dense = model.evaluate(x_test, y_test, verbose=0)[1]

    # Permutes the channels now, computes the masks at the first step, and keeps them from then on.
    optimizer = tfmot_asp.AspOptimizerWrapperV2(tf_keras.optimizers.Adam(3e-4), model)
    model.compile(optimizer, loss, metrics=["accuracy"])
    model.fit(x_train, y_train, args.batch_size, args.fine_tune_epochs, verbose=2)
    sparse = model.evaluate(x_test, y_test, verbose=0)[1]

    print(tfmot_asp.export.saved_model(model, args.out, overwrite=True))
    print(f"test accuracy: {100 * dense:.1f} % dense, {100 * sparse:.1f} % with 2:4")
    return {"dense": dense, "sparse": sparse}


if __name__ == "__main__":
    main()
