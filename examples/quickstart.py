"""What each step of 2:4 is worth: permute, calibrate, fine-tune, on real data, averaged over several trainings.

    python examples/quickstart.py [--seeds 5] [--epochs 25] [--fine-tune-epochs 8] [--out DIR]

The data are scikit-learn's handwritten digits, which the package ships, so nothing is downloaded. Writes the last of
the models as a SavedModel, and two pictures beside it.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import digits
import numpy as np
import tensorflow as tf
import tf_keras
from matplotlib.figure import Figure
from tf_keras import layers

import tfmot_asp

BATCH = 32
STEPS = ("dense", "2:4, channels as they are", "2:4, permuted", "2:4, permuted, calibrated", "2:4, then fine-tuned")
Kept = dict[str, tuple[float, float]]


def build_model(width: int = 128, depth: int = 6) -> tf_keras.Model:
    """Fully connected layers with a usual small weight decay, so that some channels end up with much less weight."""
    decay = tf_keras.regularizers.L2(1e-4)
    inputs = tf_keras.Input((8, 8, 1), name="image")
    x = layers.Flatten()(inputs)
    for number in range(depth):
        x = layers.Dense(width, activation="relu", kernel_regularizer=decay, name=f"dense{number}")(x)
    return tf_keras.Model(inputs, layers.Dense(10, name="scores")(x), name="digits")


def train(model: tf_keras.Model, data: digits.Data, epochs: int, rate: float) -> None:
    steps = max(1, epochs) * -(-len(data[0]) // BATCH)
    optimizer = tf_keras.optimizers.Adam(tf_keras.optimizers.schedules.CosineDecay(rate, steps))
    model.compile(optimizer, tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(*data, batch_size=BATCH, epochs=epochs, verbose=0)


def copy_of(model: tf_keras.Model) -> tf_keras.Model:
    """A model of its own with the same weights, for what must not change the original."""
    copy = tf_keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


def one_run(seed: int, args: argparse.Namespace) -> tuple[dict[str, float], Kept, tf_keras.Model]:
    """Trains and prunes one model: its accuracy after each step, the magnitude that 2:4 keeps, and what came out."""
    tf_keras.utils.set_random_seed(seed)
    data, (x_test, y_test) = digits.load()
    inputs = data[0][:256]  # no labels: what to calibrate with

    def accuracy(model: tf_keras.Model) -> float:
        return digits.accuracy(model(x_test, training=False).numpy(), y_test)

    def by_magnitude(model: tf_keras.Model) -> tf_keras.Model:
        """2:4 in one shot: the two smallest of every four weights go."""
        pruned = copy_of(model)
        tfmot_asp.prune_trained_model(pruned, permute=False)
        return pruned

    model = build_model()
    train(model, data, args.epochs, 2e-3)
    found = [accuracy(model), accuracy(by_magnitude(model))]

    # The same function, with the channels in an order that 2:4 likes.
    report = tfmot_asp.permute(model)
    kept = {row.name: (row.retained_before, row.retained_after) for row in report.layers if row.retained_before}
    found.append(accuracy(by_magnitude(model)))

    # The masks are chosen, and the kept weights refitted, on 256 inputs.
    tfmot_asp.prune_trained_model(model, permute=False, calibration_data=inputs)
    found.append(accuracy(model))

    # The masks are on the kernels: training goes on as ever, and every step keeps the pattern.
    train(model, data, args.fine_tune_epochs, 5e-4)
    found.append(accuracy(model))
    return dict(zip(STEPS, found, strict=True)), kept, model


def spread(values: list[float]) -> tuple[float, float]:
    """Mean, and its standard error."""
    return float(np.mean(values)), float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0


def draw(path: pathlib.Path, runs: list[dict[str, float]], kept: list[Kept]) -> list[pathlib.Path]:
    """Two pictures: accuracy by step with its spread, and the magnitude that 2:4 keeps by layer."""
    steps = Figure(figsize=(8, 4), layout="constrained")
    axes = steps.subplots()
    for run in runs:
        axes.plot(STEPS, [run[step] for step in STEPS], "o-", color="0.75", markersize=3, linewidth=1)
    means, errors = zip(*(spread([run[step] for run in runs]) for step in STEPS), strict=True)
    axes.errorbar(STEPS, means, errors, fmt="o", color="tab:green", capsize=6, markersize=8)
    for number, mean in enumerate(means):
        axes.annotate(f"{mean:.1f}", (number, mean), (10, 4), textcoords="offset points", color="tab:green")
    axes.set_xticks(range(len(STEPS)), [step.replace(", ", ",\n") for step in STEPS])
    axes.set_xlim(-0.4, len(STEPS) - 0.4)
    axes.set_ylabel("% of test digits right")
    axes.set_title(f"Accuracy by step: mean ± standard error of {len(runs)} trainings (grey)")

    layers_ = Figure(figsize=(8, 4), layout="constrained")
    axes = layers_.subplots()
    names = list(kept[0])
    for number, (label, color) in enumerate((("channels as they are", "0.7"), ("permuted", "tab:green"))):
        means = [100 * np.mean([run[name][number] for run in kept]) for name in names]
        axes.barh(np.arange(len(names)) + 0.4 * number, means, 0.38, label=label, color=color)
    axes.set_yticks(np.arange(len(names)) + 0.2, names)
    axes.invert_yaxis()
    axes.set_xlim(60, None)
    axes.set_xlabel("% of the layer's weight magnitude that a 2:4 mask keeps (from 60 %)")
    axes.legend(loc="upper right")
    axes.set_title("What permutation saves, by layer")

    written = [path.with_name(f"{path.name}_{what}.png") for what in ("accuracy", "kept_magnitude")]
    for figure, target in zip((steps, layers_), written, strict=True):
        figure.savefig(target, dpi=120)
    return written


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = digits.arguments(__doc__, epochs=25, fine_tune_epochs=8, out="digits_2_4")
    parser.add_argument("--seeds", type=int, default=5, help="how many trainings to average over")
    args = parser.parse_args(argv)
    tf.get_logger().setLevel("ERROR")  # TensorFlow's own notes
    started = time.monotonic()
    _, (x_test, _) = digits.load()

    print(f"Per cent of {len(x_test)} test digits that a network of 7 layers names right\n")
    print("training  " + "  ".join(STEPS))
    runs, kept = [], []
    for seed in range(args.seeds):
        run, magnitudes, model = one_run(seed, args)
        runs.append(run)
        kept.append(magnitudes)
        print(
            f"{seed + 1} of {args.seeds:<4} " + "  ".join(f"{run[step]:>{len(step)}.1f}" for step in STEPS), flush=True
        )

    out = digits.target(args)
    check = tfmot_asp.export.saved_model(model, out, overwrite=args.out is None)
    pictures = draw(out, runs, kept)

    results = {step: spread([run[step] for run in runs])[0] for step in STEPS}
    print(f"\nMean ± standard error of {args.seeds} trainings")
    for step in STEPS:
        mean, error = spread([run[step] for run in runs])
        print(f"  {step:<28}{mean:6.2f} ± {error:.2f} %")
    gain, error = spread([run[STEPS[2]] - run[STEPS[1]] for run in runs])
    before, after = (100 * np.mean([pair[number] for run in kept for pair in run.values()]) for number in (0, 1))
    print(f"  {'gain of permutation alone':<28}{gain:+6.2f} ± {error:.2f}, within each training")
    print(f"Of the weights' magnitude a 2:4 mask keeps {before:.1f} %, after permutation {after:.1f} %.")
    print(f"\n{check}\n\nSavedModel: {out}")
    print("\n".join(f"Picture:    {picture}" for picture in pictures))
    print(f"{time.monotonic() - started:.0f} s in all")
    if not check.ok:
        raise SystemExit("the written file is not 2:4")
    return results


if __name__ == "__main__":
    main()
