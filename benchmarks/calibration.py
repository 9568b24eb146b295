"""One-shot 2:4 without and with data, on trained models: what is left of the dense model, and what it costs.

    python benchmarks/calibration.py --packages PACKAGES [--cases digits-resnet14 antibodies] [--seeds 3]

The models and where they come from are in trained_models.py and browser_models.py; a case whose package is missing
says which command brings it. Each seed takes other samples to calibrate with (and, for what is trained here, another
model). The samples that a figure is measured on are none of these. Processor seconds and memory are those of pruning
alone, permutation included.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
from browser_models import CASES as BROWSER_CASES
from trained_models import CASES as PYTHON_CASES
from trained_models import Case, Places

import tfmot_asp
from tfmot_asp.hardware.rule import SUPPORTED_KINDS

CASES = PYTHON_CASES | BROWSER_CASES
Prune = Callable[[Case, Any], None]
RULE = tfmot_asp.SparseTensorCoreRule(kinds=SUPPORTED_KINDS)


def tfmot_one_shot(case: Case, policy: Any) -> None:
    """tfmot's own 2:4 masks, on the same layers as far as tfmot knows their kind."""
    wrapped = []

    def wrap(layer: Any) -> Any:
        kind = type(layer).__name__
        if kind in ("Dense", "Conv2D") and policy.why(layer) is None:
            layer = tfmot.sparsity.keras.prune_low_magnitude(
                layer, pruning_schedule=tfmot.sparsity.keras.ConstantSparsity(0.5, 0), sparsity_m_by_n=(2, 4)
            )
            wrapped.append(layer)
        return layer

    tf_keras.models.clone_model(case.model, clone_function=wrap)  # wraps the layers themselves: weights are shared
    for layer in wrapped:
        layer.pruning_step.assign(1)  # the only one at which tfmot chooses 2:4 masks
        layer.pruning_obj.conditional_mask_update()
        layer.pruning_obj.weight_mask_op()


def ours(**options: Any) -> Prune:
    """``prune_trained_model`` with options; the model's data too if a method or effort is named."""

    def prune(case: Case, policy: Any) -> None:
        data = {"calibration_data": case.calibration} if {"method", "effort"} & options.keys() else {}
        tfmot_asp.prune_trained_model(case.model, policy=policy, **data, **options).remove()

    return prune


METHODS: dict[str, Prune | None] = {
    "dense": None,
    "tfmot 2:4": tfmot_one_shot,
    "magnitude": ours(permute=False),
    "magnitude, permuted": ours(),
    "magnitude, batch norm": ours(permute=False, method="magnitude"),
    "activation": ours(permute=False, method="activation"),
    "activation, permuted": ours(method="activation"),
    "reconstruction, fast": ours(permute=False, effort="fast"),
    "reconstruction, balanced": ours(permute=False, effort="balanced"),
    "the same, permuted": ours(effort="balanced"),
    "reconstruction, thorough": ours(effort="thorough"),
}


class Peak:
    """The most memory that the process held while this was entered, above what it held before."""

    def __enter__(self) -> Peak:
        self._resettable = True
        try:
            pathlib.Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            self._resettable = False
        self._before = self._read("VmRSS")
        return self

    def __exit__(self, *_: Any) -> None:
        self.mebibytes = (self._read("VmHWM") - self._before) / 1024

    def _read(self, field: str) -> int:
        if self._resettable:
            lines = pathlib.Path("/proc/self/status").read_text().splitlines()
            return int(next(line for line in lines if line.startswith(field)).split()[1])
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(name: str, places: Places, seeds: range, methods: list[str]) -> None:
    """Prints the table of a case."""
    rows: dict[str, list[list[float]]] = {method: [] for method in methods}
    refused: dict[str, str] = {}
    titles: list[str] = []
    for seed in seeds:
        try:
            case = CASES[name](places, seed)
        except FileNotFoundError as missing:
            print(f"\n{name}: needs {missing}", flush=True)
            return
        weights = case.model.get_weights()
        for method in methods:
            case.model.set_weights(weights)
            prune, cpu = METHODS[method], time.process_time()
            try:
                with Peak() as peak:
                    if prune is not None:
                        prune(case, RULE)
                cpu = time.process_time() - cpu
                figures = case.evaluate(case.model)
            except (TypeError, ValueError) as error:
                refused[method] = f"{type(error).__name__}: {error}".splitlines()[0][:100]
                continue
            titles = list(figures)
            rows[method].append([*figures.values(), cpu, peak.mebibytes])
        case.model.set_weights(weights)
        title = case.title
        kernels = len(tfmot_asp.prune_trained_model(case.model, policy=RULE, permute=False).masks)
        size = case.model.count_params()
        tf_keras.backend.clear_session()
    print(f"\n{name}: {title}")
    print(f"{size:,} weights, {kernels} kernels pruned, {len(case.calibration)} samples {case.calibration.shape[1:]}")
    print(f"{'':26}" + "".join(f"{title:>24}" for title in [*titles, "processor s", "MiB"]))
    for method in methods:
        if not rows[method]:
            print(f"{method:26}{refused.get(method, '')}")
            continue
        values = np.array(rows[method])
        error = values.std(0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.full(values.shape[1], np.nan)
        cells = [f"{m:.4f} ± {e:.4f}" for m, e in zip(values.mean(0)[:-2], error, strict=False)]
        cells += [f"{m:.1f}" for m in values.mean(0)[-2:]]
        print(f"{method:26}" + "".join(f"{cell:>24}" for cell in cells), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=pathlib.Path, default=pathlib.Path("packages"), help="where models lie")
    parser.add_argument("--trained", type=pathlib.Path, help="keeps what is trained here (default: temporary)")
    parser.add_argument(
        "--cases", nargs="+", default=list(CASES), choices=list(CASES), metavar="CASE", help=", ".join(CASES)
    )
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="METHOD")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    trained = args.trained or pathlib.Path(tempfile.gettempdir()) / "tfmot_asp_trained_models"
    print(f"$ python benchmarks/calibration.py {' '.join(sys.argv[1:])}".rstrip())
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"TensorFlow {tf.__version__}, tfmot {tfmot.__version__}, tfmot_asp {tfmot_asp.__version__}"
    )
    print("mean ± standard error over seeds of figures on samples that no method has seen")
    for name in args.cases:
        measure(name, Places(args.packages, trained), range(args.seeds), args.methods)


if __name__ == "__main__":
    main()
