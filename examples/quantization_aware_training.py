"""2:4, then int8: quantization-aware training that keeps the zeros, and the TFLite file that comes out of it.

    python examples/quantization_aware_training.py [--epochs 15] [--fine-tune-epochs 8] [--out FILE.tflite]

The order matters: prune, fine-tune, strip, then quantize. For comparison, the same float model is also quantized after
training, which needs no training at all. Both files are run on the test digits.
"""

from __future__ import annotations

import os
import pathlib
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import digits
import numpy as np
import tensorflow as tf
import tf_keras
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


def run_file(path: pathlib.Path, images: np.ndarray) -> np.ndarray:
    """What the TFLite file says, one image at a time, as on a phone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorFlow announces that tf.lite moves to a package of its own
        runner = tf.lite.Interpreter(model_path=str(path)).get_signature_runner()
    return np.concatenate([next(iter(runner(image=image[None]).values())) for image in images])


def main(argv: list[str] | None = None) -> dict[str, float]:
    args = digits.arguments(__doc__, epochs=15, fine_tune_epochs=8, out="digits_2_4.tflite").parse_args(argv)
    tf_keras.utils.set_random_seed(0)
    out = digits.target(args)

    train_data, (x_test, y_test) = digits.load()

    model = build_model()
    train(model, train_data, args.epochs, 2e-3)
    results = {"dense, float32": digits.accuracy(model.predict(x_test, verbose=0), y_test)}

    pruned = tfmot_asp.prune_low_magnitude(model)
    train(pruned, train_data, args.fine_tune_epochs, 1e-3, (tfmot_asp.UpdatePruningStep(),))
    sparse = tfmot_asp.strip_pruning(pruned)
    results["2:4, float32"] = digits.accuracy(sparse.predict(x_test, verbose=0), y_test)

    after = out.with_name(f"{out.stem}_after_training.tflite")
    tfmot_asp.export.tflite(sparse, after, precision="int8", calibration_data=train_data[0][:200], overwrite=True)
    results["2:4, int8 after training"] = digits.accuracy(run_file(after, x_test), y_test)

    quantized = tfmot_asp.quantize_model(sparse)
    train(quantized, train_data, args.fine_tune_epochs, 1e-4)
    print(f"\n{tfmot_asp.quantization_report(quantized)}\n")
    check = tfmot_asp.export.tflite(
        quantized, out, precision="int8", calibration_data=train_data[0][:50], overwrite=True
    )  # the data is only compared on: the ranges are the model's own
    results["2:4, int8 trained for it"] = digits.accuracy(run_file(out, x_test), y_test)

    print(f"{check}\n")
    digits.show(results, len(x_test))
    return results


if __name__ == "__main__":
    main()
