"""2:4, then int8: quantization-aware training that keeps the zeros, and the TFLite file that comes out of it.

    python examples/quantization_aware_training.py [--epochs 15] [--fine-tune-epochs 8] [--out FILE.tflite]

The order matters: prune, fine-tune, strip, then quantize. For comparison, the same float model is also quantized after
training, which needs no training at all. Both files are run on the test digits.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import tempfile
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
import tf_keras
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tf_keras import layers

import tfmot_asp


def build_model(width: int = 32) -> tf_keras.Model:
    inputs = tf_keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(width, 3, padding="same", use_bias=False)(inputs)
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    y = layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
    y = layers.BatchNormalization(momentum=0.9)(y)
    x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.Flatten()(layers.MaxPooling2D()(x))
    x = layers.Dense(64, activation="relu")(x)
    return tf_keras.Model(inputs, layers.Dense(10, name="digit")(x))


def train(model: tf_keras.Model, data: tuple, epochs: int, rate: float, callbacks: tuple = ()) -> None:
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf_keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    model.fit(*data, batch_size=32, epochs=epochs, verbose=2, callbacks=list(callbacks))


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    return 100 * float(np.mean(logits.argmax(-1) == labels))


def run_file(path: pathlib.Path, images: np.ndarray) -> np.ndarray:
    """What the TFLite file says, one image at a time, as on a phone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorFlow announces that tf.lite moves to a package of its own
        runner = tf.lite.Interpreter(model_path=str(path)).get_signature_runner()
    return np.concatenate([next(iter(runner(image=image[None]).values())) for image in images])


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=15, help="of dense training")
    parser.add_argument("--fine-tune-epochs", type=int, default=8, help="of training with the 2:4 masks, and of QAT")
    parser.add_argument("--out", type=pathlib.Path, help="the TFLite file (default: in a temporary directory)")
    args = parser.parse_args(argv)
    tf_keras.utils.set_random_seed(0)
    out = args.out or pathlib.Path(tempfile.mkdtemp()) / "digits_2_4.tflite"

    digits = load_digits()
    images = (digits.images[..., None] / 16).astype(np.float32)
    x_train, x_test, y_train, y_test = train_test_split(images, digits.target, test_size=0.3, random_state=0)

    model = build_model()
    train(model, (x_train, y_train), args.epochs, 2e-3)
    results = {"dense, float32": accuracy(model.predict(x_test, verbose=0), y_test)}

    pruned = tfmot_asp.prune_low_magnitude(model)
    train(pruned, (x_train, y_train), args.fine_tune_epochs, 1e-3, (tfmot_asp.UpdatePruningStep(),))
    sparse = tfmot_asp.strip_pruning(pruned)
    results["2:4, float32"] = accuracy(sparse.predict(x_test, verbose=0), y_test)

    after = out.with_name(f"{out.stem}_after_training.tflite")
    tfmot_asp.export.tflite(sparse, after, precision="int8", calibration_data=x_train[:200], overwrite=True)
    results["2:4, int8 after training"] = accuracy(run_file(after, x_test), y_test)

    quantized = tfmot_asp.quantize_model(sparse)
    train(quantized, (x_train, y_train), args.fine_tune_epochs, 1e-4)
    print(f"\n{tfmot_asp.quantization_report(quantized)}\n")
    check = tfmot_asp.export.tflite(
        quantized, out, precision="int8", calibration_data=x_train[:50], overwrite=True
    )  # the data is only compared on: the ranges are the model's own
    results["2:4, int8 trained for it"] = accuracy(run_file(out, x_test), y_test)

    print(f"{check}\n")
    for name, value in results.items():
        print(f"{name:<28}{value:6.2f} % of {len(x_test)} test digits")
    return results


if __name__ == "__main__":
    main()
