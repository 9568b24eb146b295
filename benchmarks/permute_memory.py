"""What `permute` needs above the model: peak resident memory, in multiples of its weights.

    python benchmarks/permute_memory.py [--effort fast] [--case "24 Dense(2048)" ...] [--keras keras] [--out results]

Each case runs in a process of its own: the model is built, a small one is permuted so that what is loaded and compiled
once is there, then the peak is reset (Linux, `/proc/self/clear_refs`) and the model is permuted. The order that was
found is hashed, so that two versions of the library can be compared.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

CASES = {  # widths of a chain of Dense layers, the first of which are the inputs
    "24 Dense(2048)": [2048] * 25,
    "1.5 GB, 23 Dense(4096)": [4096] * 24,
    "1.5 GB, one kernel": [64, 19360, 19360, 8],
}
MOST = 1.5


def memory(field):
    """A field of this process' memory, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def chain(widths, keras):
    """A chain of Dense layers with normal weights, each channel of its own size."""
    import numpy as np

    rng = np.random.default_rng(0)
    x = y = keras.Input((widths[0],))
    for width in widths[1:]:
        y = keras.layers.Dense(width, activation="relu", kernel_initializer="zeros")(y)
    model = keras.Model(x, y)
    for layer in model.layers[1:]:
        kernel = rng.standard_normal(layer.kernel.shape, np.float32)
        kernel *= rng.lognormal(size=(len(kernel), 1)).astype(np.float32) / np.sqrt(len(kernel), dtype=np.float32)
        layer.kernel.assign(kernel)
    return model


def measure(name, effort, library):
    """Runs one case in this process and prints its figures as JSON."""
    import importlib

    import tfmot_asp

    keras = importlib.import_module(library)
    tfmot_asp.permute(chain([64] * 4, keras), effort=effort, progress=False)
    model = chain(CASES[name], keras)
    weights = sum(4 * int(v.shape.num_elements() if hasattr(v.shape, "num_elements") else v.numpy().size)
                  for v in model.weights)  # fmt: skip
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    started = time.perf_counter()
    report = tfmot_asp.permute(model, effort=effort, progress=False)
    seconds = time.perf_counter() - started
    orders = hashlib.sha256(json.dumps([group.order for group in report.groups]).encode()).hexdigest()[:16]
    print(json.dumps({"weights": weights, "above": memory("VmHWM") - before, "seconds": seconds, "orders": orders,
                      "permuted": report.permuted, "change": report.max_change}))  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--effort", default="fast")
    parser.add_argument("--case", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--keras", choices=("tf_keras", "keras"), default="tf_keras")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", choices=CASES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure, arguments.effort, arguments.keras)
        return
    import numpy
    import tensorflow as tf

    import tfmot_asp

    lines = [
        f"command      python {' '.join([*sys.argv[:1], *sys.argv[1:]])}",
        f"date         {datetime.date.today()}",
        f"machine      {platform.processor() or platform.machine()}, {os.cpu_count()} cores, {platform.platform()}",
        f"versions     Python {platform.python_version()}, TensorFlow {tf.__version__}, NumPy {numpy.__version__}, "
        f"tfmot_asp {tfmot_asp.__version__}",
        "",
        f"{'model':26} {'weights':>9} {'above it':>9} {'ratio':>6} {'time':>7}  permuted  change   orders",
    ]
    print("\n".join(lines), flush=True)
    failed = False
    for name in arguments.case:
        child = subprocess.run(
            [sys.executable, __file__, "--measure", name, "--effort", arguments.effort, "--keras", arguments.keras],
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}, stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        found = json.loads(child.stdout.splitlines()[-1])
        ratio = found["above"] / found["weights"]
        failed |= ratio > MOST
        lines.append(
            f"{name:26} {found['weights'] / 1e6:6.0f} MB {found['above'] / 1e6:6.0f} MB {ratio:6.2f} "
            f"{found['seconds']:6.1f}s  {found['permuted']:8} {found['change']:.1e}  {found['orders']}"
        )
        print(lines[-1], flush=True)
    if arguments.out:
        (arguments.out / "permute_memory.txt").write_text("\n".join(lines) + "\n")
    if failed:
        sys.exit(f"more than {MOST} times the weights")


if __name__ == "__main__":
    main()
