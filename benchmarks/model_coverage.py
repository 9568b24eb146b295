"""What is permuted in every model of `tf_keras.applications`, and proof that it changes nothing.

    python benchmarks/model_coverage.py                  # all; writes results/model_coverage.json and docs/coverage.md
    python benchmarks/model_coverage.py MobileNet VGG16  # some; their rows are replaced, the others kept
    python benchmarks/model_coverage.py --table          # write the table again from the results

No weights are downloaded: they are random, vectors (biases, scales, statistics) included, which is harder than trained
ones, as nothing is close to zero. Every group gets a random order that leaves no channel in its place, so no search is
involved. The logits of a random image are compared before and after, in float32; where rounding alone does more than
1e-5 (deep models with random scales amplify it), the model is built again in float64, which settles it.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
import tf_keras

from tfmot_asp.hardware.rule import TF_ASP_KINDS, SparseTensorCoreRule
from tfmot_asp.permutation import rules
from tfmot_asp.permutation.plan import plan_model
from tfmot_asp.permutation.report import finish

HERE = Path(__file__).resolve().parent
RESULTS, TABLE = HERE / "results" / "model_coverage.json", HERE.parent / "docs" / "coverage.md"
LIMIT = 1e-5

Row = dict[str, Any]


def model_names() -> list[str]:
    return sorted(
        n for n in dir(tf_keras.applications) if n[0].isupper() and callable(getattr(tf_keras.applications, n))
    )


def build(name: str, seed: int = 0) -> tf_keras.Model:
    """The model with random weights: matrices as Keras initializes them, vectors in [0.5, 1.5]."""
    options = {"input_shape": (224, 224, 3)} if name.startswith("MobileNetV3") else {}
    tf_keras.utils.set_random_seed(seed)
    model = getattr(tf_keras.applications, name)(weights=None, classifier_activation=None, **options)
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        if variable.shape.rank <= 1:
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    return model


def random_order(size: int, rng: np.random.Generator) -> np.ndarray:
    """An order that leaves nothing in its place."""
    cycle = rng.permutation(size)
    order = np.empty(size, np.int64)
    order[cycle] = np.roll(cycle, 1)
    return order


def measure(name: str, dtype: str = "float32") -> Row:
    """Plans, reorders at random, and compares the logits."""
    tf_keras.backend.set_floatx(dtype)
    try:
        model = build(name)
        started, busy = time.perf_counter(), time.process_time()
        plan = plan_model(model, policy=SparseTensorCoreRule(kinds=TF_ASP_KINDS))
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - busy
        rng = np.random.default_rng(1)
        image = tf.constant(rng.random((1, *model.input_shape[1:])), dtype)
        before = model(image).numpy()
        report = finish(plan, model, [random_order(g.size, rng) for g in plan.plan.groups], verify=False)
        after = model(image).numpy()
    finally:
        tf_keras.backend.set_floatx("float32")
    fixed = {entry.name: entry.reason for entry in report.layers if entry.status in ("fixed", "partly permuted")}
    dense = [entry.reason for entry in report.layers if entry.status == "dense"]
    types = {op.type for op in plan.graph.ops}
    return {
        "parameters": int(model.count_params()),
        "ops": len(plan.graph.ops),
        "prunable": report.prunable,
        "permuted": sum(entry.status == "permuted" for entry in report.layers),
        "fixed": fixed,
        "dense": len(dense),
        "groups": len(report.groups),
        "change": float(np.abs(before - after).max() / np.abs(before).max()),
        "dtype": dtype,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "without_rule": sorted(types - rules.op_types()),
    }


def environment() -> dict[str, Any]:
    return {
        "command": "python " + " ".join(["benchmarks/model_coverage.py", *sys.argv[1:]]),
        "cpus": os.cpu_count(),
        "processor": _processor(),
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "tf_keras": tf_keras.__version__,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def table(results: dict[str, Any]) -> str:
    """The results as a page of the documentation."""
    rows = dict(sorted(results["models"].items()))
    missing = sorted(set(model_names()) - set(rows))
    where = results["environment"]
    whole = sum(r["permuted"] == r["prunable"] for r in rows.values())
    worst = max((r["change"] for r in rows.values()), default=0.0)
    lines = [
        "# Coverage: every model of `tf_keras.applications`",
        "",
        f"{whole} of {len(rows)} models have all their prunable kernels permuted; the largest change of a logit is "
        f"{worst:.1e} of the largest logit. Random weights, a random order for every group that leaves no channel in "
        "its place; see `benchmarks/model_coverage.py`, which makes this page.",
        "",
        "Prunable here are Dense and Conv2D kernels, TF-ASP's kinds, with a multiple of 16 input and of 8 output "
        "channels, no groups. A change marked * is measured in float64: with random weights "
        "that model amplifies rounding in float32 beyond 1e-5.",
        "",
        f"TensorFlow {where['tensorflow']}, tf_keras {where['tf_keras']}, Python {where['python']}, {where['cpus']} "
        f"CPUs ({where['processor']}), shared with other work: the last column is the time by the clock, the one "
        "before it the time of the processors. Planning goes from the model to the groups.",
        "",
        "| model | ops | prunable | permuted | groups | largest change | planning, CPU s | planning, s |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, r in rows.items():
        mark = " *" if r["dtype"] == "float64" else ""
        lines.append(
            f"| {name} | {r['ops']} | {r['prunable']} | {r['permuted']} | {r['groups']} | {r['change']:.1e}{mark} | "
            f"{r['cpu_seconds']:.1f} | {r['seconds']:.1f} |"
        )
    reasons = [(name, layer, why) for name, r in rows.items() for layer, why in r["fixed"].items()]
    if reasons:
        lines += ["", "## What stays, and why", ""]
        lines += [f"- {name}, `{layer}`: {why}" for name, layer, why in reasons]
    lines += ["", "## Ops without a rule", ""]
    without = sorted({t for r in rows.values() for t in r["without_rule"]})
    lines.append(", ".join(without) if without else "None: every op type of these models has a rule.")
    if missing:
        lines += ["", "## Not measured yet", "", ", ".join(missing)]
    return "\n".join(lines) + "\n"


def save(results: dict[str, Any]) -> None:
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    TABLE.write_text(table(results), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="names as in tf_keras.applications; all by default")
    parser.add_argument("--table", action="store_true", help="only write the table from the stored results")
    options = parser.parse_args()
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"models": {}}
    unknown = sorted(set(options.models) - set(model_names()))
    if unknown:
        parser.error(f"no such model: {', '.join(unknown)}; there are {', '.join(model_names())}")
    failures = 0
    if not options.table:
        results["environment"] = environment()
        for name in options.models or model_names():
            row = measure(name)
            if row["change"] > LIMIT:
                times = {key: row[key] for key in ("seconds", "cpu_seconds")}
                row = {**measure(name, "float64"), **times}
            results["models"][name] = row
            failures += row["change"] > LIMIT
            print(
                f"{name}: {row['permuted']} of {row['prunable']} permuted, "
                f"change {row['change']:.1e} ({row['dtype']}), "
                f"planned in {row['seconds']:.1f} s ({row['cpu_seconds']:.1f} s of CPU)",
                flush=True,
            )
            save(results)
            tf_keras.backend.clear_session()
            gc.collect()
    save(results)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
