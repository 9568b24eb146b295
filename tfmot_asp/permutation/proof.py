"""Proof by running: the traced function computes the same before and after, tried on copies of the weights.

What a run changes, the weights that are reordered and state that the function writes (counters, seeds), are copies, so
a failed proof leaves nothing to undo. They are made for each run, and freed after it: never more than the weights
once. It runs on two sets of weights:

* random ones, all of a size that matters. A permutation is right for any weights or for none; with the model's own, a
  branch that a tiny or zero scale silences (LayerScale, zero-initialized batch normalization) would prove nothing;
* the model's own, whose change is reported.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from tfmot_asp.graph.compare import difference, tolerance
from tfmot_asp.graph.flat_graph import local_variable, variable_key
from tfmot_asp.graph.ops import CHOICES, LOOPS, READS
from tfmot_asp.graph.probes import random_inputs
from tfmot_asp.keras_models.variables import buffer, handed_over, underlying_variable
from tfmot_asp.keras_models.windows import windows
from tfmot_asp.permutation.plan import ModelPlan
from tfmot_asp.permutation.reorder import Moves, permuted

logger = logging.getLogger(__name__)

_DIFFERING = 0.01  # share of an integer output's entries: a class may flip where two scores are equal but for rounding
_AMPLIFIED = 100.0
_USELESS = 1e-2

_READING = (*READS, *LOOPS, *CHOICES, "Identity", "IdentityN")
_SMALL = 1 << 12  # elements of a variable that is copied whatever reads it

Weights = Callable[[int, Moves], np.ndarray | None]


class Verifier:
    """Runs the traced function of a plan on given values of its variables, and compares outputs."""

    def __init__(self, plan: ModelPlan):
        self.plan = plan
        self.inputs = random_inputs(plan.function)
        self.tolerance = tolerance("permuted", {t.dtype.name for op in plan.axes.walked for t in op.outputs})
        self._random = any(
            op.source.op_def.is_stateful and "Random" in op.type and not op.training for op in plan.axes.walked
        )

    def change(
        self,
        weights: Weights,
        moves: Mapping[int, Moves],
        outputs: Sequence[np.ndarray | None] = (),
    ) -> tuple[float, float]:
        """The relative change of the outputs, and what rounding alone could cause.

        Args:
            weights: values of the variables of the graph.
            moves: how variables are reordered, by their positions.
            outputs: the order that the last axis of an output has afterwards; it is undone before comparing.

        Returns:
            The largest change of an output relative to its largest value, and the largest that counts as rounding: the
            tolerance of the dtype, or more where the function amplifies a change of its inputs by one rounding step.
        """
        old = self.run(weights)
        if self._random:
            again = self.run(weights)
            same = [_difference(a, b) <= self.tolerance for a, b in zip(old, again, strict=True)]
        else:
            same = [True] * len(old)
        new = self.run(weights, moves, orders=outputs)
        pairs = [(a, b) for a, b, keep in zip(old, new, same, strict=True) if keep]
        change = max((_difference(a, b) for a, b in pairs), default=0.0)
        if change <= self.tolerance:
            return change, self.tolerance
        nudged = self.run(weights, nudge=1.0 + 2.0**-20)
        noise = max((_difference(a, b) for a, b, keep in zip(old, nudged, same, strict=True) if keep), default=0.0)
        return change, max(self.tolerance, _AMPLIFIED * noise)

    def run(
        self,
        weights: Weights,
        moves: Mapping[int, Moves] | None = None,
        nudge: float = 1.0,
        orders: Sequence[np.ndarray | None] = (),
    ) -> list[np.ndarray]:
        """The outputs for reordered weights, on the probe input, with the orders of outputs undone."""
        function, inputs = self.plan.function, self.inputs
        if nudge != 1.0:
            inputs = [t * tf.cast(nudge, t.dtype) if t.dtype.is_floating else t for t in inputs]
        copies = {}
        for i, variable in enumerate(self.plan.graph.variables):
            value = weights(i, (moves or {}).get(i, ()))
            if value is not None:
                plain = underlying_variable(variable)
                with tf.device(getattr(plain, "device", None)):
                    copies[variable_key(variable)] = tf.Variable(handed_over(value), dtype=plain.dtype, trainable=False)
                del value
        captured = [local_variable(copies[id(c)]).handle if id(c) in copies else c for c in function.captured_inputs]
        outputs = [t for t in tf.nest.flatten(function._call_flat(inputs, captured)) if tf.is_tensor(t)]
        for i, order in enumerate(orders):
            if order is not None:
                outputs[i] = tf.gather(outputs[i], np.argsort(order), axis=-1)
        return [
            t.numpy() if t.dtype.is_integer or t.dtype.is_bool else tf.cast(t, tf.float64).numpy()
            for t in outputs
            if (t.dtype.is_integer or t.dtype.is_bool or t.dtype.is_floating)
        ]


class OwnWeights:
    """The model's own weights. Called with the position of a variable and how it moves, it gives the value.

    None for one that does not move and that the function does not write: it serves as it is.
    """

    def __init__(self, plan: ModelPlan):
        self.plan = plan
        self._written = {
            t.variable
            for op in plan.axes.walked
            if op.type not in _READING
            for t in op.inputs
            if t.variable is not None
        }

    def __call__(self, variable: int, moves: Moves) -> np.ndarray | None:
        value = self.plan.weight(variable)
        if moves or variable in self._written or value.size <= _SMALL or not _is_float(self.plan, variable):
            return permuted(value, moves)
        return None


class RandomWeights:
    """Matrices with a gain near 1, vectors in [0.5, 1.5] (a variance stays positive); integers as they are.

    A matrix is looked up in one table, at places that each of its axes moves by random steps: so any window of it can
    be made by itself, in any order of its axes.
    """

    _TABLE = 1 << 20

    def __init__(self, plan: ModelPlan, seed: int = 0):
        self.plan, self._seed = plan, seed
        self._table = np.random.default_rng(seed).random(self._TABLE, np.float32) * 2 - 1

    def __call__(self, variable: int, moves: Moves) -> np.ndarray | None:
        stored = underlying_variable(self.plan.graph.variables[variable])
        shape = self.plan.shape(variable)
        if not _is_float(self.plan, variable):
            return permuted(self.plan.weight(variable), moves)
        rng, dtype = np.random.default_rng((self._seed, variable)), stored.dtype.as_numpy_dtype
        if sum(n > 1 for n in shape) < 2 or "variance" in stored.name:
            return permuted(rng.uniform(0.5, 1.5, stored.shape).astype(dtype), moves)
        steps = [rng.integers(0, self._TABLE, size) for size in shape]
        for axis, index in self.plan.along(variable, moves):
            steps[axis] = steps[axis][index]
        scale = np.float32(math.sqrt(3 / math.prod(shape[:-1])))
        values = buffer(shape, dtype)
        for window in windows(shape, elements=1 << 18):
            place = functools.reduce(np.add.outer, [at[cut] for at, cut in zip(steps, window, strict=True)])
            values[window] = self._table[place & (self._TABLE - 1)] * scale
        return values.reshape(stored.shape)


def _is_float(plan: ModelPlan, variable: int) -> bool:
    return bool(underlying_variable(plan.graph.variables[variable]).dtype.is_floating)


def conclusive(change: float, limit: float) -> bool:
    """Whether a run can tell a wrong permutation, which changes outputs by a good part of their size, from rounding."""
    return math.isfinite(change) and limit <= _USELESS


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    """The largest change relative to the largest value; infinite if NaNs came or went, or many integers changed."""
    if a.dtype.kind != "f":
        return 0.0 if (a != b).mean() <= (_DIFFERING if a.size >= 100 else 0.0) else float("inf")
    return difference(a, b)
