"""What masks cost in a training step: dense, tfmot_asp's doors, and tfmot's own wrapper, in one run.

    python benchmarks/train_step.py [--model ResNet50] [--size 64] [--batch 32] [--rounds 12] [--json results.json]

Each way of training is a model of its own in this process, with the same weights and data. They are measured in turn,
one step each per round, in an order that changes from round to round, so that what else the machine does hits all
alike. Reported per way: the smallest and the median wall and CPU time of a step (CPU time is that of the whole
process), and the median over the rounds of its ratio to the dense step of the same round. The trained kernels are
checked to be 2:4 afterwards, and the dense ones not to be.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras

import tfmot_asp


def ways(make):
    """Name to a function that gives a compiled model that is in the middle of its training."""

    def sgd():
        return tf_keras.optimizers.SGD(1e-4, momentum=0.9)

    def compiled(model, optimizer=None):
        model.compile(optimizer or sgd(), tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        return model

    def trained():
        model = compiled(make())
        tfmot_asp.prune_trained_model(model, permute=False)
        return model

    def optimizer(inner):
        model = make()
        return compiled(model, tfmot_asp.AspOptimizerWrapperV2(inner, model, permute=False))

    def theirs():
        model = tfmot.sparsity.keras.prune_low_magnitude(
            make(),
            pruning_policy=tfmot_asp.PruneForSparseTensorCores(),
            pruning_schedule=tfmot.sparsity.keras.ConstantSparsity(0.5, 0),
            sparsity_m_by_n=(2, 4),
        )
        for layer in model.submodules:
            if hasattr(layer, "pruning_step"):
                layer.pruning_step.assign(0)  # what its callback does
        return compiled(model)

    return {
        "dense": lambda: compiled(make()),
        "prune_low_magnitude": lambda: compiled(tfmot_asp.prune_low_magnitude(make(), permute=False)),
        "prune_trained_model": trained,
        "AspOptimizerWrapperV2": lambda: optimizer(sgd()),
        "tfmot": theirs,
    }


def measure(models, data, rounds):
    """Wall and CPU seconds of each step, by name: lists with one entry per round."""
    x, y = data
    times = {name: [] for name in models}
    for model in models.values():
        for _ in range(2):  # trace, allocate, compute the masks
            model.train_on_batch(x, y)
    names = list(models)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            wall, cpu = time.perf_counter(), time.process_time()
            models[name].train_on_batch(x, y)
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return times


def summary(times):
    """Per way: smallest and median wall and CPU seconds, and the median ratio to the dense step of the same round."""
    result = {}
    for name, steps in times.items():
        row = {}
        for index, clock in enumerate(("wall", "cpu")):
            seconds = [step[index] for step in steps]
            row[clock] = {
                "min": min(seconds),
                "median": statistics.median(seconds),
                "ratio": statistics.median(
                    mine / dense[index] for mine, dense in zip(seconds, times["dense"], strict=True)
                ),
            }
        result[name] = row
    return result


def violating(model):
    report = tfmot_asp.sparsity_report(model)
    return report.prunable - report.sparse, report.prunable


def processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def environment():
    return {
        "command": " ".join([Path(sys.executable).name, *sys.argv]),
        "processor": processor(),
        "cpus": os.cpu_count(),
        "gpus": [gpu.name for gpu in tf.config.list_physical_devices("GPU")],
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "tf_keras": tf_keras.__version__,
        "tfmot": tfmot.__version__,
        "tfmot_asp": tfmot_asp.__version__,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ResNet50", help="a class of tf_keras.applications")
    parser.add_argument("--size", type=int, default=64, help="height and width of the images")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()

    shape = (arguments.size, arguments.size, 3)
    generator = np.random.default_rng(0)
    data = (
        generator.standard_normal((arguments.batch, *shape), np.float32),
        generator.integers(0, 1000, arguments.batch),
    )
    tf_keras.utils.set_random_seed(0)
    application = getattr(tf_keras.applications, arguments.model)
    first = application(weights=None, input_shape=shape, classifier_activation=None)

    def make():
        model = application(weights=None, input_shape=shape, classifier_activation=None)
        model.set_weights(first.get_weights())
        return model

    facts = environment()
    for name, value in facts.items():
        print(f"{name:<12} {value}")
    models = {name: build() for name, build in ways(make).items()}
    result = summary(measure(models, data, arguments.rounds))

    print(f"\n{arguments.model}, {arguments.batch} images of {shape}, {arguments.rounds} rounds; seconds per step")
    print(f"{'':<24}{'wall min':>10}{'median':>9}{'ratio':>8}{'cpu min':>11}{'median':>9}{'ratio':>8}")
    for name, row in result.items():
        wall, cpu = row["wall"], row["cpu"]
        print(
            f"{name:<24}{wall['min']:>10.3f}{wall['median']:>9.3f}{wall['ratio']:>8.3f}"
            f"{cpu['min']:>11.3f}{cpu['median']:>9.3f}{cpu['ratio']:>8.3f}"
        )
    for name, model in models.items():
        wrong, kernels = violating(model)
        print(f"{name}: {kernels - wrong} of {kernels} kernels are 2:4")
        # tfmot's weights are dense between an optimizer step and the next forward pass.
        if name != "tfmot" and wrong != (kernels if name == "dense" else 0):
            raise SystemExit(f"{name}: {wrong} of {kernels} kernels break the pattern")
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"environment": facts, "arguments": vars(arguments), "result": result}, default=str, indent=1)
        )


if __name__ == "__main__":
    main()
