"""From a Keras model to a TensorRT engine with sparse kernels: ONNX in fp32, fp16 and int8.

    python examples/onnx_tensorrt.py [--epochs 8] [--fine-tune-epochs 4] [--precision int8] [--out DIR]

Trains a small convolutional network on scikit-learn's digits, prunes it to 2:4, fine-tunes, and writes it in each
precision. Where trtexec is on the PATH, it builds the engine of --precision and shows, layer by layer, which could use
a sparse kernel and which do; elsewhere it prints the command. Run that on the GPU machine, keep its output, and give it
to ``tfmot_asp.export.parse_tensorrt_log``, or to this script with the same --out: --log build.log.
"""

from __future__ import annotations

import os
import pathlib
import shlex
import shutil
import subprocess

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import digits
import numpy as np
import onnxruntime
import tf_keras
from tf_keras import layers

import tfmot_asp


def build_model() -> tf_keras.Model:
    x = inputs = tf_keras.Input((8, 8, 1), name="image")
    for filters in (32, 64, 64):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Flatten()(layers.MaxPooling2D()(x))
    x = layers.Dropout(0.3)(layers.Dense(128, activation="relu", name="hidden")(x))
    return tf_keras.Model(inputs, layers.Dense(10, name="scores")(x))


def train(model: tf_keras.Model, images: np.ndarray, labels: np.ndarray, epochs: int) -> None:
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf_keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    model.fit(images, labels, batch_size=16, epochs=epochs, verbose=2)


def run_onnx(path: pathlib.Path, images: np.ndarray) -> np.ndarray:
    """The file's outputs, quantizers computed as they stand (int8 kernels of some CPUs saturate)."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options)
    return session.run(["scores"], {"image": images})[0]


def build_engine(path: pathlib.Path) -> str | None:
    """Builds an engine where trtexec is at hand, and gives its log."""
    if shutil.which("trtexec") is None:
        return None
    command = shlex.split(tfmot_asp.export.trtexec_command(path))
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"trtexec failed:\n{done.stdout[-2000:]}")
    return done.stdout


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = digits.arguments(__doc__, epochs=8, fine_tune_epochs=4, out="onnx")
    parser.add_argument("--precision", choices=("fp32", "fp16", "int8"), default="int8", help="of the engine")
    parser.add_argument("--log", type=pathlib.Path, help="output of trtexec for that precision, from another machine")
    args = parser.parse_args(argv)
    out = digits.target(args)
    path = out / f"digits_{args.precision}.onnx"

    if args.log is not None:
        report = tfmot_asp.export.verify(path)
        print(tfmot_asp.export.parse_tensorrt_log(args.log, report))
        return {}

    tf_keras.utils.set_random_seed(0)
    (x_train, y_train), (x_test, y_test) = digits.load()
    model = build_model()
    train(model, x_train, y_train, args.epochs)
    results = {"dense": digits.accuracy(model.predict(x_test, verbose=0), y_test)}
    pruned = tfmot_asp.prune_low_magnitude(model)
    train(pruned, x_train, y_train, args.fine_tune_epochs)
    final = tfmot_asp.strip_pruning(pruned)
    results["2:4, fine-tuned"] = digits.accuracy(final.predict(x_test, verbose=0), y_test)

    reports = {}
    for precision in ("fp32", "fp16", "int8"):
        target = out / f"digits_{precision}.onnx"
        reports[precision] = tfmot_asp.export.onnx(
            final, target, precision=precision, calibration_data=x_train[:512], overwrite=True
        )
        results[f"ONNX {precision}"] = digits.accuracy(run_onnx(target, x_test), y_test)

    log = build_engine(path)
    if log is None:
        print(reports[args.precision])
        print("\nNo trtexec here. Run the command above on a machine with TensorRT, with > build.log behind it.")
    else:
        (out / "build.log").write_text(log)
        print(tfmot_asp.export.parse_tensorrt_log(log, reports[args.precision]))
    print()
    digits.show(results, len(x_test))
    return results


if __name__ == "__main__":
    main()
