"""Does permutation save accuracy on real data? The quickstart's network, trained anew from several seeds.

    python benchmarks/accuracy.py [--seeds 10] [--effort balanced]

For each seed: the dense network, the same network cut to 2:4 at once (no fine-tuning) without and with permutation.
One network's one-shot accuracy is noisy; the paired difference over seeds is what to look at.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import platform
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
import tf_keras

import tfmot_asp

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples"))
import digits
import quickstart


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--effort", default="balanced", choices=("fast", "balanced", "thorough"))
    args = parser.parse_args()
    (x_train, y_train), (x_test, y_test) = digits.load()

    print(f"$ python benchmarks/accuracy.py {' '.join(sys.argv[1:])}".rstrip())
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, TensorFlow {tf.__version__}"
    )
    print(f"test accuracy in percent on {len(x_test)} handwritten digits; magnitude kept by 2:4 in percent")
    print("seed   dense  one-shot  permuted  difference   kept  kept permuted")
    rows = []
    for seed in range(args.seeds):
        tf_keras.utils.set_random_seed(seed)
        model = quickstart.build_model()
        quickstart.compile_model(model, 2e-3, args.epochs * -(-len(x_train) // 32))
        model.fit(x_train, y_train, batch_size=32, epochs=args.epochs, verbose=0)
        dense = digits.accuracy(model.predict(x_test, verbose=0), y_test)
        plain = digits.accuracy(quickstart.one_shot(model).predict(x_test, verbose=0), y_test)
        report = tfmot_asp.permute(model, effort=args.effort)
        permuted = digits.accuracy(quickstart.one_shot(model).predict(x_test, verbose=0), y_test)
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
