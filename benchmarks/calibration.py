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
from collections.abc import Callable, Mapping
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
from browser_models import CASES as BROWSER_CASES
from measured import Measured
from trained_models import CASES as PYTHON_CASES
from trained_models import Case, Places

import tfmot_asp
from tfmot_asp.hardware.rule import SUPPORTED_KINDS

CASES = PYTHON_CASES | BROWSER_CASES
Prune = Callable[[Case, Any], None]
RULE = tfmot_asp.SparseTensorCoreRule(kinds=SUPPORTED_KINDS)


def tfmot_layers(model: Any, policy: Any) -> list[Any]:
    """The layers that are to be pruned and of a kind that tfmot masks 2:4 along the axis that is summed over."""
    layers = model._flatten_layers(include_self=False, recursive=True)
    return [layer for layer in layers if type(layer).__name__ in ("Dense", "Conv2D") and policy.why(layer) is None]


def tfmot_one_shot(case: Case, policy: Any) -> None:
    """tfmot's own 2:4 masks, on the same layers as far as tfmot knows their kind."""
    chosen, wrapped = {id(layer) for layer in tfmot_layers(case.model, policy)}, []

    def wrap(layer: Any) -> Any:
        if id(layer) in chosen:
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


def measure(name: str, places: Places, seeds: range, methods: Mapping[str, Prune | None]) -> Measured:
    """Runs a case with each method and seed.

    Raises:
        FileNotFoundError: if a package is missing, with the command that brings it.
    """
    rows: dict[str, list[list[float]]] = {method: [] for method in methods}
    refused: dict[str, str] = {}
    figures: dict[str, float] = {}
    for seed in seeds:
        case = CASES[name](places, seed)
        weights = case.model.get_weights()
        for method, prune in methods.items():
            case.model.set_weights(weights)
            cpu = time.process_time()
            try:
                with Peak() as peak:
                    if prune is not None:
                        prune(case, RULE)
                cpu = time.process_time() - cpu
                figures = case.evaluate(case.model)
            except (TypeError, ValueError) as error:
                refused[method] = f"{type(error).__name__}: {error}".splitlines()[0][:100]
                continue
            rows[method].append([*figures.values(), cpu, peak.mebibytes])
        case.model.set_weights(weights)
        kernels = len(tfmot_asp.prune_trained_model(case.model, policy=RULE, permute=False).masks)
        by_tfmot = len(tfmot_layers(case.model, RULE))
        size = case.model.count_params()
        tf_keras.backend.clear_session()
    return Measured(case.title, size, kernels, by_tfmot, case.calibration.shape, list(figures), rows, refused)


def show(name: str, measured: Measured) -> None:
    """Prints the table of a case."""
    print(f"\n{name}: {measured.title}")
    count, *shape = measured.samples
    print(f"{measured.weights:,} weights, {measured.kernels} kernels pruned, {count} samples {tuple(shape)}")
    print(f"{'':26}" + "".join(f"{title:>24}" for title in [*measured.figures, "processor s", "MiB"]))
    for method, rows in measured.rows.items():
        if not rows:
            print(f"{method:26}{measured.refused.get(method, '')}")
            continue
        mean, error = measured.mean(method), measured.error(method)
        cells = [f"{m:.4f} ± {e:.4f}" for m, e in zip(mean[:-2], error, strict=False)]
        cells += [f"{m:.1f}" for m in mean[-2:]]
        print(f"{method:26}" + "".join(f"{cell:>24}" for cell in cells), flush=True)


def machine() -> str:
    """Hardware and versions."""
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"TensorFlow {tf.__version__}, tfmot {tfmot.__version__}, tfmot_asp {tfmot_asp.__version__}"
    )


def add_places(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say where models lie, and which to take."""
    trained = pathlib.Path(tempfile.gettempdir()) / "tfmot_asp_trained_models"
    parser.add_argument("--packages", type=pathlib.Path, default=pathlib.Path("packages"), help="where models lie")
    parser.add_argument(
        "--trained", type=pathlib.Path, default=trained, help="keeps what is trained here (default: temporary)"
    )
    parser.add_argument("--cases", nargs="+", choices=list(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--seeds", type=int, default=3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_places(parser)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="METHOD")
    args = parser.parse_args()
    print(f"$ python benchmarks/calibration.py {' '.join(sys.argv[1:])}".rstrip())
    print(machine())
    print("mean ± standard error over seeds of figures on samples that no method has seen")
    methods = {name: METHODS[name] for name in args.methods}
    for name in args.cases or CASES:
        try:
            show(name, measure(name, Places(args.packages, args.trained), range(args.seeds), methods))
        except FileNotFoundError as missing:
            print(f"\n{name}: needs {missing}", flush=True)


if __name__ == "__main__":
    main()
