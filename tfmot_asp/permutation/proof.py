"""Proof by running: the traced function computes the same before and after, tried on copies of the weights.

The function is run on variables of its own, so a failed proof leaves nothing to undo, and state that the function
writes (counters, seeds) is not touched. It runs on two sets of weights:

* random ones, all of a size that matters. A permutation is right for any weights or for none; with the model's own, a
  branch that a tiny or zero scale silences (LayerScale, zero-initialized batch normalization) would prove nothing;
* the model's own, whose change is reported.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tfmot_asp.graph.compare import difference, tolerance
from tfmot_asp.graph.flat_graph import local_variable, variable_key
from tfmot_asp.graph.probes import random_inputs
from tfmot_asp.keras_models.variables import read, underlying_variable
from tfmot_asp.permutation.plan import ModelPlan

logger = logging.getLogger(__name__)

_DIFFERING = 0.01  # share of an integer output's entries: a class may flip where two scores are equal but for rounding
_AMPLIFIED = 100.0
_USELESS = 1e-2

Values = list[np.ndarray]


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
        before: Values,
        reorder: Callable[[int, np.ndarray], np.ndarray],
        outputs: Sequence[np.ndarray | None] = (),
    ) -> tuple[float, float]:
        """The relative change of the outputs, and what rounding alone could cause.

        Args:
            before: a value for each variable of the graph.
            reorder: gives the permuted value of a variable, from its position and value.
            outputs: the order that the last axis of an output has afterwards; it is undone before comparing.

        Returns:
            The largest change of an output relative to its largest value, and the largest that counts as rounding: the
            tolerance of the dtype, or more where the function amplifies a change of its inputs by one rounding step.
        """
        old = self.run(before)
        if self._random:
            again = self.run(before)
            same = [_difference(a, b) <= self.tolerance for a, b in zip(old, again, strict=True)]
        else:
            same = [True] * len(old)
        new = self.run([reorder(i, value) for i, value in enumerate(before)], orders=outputs)
        pairs = [(a, b) for a, b, keep in zip(old, new, same, strict=True) if keep]
        change = max((_difference(a, b) for a, b in pairs), default=0.0)
        if change <= self.tolerance:
            return change, self.tolerance
        nudged = self.run(before, nudge=1.0 + 2.0**-20)
        noise = max((_difference(a, b) for a, b, keep in zip(old, nudged, same, strict=True) if keep), default=0.0)
        return change, max(self.tolerance, _AMPLIFIED * noise)

    def run(self, values: Sequence[np.ndarray], nudge: float = 1.0, orders: Sequence[np.ndarray | None] = ()) -> Values:
        """The outputs for `values` of the variables, on the probe input, with the orders of outputs undone."""
        function, inputs = self.plan.function, self.inputs
        if nudge != 1.0:
            inputs = [t * tf.cast(nudge, t.dtype) if t.dtype.is_floating else t for t in inputs]
        copies = {}
        for variable, value in zip(self.plan.graph.variables, values, strict=True):
            plain = underlying_variable(variable)
            with tf.device(getattr(plain, "device", None)):
                copies[variable_key(variable)] = tf.Variable(value, dtype=plain.dtype, trainable=False)
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


def own_values(plan: ModelPlan) -> Values:
    return [read(v) for v in plan.graph.variables]


def random_values(plan: ModelPlan, seed: int = 0) -> Values:
    """Matrices with a gain near 1, vectors in [0.5, 1.5] (a variance stays positive); integers as they are."""
    rng = np.random.default_rng(seed)
    values = []
    for variable in plan.graph.variables:
        shape = tuple(int(n) for n in variable.shape)
        dtype = underlying_variable(variable).dtype
        if not dtype.is_floating:
            values.append(read(variable))
        elif sum(n > 1 for n in shape) < 2 or "variance" in variable.name:
            values.append(rng.uniform(0.5, 1.5, shape).astype(dtype.as_numpy_dtype))
        else:
            draw = rng.random(shape, np.float32) * 2 - 1
            values.append((draw * math.sqrt(3 / math.prod(shape[:-1]))).astype(dtype.as_numpy_dtype))
    return values


def conclusive(change: float, limit: float) -> bool:
    """Whether a run can tell a wrong permutation, which changes outputs by a good part of their size, from rounding."""
    return math.isfinite(change) and limit <= _USELESS


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    """The largest change relative to the largest value; infinite if NaNs came or went, or many integers changed."""
    if a.dtype.kind != "f":
        return 0.0 if (a != b).mean() <= (_DIFFERING if a.size >= 100 else 0.0) else float("inf")
    return difference(a, b)
