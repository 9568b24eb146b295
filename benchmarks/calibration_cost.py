"""What pruning with data costs: processor time, memory above the model, and the share of each step.

    python benchmarks/calibration_cost.py [--models encoder resnet50] [--effort balanced]

Random weights on random data: what is computed depends on the sizes alone (but for the number of rounds that a search
for masks takes). Processor seconds are of all threads. The share of a step is of the time spent in its functions and
not in those of another step inside them; "other" is tracing, reading the data, writing the model, and glue.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
import tf_keras
from calibration import Peak
from tf_keras import layers

import tfmot_asp
from tfmot_asp.calibration import in_place, reconstruct, sequential

STEPS: dict[str, list[tuple[Any, str]]] = {
    "permutation": [(in_place, "_permuted"), (in_place, "activation_scores")],
    "activations": [(sequential.Streams, "run")],
    "statistics": [(sequential._Pass, "_look"), (sequential.MomentsAccumulator, "result")],
    "targets": [(reconstruct, "choose_correction"), (reconstruct, "corrected")],
    "masks": [(reconstruct, "choose_mask")],
    "refit": [(reconstruct, "refit")],
    "errors": [(reconstruct, "output_error")],
    "batch norm": [(sequential._Pass, "_normalize")],
    "distillation": [(in_place, "distill")],
}


def encoder() -> tuple[Any, Any]:
    """Six layers of width 384 with 12 heads, on 200 sentences of 10 to 40 tokens, in batches of one length each."""
    tokens = layers.Input((None,), dtype="int32")
    x = layers.LayerNormalization()(layers.Embedding(30522, 384)(tokens))
    for _ in range(6):
        x = layers.LayerNormalization()(x + layers.MultiHeadAttention(12, 32)(x, x))
        x = layers.LayerNormalization()(x + layers.Dense(384)(layers.Dense(1536, activation="gelu")(x)))
    rng = np.random.default_rng(0)
    batches = [rng.integers(0, 30522, (8, length)) for length in np.linspace(10, 40, 25).astype(int)]
    return tf_keras.Model(tokens, x, name="encoder"), batches


def resnet50() -> tuple[Any, Any]:
    """At 224 pixels, 64 images."""
    images = np.random.default_rng(0).standard_normal((64, 224, 224, 3), np.float32)
    return tf_keras.applications.ResNet50(weights=None), images


MODELS: dict[str, Callable[[], tuple[Any, Any]]] = {"encoder": encoder, "resnet50": resnet50}


class Shares:
    """Processor time by step: each instant counts for the innermost step that is entered."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._entered = ["other"]
        self._since = time.process_time()

    def _turn(self) -> None:
        now = time.process_time()
        self.seconds[self._entered[-1]] += now - self._since
        self._since = now

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        self._turn()
        self._entered.append(name)
        try:
            yield
        finally:
            self._turn()
            self._entered.pop()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.step(name):
                return function(*args, **kwargs)

        return call


def measure(name: str, effort: str) -> None:
    """Prunes a model, and prints what that took."""
    tf_keras.utils.set_random_seed(0)
    model, data = MODELS[name]()
    first = data[0] if isinstance(data, list) else data[:1]
    model(first)  # TensorFlow's own start is no part of it
    with contextlib.ExitStack() as patches:
        shares = Shares()
        for step, functions in STEPS.items():
            for owner, function in functions:
                timed = shares.timed(step, getattr(owner, function))
                patches.enter_context(mock.patch.object(owner, function, timed))
        wall = time.perf_counter()
        with Peak() as peak, shares.step("other"):
            pruned = tfmot_asp.prune_trained_model(model, calibration_data=data, effort=effort, progress=False)
        wall = time.perf_counter() - wall
    total = sum(shares.seconds.values())
    samples = sum(map(len, data)) if isinstance(data, list) else len(data)
    print(f"\n{name}, {effort}: {len(pruned.masks)} kernels, {model.count_params():,} weights, {samples} samples")
    print(f"{total:.0f} s of processor time, {wall:.0f} s passed, at most {peak.mebibytes:,.0f} MiB above the model")
    for step, seconds in shares.seconds.most_common():
        print(f"  {step:14}{seconds:8.1f} s{seconds / total:8.1%}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS), metavar="MODEL")
    parser.add_argument("--effort", default="balanced", choices=("fast", "balanced", "thorough"))
    args = parser.parse_args()
    print(f"$ python benchmarks/calibration_cost.py {' '.join(sys.argv[1:])}".rstrip())
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"TensorFlow {tf.__version__}, tfmot_asp {tfmot_asp.__version__}"
    )
    for name in args.models:
        measure(name, args.effort)


if __name__ == "__main__":
    main()
