"""Computing a 2:4 mask and checking the pattern, against tfmot's functions on the same kernel, in one run.

    python benchmarks/masks.py [--shape 3 3 512 512] [--repeats 5] [--json results.json]

Both masks are of the same kernel and must keep the same number of weights; both checks are of the same sparse kernel
and must say yes, and no after one weight is put back. The best of the repeats is reported, the two in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
from tensorflow_model_optimization.python.core.sparsity.keras import pruning_utils
from train_step import environment

from tfmot_asp import masks


def best(functions, repeats):
    """The shortest wall and CPU seconds of each function, and what it returned."""
    seconds = {name: [] for name in functions}
    values = {}
    for _ in range(repeats):
        for name, function in functions.items():
            wall, cpu = time.perf_counter(), time.process_time()
            values[name] = function()
            seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {name: tuple(map(min, zip(*rows, strict=True))) for name, rows in seconds.items()}, values


def flat(kernel):
    """The matrix that tfmot's function works on: reduction axis last."""
    order = (*range(kernel.shape.rank - 2), kernel.shape.rank - 1, kernel.shape.rank - 2)
    return tf.reshape(tf.transpose(kernel, order), (-1, kernel.shape[-2]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs="+", default=(3, 3, 512, 512))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    facts = environment()
    for name, value in facts.items():
        print(f"{name:<12} {value}")

    kernel = np.random.default_rng(0).standard_normal(arguments.shape, np.float32)
    axis = kernel.ndim - 2
    tensor = tf.constant(kernel)
    seconds, values = best(
        {
            "mask: tfmot": lambda: pruning_utils.generate_m_by_n_mask(flat(tensor), (2, 4)).numpy(),
            "mask: tfmot_asp, TensorFlow": lambda: masks.m_by_n_mask(tf.abs(tensor), axis).numpy(),
            "mask: tfmot_asp, NumPy": lambda: masks.m_by_n_mask(np.abs(kernel), axis),
        },
        arguments.repeats,
    )
    kept = {name: int(np.count_nonzero(value)) for name, value in values.items()}
    if len(set(kept.values())) > 1:
        raise SystemExit(f"the masks keep different numbers of weights: {kept}")

    sparse = masks.apply_mask(kernel, values["mask: tfmot_asp, NumPy"])
    broken = sparse.copy()
    broken[tuple(index[0] for index in np.nonzero(sparse == 0))] = 1.0
    tensors = {id(array): tf.constant(array) for array in (sparse, broken)}  # tfmot checks tensors
    checks = {
        "check: tfmot": lambda array: bool(pruning_utils.is_pruned_m_by_n(tensors[id(array)], (2, 4))),
        "check: tfmot_asp": lambda array: masks.violations(array, axis) == 0,
    }
    for name, check in checks.items():
        if not check(sparse):
            raise SystemExit(f"{name} finds a violation in a sparse kernel")
        if check(broken):
            raise SystemExit(f"{name} misses a violation")
    checked, _ = best({name: lambda check=check: check(sparse) for name, check in checks.items()}, arguments.repeats)
    seconds.update(checked)

    print(f"\nkernel {tuple(arguments.shape)}, best of {arguments.repeats}; milliseconds")
    print(f"{'':<30}{'wall':>10}{'cpu':>10}{'times as fast':>16}")
    for name, (wall, cpu) in seconds.items():
        base = seconds[f"{name.partition(':')[0]}: tfmot"][0]
        print(f"{name:<30}{1e3 * wall:>10.2f}{1e3 * cpu:>10.2f}{base / wall:>16.1f}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"environment": facts, "seconds": seconds}, indent=1))


if __name__ == "__main__":
    main()
