"""Accuracy of a residual 2:4 network in ONNX: float32, float16, int8 by each calibration method, and a peer's.

    python benchmarks/quantization.py [--seeds 3] [--epochs 10] [--fine-tune-epochs 5] [--json results.json]

Trained on 1,257 of scikit-learn's digits, tested on the other 540, calibrated on 256 of the former. The peer is
onnxruntime's quantize_static on the same float32 file (symmetric int8, weights per channel, its default calibration).
Quantizers are computed as they stand in the files, which is what TensorRT does: int8 kernels of some CPUs saturate.
Each file must hold the pattern in all pruned kernels.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import digits_network
import numpy as np
import onnxruntime
import tf_keras
from onnxruntime import quantization
from train_step import environment

import tfmot_asp

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import digits

CALIBRATION = 256
METHODS = ("percentile", "mse", "entropy", "minmax")


def sparse_network(images, labels, seed, epochs, fine_tune_epochs):
    tf_keras.utils.set_random_seed(seed)
    steps = -(-len(images) // 32)
    model = digits_network.build_model()
    digits_network.compile_model(model, 2e-3, epochs * steps)
    model.fit(images, labels, batch_size=32, epochs=epochs, verbose=0)
    pruned = tfmot_asp.prune_low_magnitude(model)
    digits_network.compile_model(pruned, 1e-3, fine_tune_epochs * steps)
    pruned.fit(images, labels, batch_size=32, epochs=fine_tune_epochs, verbose=0)
    return tfmot_asp.strip_pruning(pruned)


class Reader(quantization.CalibrationDataReader):
    """Calibration data as quantize_static takes it."""

    def __init__(self, name, images):
        self.batches = iter([{name: images[i : i + 32]} for i in range(0, len(images), 32)])

    def get_next(self):
        return next(self.batches, None)


def peer(source, target, name, images):
    quantization.quantize_static(
        source,
        target,
        Reader(name, images),
        per_channel=True,
        activation_type=quantization.QuantType.QInt8,
        weight_type=quantization.QuantType.QInt8,
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
    )


def run(path, images):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options)
    return session.run(None, {session.get_inputs()[0].name: images})[0]


def measure(model, train, test, labels, folder):
    """Accuracy in percent, and the relative error of the scores, of each file."""
    exact = model.predict(test, verbose=0)
    kernels = tfmot_asp.sparsity_report(model).sparse
    data = train[:CALIBRATION]
    files = {precision: {"precision": precision} for precision in ("fp32", "fp16")}
    files |= {f"int8, {m}": {"precision": "int8", "calibration_method": m, "calibration_data": data} for m in METHODS}
    scores = {"Keras": exact}
    for name, options in files.items():
        path = folder / f"{name.replace(', ', '_')}.onnx"
        report = tfmot_asp.export.onnx(model, path, **options)
        if report.sparse != kernels:
            raise SystemExit(f"{name}: {report.sparse} sparse kernels in the file, {kernels} in the model")
        scores[name] = run(path, test)
    session = onnxruntime.InferenceSession(str(folder / "fp32.onnx"))
    peer(folder / "fp32.onnx", folder / "peer.onnx", session.get_inputs()[0].name, data)
    scores["int8, quantize_static"] = run(folder / "peer.onnx", test)
    return {
        name: {
            "accuracy": 100 * float(np.mean(value.argmax(-1) == labels)),
            "error": float(np.linalg.norm(value - exact) / np.linalg.norm(exact)),
        }
        for name, value in scores.items()
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--fine-tune-epochs", type=int, default=5)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    facts = environment() | {"onnxruntime": onnxruntime.__version__}
    for name, value in facts.items():
        print(f"{name:<12} {value}")

    (x_train, y_train), (x_test, y_test) = digits.load()
    runs = []
    for seed in range(arguments.seeds):
        model = sparse_network(x_train, y_train, seed, arguments.epochs, arguments.fine_tune_epochs)
        with tempfile.TemporaryDirectory() as folder:
            runs.append(measure(model, x_train, x_test, y_test, Path(folder)))

    print(f"\n{'file':<24}{'accuracy, each seed':<30}{'mean':>8}{'error of scores':>18}")
    for name in runs[0]:
        each = [result[name]["accuracy"] for result in runs]
        error = np.mean([result[name]["error"] for result in runs])
        cells = "  ".join(f"{value:6.2f}" for value in each)
        print(f"{name:<24}{cells:<30}{np.mean(each):8.2f}{100 * error:16.2f} %")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"environment": facts, "runs": runs}, indent=1))


if __name__ == "__main__":
    main()
