"""Draws models, measures how long that takes, and makes the pictures of the README and the docs.

    python benchmarks/plot_examples.py                  # all models below, to a temporary folder; a table
    python benchmarks/plot_examples.py --models DenseNet201
    python benchmarks/plot_examples.py --docs           # writes docs/images/

Plans only: no search, and no weight is changed, so the pictures show what `permute` would do. Needs Graphviz.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
import tf_keras
from tf_keras import layers

from tfmot_asp.hardware.rule import SparseTensorCoreRule
from tfmot_asp.permutation import plan_model
from tfmot_asp.permutation.picture.fold import fold
from tfmot_asp.permutation.picture.outline import outline
from tfmot_asp.permutation.picture.plot import plot

IMAGES = pathlib.Path(__file__).parent.parent / "docs" / "images"
APPLICATIONS = (
    "ResNet50",
    "MobileNetV2",
    "InceptionV3",
    "EfficientNetB0",
    "ConvNeXtTiny",
    "NASNetMobile",
    "DenseNet201",
)


def blocked() -> tf_keras.Model:
    """A residual convnet in which a local response normalization keeps two convolutions from being permuted."""
    x = y = layers.Input((32, 32, 3), name="image")
    y = layers.Conv2D(32, 3, padding="same", activation="relu", name="stem")(y)
    for stage, filters in enumerate((32, 64), 1):
        z = layers.Conv2D(filters, 3, stage, padding="same", use_bias=False, name=f"stage{stage}_a")(y)
        z = layers.ReLU()(layers.BatchNormalization(name=f"stage{stage}_a_bn")(z))
        z = layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"stage{stage}_b")(z)
        z = layers.BatchNormalization(name=f"stage{stage}_b_bn")(z)
        if stage > 1:
            y = layers.Conv2D(filters, 1, stage, name=f"stage{stage}_shortcut")(y)
        y = layers.ReLU()(layers.Add(name=f"stage{stage}_add")([y, z]))
    y = layers.Lambda(tf.nn.local_response_normalization, name="lrn")(y)
    y = layers.Conv2D(128, 3, activation="relu", name="late")(y)
    y = layers.Dense(64, activation="relu", name="hidden")(layers.GlobalAveragePooling2D()(y))
    return tf_keras.Model(x, layers.Dense(10, name="classifier")(y), name="small_convnet")


class EncoderBlock(layers.Layer):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int, **options: object):
        super().__init__(**options)
        self.norm1, self.norm2 = layers.LayerNormalization(name="norm1"), layers.LayerNormalization(name="norm2")
        self.attention = layers.MultiHeadAttention(heads, width // heads, name="attention")
        self.up = layers.Dense(4 * width, activation="gelu", name="up")
        self.down = layers.Dense(width, name="down")

    def call(self, x: tf.Tensor) -> tf.Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y)
        return x + self.down(self.up(self.norm2(x)))


def transformer(blocks: int = 2) -> tf_keras.Model:
    """A small encoder with a classifier."""
    x = layers.Input((32,), dtype="int32", name="tokens")
    y = layers.Embedding(1000, 64, name="embedding")(x)
    for i in range(blocks):
        y = EncoderBlock(64, 4, name=f"block{i}")(y)
    y = layers.GlobalAveragePooling1D(name="pool")(layers.LayerNormalization(name="norm")(y))
    return tf_keras.Model(x, layers.Dense(16, name="classifier")(y), name="encoder")


OWN = {"blocked": blocked, "transformer": transformer}
DOCS = {"blocked": "blocked.svg", "ResNet50": "resnet50.svg"}


def build(name: str) -> tf_keras.Model:
    return OWN[name]() if name in OWN else getattr(tf_keras.applications, name)(weights=None)


def draw(name: str, path: pathlib.Path) -> dict[str, float]:
    """Draws one model and returns what it took, seconds; the picture is checked to hold every block."""
    model = build(name)
    start = time.perf_counter()
    plan = plan_model(model, policy=SparseTensorCoreRule(kinds=("Dense", "Conv2D", "EinsumDense")))
    planned = time.perf_counter()
    drawn = outline(plan, model)
    outlined = time.perf_counter()
    plot(drawn, path)
    done = time.perf_counter()
    blocks = len(fold(drawn.ops))
    text = path.read_text(encoding="utf-8")
    missing = [i for i in range(blocks) if f"<title>b{i}</title>" not in text]
    if missing:
        raise SystemExit(f"{name}: {len(missing)} of {blocks} blocks are not in the picture")
    return {
        "ops": len(drawn.ops),
        "nodes": blocks,
        "plan s": planned - start,
        "outline s": outlined - planned,
        "draw s": done - outlined,
        "outline KB": len(json.dumps(drawn.to_dict())) / 1e3,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[*OWN, *APPLICATIONS], help="names in tf_keras.applications")
    parser.add_argument("--docs", action="store_true", help="make the pictures in docs/images and nothing else")
    options = parser.parse_args()
    if options.docs:
        IMAGES.mkdir(parents=True, exist_ok=True)
        for name, file in DOCS.items():
            draw(name, IMAGES / file)
            print(f"{IMAGES.name}/{file}")
        return
    graphviz = subprocess.run(["dot", "-V"], capture_output=True, text=True, check=True).stderr.strip()
    print(f"$ python {' '.join(sys.argv)}")
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"Python {platform.python_version()}, TensorFlow {tf.__version__}, NumPy {np.__version__}, {graphviz}\n")
    with tempfile.TemporaryDirectory() as folder:
        for i, name in enumerate(options.models):
            row = draw(name, pathlib.Path(folder) / f"{name}.svg")
            if i == 0:
                print("| model | " + " | ".join(row) + " |")
                print("| --- | " + " | ".join("---:" for _ in row) + " |")
            cells = (f"{value:.2f}" if key.endswith(" s") else f"{value:.0f}" for key, value in row.items())
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
