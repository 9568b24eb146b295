"""A short distillation without labels: kept weights learn what the dense model computed on the data.

Adam on the weights that masks keep, towards the dense model's outputs and the sums of its residual blocks. A part of
the data is held out: the weights that do best on it are kept, those of before if none did better.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_asp.calibration.calibration_report import OutputChange, OutputComparison
from tfmot_asp.calibration.data import CalibrationBatch
from tfmot_asp.calibration.traced import TracedModel, row_weights
from tfmot_asp.graph.flat_graph import local_variable
from tfmot_asp.keras_models.kernels import Kernel
from tfmot_asp.keras_models.variables import read
from tfmot_asp.reports.progress_bar import progress_bar

logger = logging.getLogger(__name__)

RATE = 2e-3
"""Learning rate, in units of the root mean square of a kernel's kept weights: scales differ a hundredfold."""
STEPS = 400
"""Steps at most; fewer where each sample would be seen more than ``EPOCHS`` times."""
EPOCHS = 20
_CHECKS = 8
_HELD_OUT = 8  # one sample in so many
_BYTES = 1 << 23  # of inputs in a step
_SCALE = 1024.0  # of the loss, so that gradients in half precision do not vanish


def distill(
    kernels: Mapping[str, Kernel],
    masks: Mapping[str, np.ndarray],
    dense: Mapping[Any, np.ndarray],
    traced: Sequence[TracedModel],
    *,
    seed: int = 0,
    progress: bool | None = None,
) -> Distillation | None:
    """Trains the kept weights of a model that has been pruned, in place.

    Args:
        kernels, masks: of the pruned model, by name.
        dense: values that variables had before it was pruned, by their key.
        traced: the model, for all batches.
        seed: of the order of batches.
        progress: show a bar.

    Returns:
        What it did; None if there are too few samples, or the model has an op without a gradient.
    """
    pieces = [(each, piece) for each in traced for batch in each.batches for piece in _cut(batch)]
    held, seen = pieces[::_HELD_OUT], [piece for i, piece in enumerate(pieces) if i % _HELD_OUT]
    if not seen:
        return None
    teachers = {id(each): _Teacher(each, dense) for each in traced}
    student = _Student(kernels, masks)

    def error() -> float:
        sums = np.zeros(2)
        for each, piece in held:
            for output, target, weights in _outputs(each, piece, teachers[id(each)])[0]:
                sums += [float(part) for part in _squares(output, target, weights)]
        return float(np.sqrt(sums[0] / sums[1])) if sums[1] else 0.0

    before = best = error()
    kept = student.values()
    rng = np.random.default_rng(seed)
    steps = min(STEPS, EPOCHS * len(seen))
    order = np.concatenate([rng.permutation(len(seen)) for _ in range(-(-steps // len(seen)))])[:steps]
    with progress_bar(steps, "distill", progress, unit="step") as bar:
        for number, index in enumerate(order):
            each, piece = seen[index]
            try:
                student.step(each, piece, teachers[id(each)], RATE * _warm(number, steps))
            except (LookupError, tf.errors.UnimplementedError) as missing:  # an op without a gradient
                logger.warning("not distilled: %s", missing)
                student.write(kept)
                return None
            bar.update(1)
            if (number + 1) % max(1, steps // _CHECKS) == 0 or number + 1 == steps:
                now = error()
                if now < best:
                    best, kept = now, student.values()
    student.write(kept)
    return Distillation((before, best), _compared(traced, teachers))


@dataclass(frozen=True)
class Distillation:
    """What a distillation did.

    Attributes:
        error: relative error of the outputs on the samples held out, before and after.
        outputs: how the outputs on all samples differ from the dense model's now.
    """

    error: tuple[float, float]
    outputs: tuple[OutputChange, ...]


def _compared(traced: Sequence[TracedModel], teachers: Mapping[int, _Teacher]) -> tuple[OutputChange, ...]:
    comparisons = [OutputComparison("") for _ in traced[0].graph.outputs]
    for each in traced:
        for batch in each.batches:
            wanted = teachers[id(each)](batch)
            found = tf.nest.flatten(each.function._call_flat(batch.leaves, each.function.captured_inputs))
            for comparison, one, other in zip(comparisons, wanted, found, strict=False):
                comparison.add(one.numpy(), other.numpy())
    return tuple(comparison.result() for comparison in comparisons)


class _Student:
    """The kept weights, and Adam on them."""

    def __init__(self, kernels: Mapping[str, Kernel], masks: Mapping[str, np.ndarray]) -> None:
        self.variables = [local_variable(kernel.tf_variable) for kernel in kernels.values()]
        self.targets = [kernel.tf_variable for kernel in kernels.values()]
        self.masks = [
            tf.constant(masks[name], variable.dtype) for name, variable in zip(kernels, self.variables, strict=True)
        ]
        self.scales = [
            float(np.sqrt(np.mean(np.square(read(kernel.tf_variable).astype(np.float32)[masks[name]]))))
            for name, kernel in kernels.items()
        ]
        self.first = [tf.zeros(v.shape, tf.float32) for v in self.variables]
        self.second = [tf.zeros(v.shape, tf.float32) for v in self.variables]
        self.count = 0

    def values(self) -> list[np.ndarray]:
        return [read(variable) for variable in self.targets]

    def write(self, values: Sequence[np.ndarray]) -> None:
        for variable, value in zip(self.targets, values, strict=True):
            variable.assign(value)

    def step(self, traced: TracedModel, batch: CalibrationBatch, teacher: _Teacher, rate: float) -> None:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(self.variables)
            outputs, blocks = _outputs(traced, batch, teacher)
            loss = sum(_distance(*part) for part in outputs) / max(1, len(outputs))
            if blocks:
                loss += sum(_distance(*part) for part in blocks) / len(blocks)
            loss *= _SCALE
        gradients = tape.gradient(loss, self.variables)
        self.count += 1
        for i, (target, gradient) in enumerate(zip(self.targets, gradients, strict=True)):
            if gradient is None:
                continue
            gradient = tf.cast(tf.convert_to_tensor(gradient), tf.float32) / _SCALE
            if not bool(tf.reduce_all(tf.math.is_finite(gradient))):
                continue
            self.first[i] = 0.9 * self.first[i] + 0.1 * gradient
            self.second[i] = 0.99 * self.second[i] + 0.01 * gradient**2
            mean, square = self.first[i] / (1 - 0.9**self.count), self.second[i] / (1 - 0.99**self.count)
            change = tf.cast(rate * self.scales[i] * mean / (tf.sqrt(square) + 1e-8), target.dtype)
            target.assign((tf.convert_to_tensor(target) - change) * self.masks[i])


class _Teacher:
    """The dense model: the traced function with the variables that pruning has changed replaced by their old values."""

    def __init__(self, traced: TracedModel, dense: Mapping[Any, np.ndarray]) -> None:
        self.function = traced.function
        self.copies = {key: tf.Variable(value, trainable=False) for key, value in dense.items()}
        captured = traced.function.captured_inputs
        self.captured = [self.copies[id(c)].handle if id(c) in self.copies else c for c in captured]

    def __call__(self, batch: CalibrationBatch) -> list[tf.Tensor]:
        """The flat outputs of the function on a batch."""
        return tf.nest.flatten(self.function._call_flat(batch.leaves, self.captured))


Part = tuple[tf.Tensor, tf.Tensor, tf.Tensor | None]


def _outputs(traced: TracedModel, batch: CalibrationBatch, teacher: _Teacher) -> tuple[list[Part], list[Part]]:
    """The outputs of both models on a batch, and the sums of residual blocks, each with the weights of its rows."""
    function = traced.function
    found = tf.nest.flatten(function._call_flat(batch.leaves, function.captured_inputs))
    wanted = teacher(batch)
    parts: list[Part | None] = []
    for output, target in zip(found, wanted, strict=True):
        if not output.dtype.is_floating or output.shape.rank is None or output.shape.rank < 1:
            parts.append(None)
            continue
        weights = None
        if batch.weights is not None and output.shape.rank > 1:
            weights = row_weights(batch.weights, [int(n) for n in output.shape[:-1]])
        shape = [-1, int(output.shape[-1]) if output.shape.rank > 1 else 1]
        parts.append(
            (
                tf.reshape(tf.cast(output, tf.float32), shape),
                tf.reshape(tf.cast(target, tf.float32), shape),
                None if weights is None else tf.constant(weights[:, None]),
            )
        )
    outputs = [part for part in parts[: len(traced.graph.outputs)] if part is not None]
    return outputs, [part for i in traced.sums if (part := parts[i]) is not None]


def _squares(output: tf.Tensor, target: tf.Tensor, weights: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
    counted = 1.0 if weights is None else weights
    return tf.reduce_sum(counted * (output - target) ** 2), tf.reduce_sum(counted * target**2)


def _distance(output: tf.Tensor, target: tf.Tensor, weights: tf.Tensor | None) -> tf.Tensor:
    """Relative error, and one minus the cosine of the rows."""
    error, size = _squares(output, target, weights)
    result = error / (size + 1e-12)
    if int(output.shape[-1]) > 1:
        one, other = tf.math.l2_normalize(output, -1), tf.math.l2_normalize(target, -1)
        counted = tf.ones([len(output), 1]) if weights is None else weights
        cosines = tf.reduce_sum(counted * tf.reduce_sum(one * other, -1, keepdims=True)) / tf.reduce_sum(counted)
        result += 1.0 - cosines
    return result


def _warm(number: int, steps: int) -> float:
    """The learning rate's share: up within a twentieth of the steps, then down to a tenth."""
    start = max(1, steps // 20)
    if number < start:
        return (number + 1) / start
    return 0.1 + 0.9 * (1 - (number - start) / max(1, steps - start))


def _cut(batch: CalibrationBatch) -> list[CalibrationBatch]:
    """A batch in parts that a step can take: what it remembers for the gradient grows with the inputs."""
    each = max(1, sum(int(np.prod(t.shape)) * t.dtype.size for t in batch.leaves) // batch.samples)
    size = int(np.clip(_BYTES // each, 1, 16))
    return [
        CalibrationBatch(
            tf.nest.map_structure(lambda t: t[start : start + size], batch.inputs),  # noqa: B023 (called at once)
            None if batch.weights is None else batch.weights[start : start + size],
            min(size, batch.samples - start),
        )
        for start in range(0, batch.samples, size)
    ]
