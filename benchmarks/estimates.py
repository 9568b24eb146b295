"""What whole models gain by estimate on a GPU, beside the bound by multiply-adds: the figures of docs/performance.md.

    python benchmarks/estimates.py [--gpu H100 or mine.json] [--models ResNet50 BERT] [--batches 1 32 256]

No GPU is needed: times are estimated from those that were measured (tfmot_asp.hardware.estimate). BERT is the encoder
of BERT base, 12 layers of 768 channels, at 128 tokens; the others are models of tf_keras.applications.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tf_keras
from tf_keras import layers
from train_step import environment

import tfmot_asp
from tfmot_asp.hardware.cost_model import cost_model

MIN_GAIN = 1.05


def bert(channels=768, heads=12, hidden=3072, depth=12, tokens=128):
    x = y = layers.Input((tokens, channels))
    for _ in range(depth):
        attention = layers.MultiHeadAttention(heads, channels // heads)(y, y)
        y = layers.LayerNormalization()(layers.Add()([y, attention]))
        wide = layers.Dense(hidden, activation="gelu")(y)
        y = layers.LayerNormalization()(layers.Add()([y, layers.Dense(channels)(wide)]))
    return tf_keras.Model(x, y, name="BERT")


def figures(model, gpu, precision, batch):
    """Bound, estimate with all kernels that can be pruned, kernels, and the same two with those that gain alone."""
    both = []
    for least in ({}, {"min_gain": MIN_GAIN, "gpu": gpu, "precision": precision, "batch_size": batch}):
        policy = tfmot_asp.PruneForSparseTensorCores(**least)
        report = tfmot_asp.sparsity_report(model, policy=policy, gpu=gpu, precision=precision, batch_size=batch)
        both.append((report.best_prunable.speedup, report.gain_prunable.speedup, report.prunable))
    (bound, gain, kernels), (_, kept_gain, kept) = both
    return bound, gain, kernels, kept_gain, kept


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", default="H100")
    parser.add_argument("--models", nargs="+", default=["ResNet50", "VGG16", "MobileNetV2", "BERT"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32, 256])
    arguments = parser.parse_args()
    for name, value in environment().items():
        print(f"{name:<12} {value}")
    print(f"{'times of':<12} {cost_model(arguments.gpu, 'fp16').gpu}\n")
    print(f"| model | batch | bound | fp16 | with min_gain={MIN_GAIN} | int8 | with min_gain={MIN_GAIN} |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in arguments.models:
        model = bert() if name == "BERT" else getattr(tf_keras.applications, name)(weights=None)
        for batch in arguments.batches:
            cells = []
            for precision in ("fp16", "int8"):
                bound, gain, kernels, kept_gain, kept = figures(model, arguments.gpu, precision, batch)
                cells += [f"x {gain:.2f}", f"x {kept_gain:.2f}, {kept} of {kernels} kernels"]
            print("|", " | ".join([name, str(batch), f"x {bound:.2f}", *cells]), "|", flush=True)


if __name__ == "__main__":
    main()
