"""Does permutation save accuracy on real data? The quickstart's network, trained anew from several seeds.

    python benchmarks/accuracy.py [--seeds 10] [--effort balanced]

For each seed: the dense network, the same network cut to 2:4 at once (no fine-tuning) without and with permutation.
One network's one-shot accuracy is noisy; the paired difference over seeds is what to look at.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import pathlib
import platform
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
import tf_keras
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import tfmot_asp

ROOT = pathlib.Path(__file__).parents[1]


def quickstart():
    spec = importlib.util.spec_from_file_location("quickstart", ROOT / "examples" / "quickstart.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--effort", default="balanced", choices=("fast", "balanced", "thorough"))
    args = parser.parse_args()
    demo = quickstart()
    digits = load_digits()
    images = (digits.images[..., None] / 16).astype(np.float32)
    x_train, x_test, y_train, y_test = train_test_split(
        images, digits.target, test_size=0.3, random_state=0, stratify=digits.target
    )

    print(f"$ python benchmarks/accuracy.py {' '.join(sys.argv[1:])}".rstrip())
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, TensorFlow {tf.__version__}"
    )
    print(f"test accuracy in percent on {len(x_test)} handwritten digits; magnitude kept by 2:4 in percent")
    print("seed   dense  one-shot  permuted  difference   kept  kept permuted")
    rows = []
    for seed in range(args.seeds):
        tf_keras.utils.set_random_seed(seed)
        model = demo.build_model()
        demo.compile_model(model, 2e-3, args.epochs * -(-len(x_train) // 32))
        model.fit(x_train, y_train, batch_size=32, epochs=args.epochs, verbose=0)
        dense = demo.accuracy(model, x_test, y_test)
        plain = demo.accuracy(demo.one_shot(model, permute=False), x_test, y_test)
        report = tfmot_asp.permute(model, effort=args.effort)
        permuted = demo.accuracy(demo.one_shot(model, permute=False), x_test, y_test)
        kept = [(e.retained_before, e.retained_after) for e in report.layers if e.status != "dense"]
        before, after = 100 * np.mean(kept, axis=0)
        rows.append((dense, plain, permuted, permuted - plain, before, after))
        print("{:4}  {:6.2f}  {:8.2f}  {:8.2f}  {:+10.2f}  {:5.2f}  {:13.2f}".format(seed, *rows[-1]), flush=True)
    mean, sem = np.mean(rows, axis=0), np.std(rows, axis=0, ddof=1) / np.sqrt(len(rows))
    print("mean  {:6.2f}  {:8.2f}  {:8.2f}  {:+10.2f}  {:5.2f}  {:13.2f}".format(*mean))
    print(f"standard error of the difference {sem[3]:.2f}; better with permutation for", end=" ")
    print(f"{sum(r[3] > 0 for r in rows)} of {len(rows)} seeds")


if __name__ == "__main__":
    main()
