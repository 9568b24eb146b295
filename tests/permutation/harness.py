"""Proof that a permutation changes nothing, without the search and without the library's own verification.

`check` gives every weight a random value, so that no branch is numerically invisible, moves every channel of every
group by a random order, and compares the outputs of the model itself, called on a batch size that was not traced.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_asp.keras_models.kernels import kernels_of
from tfmot_asp.keras_models.modules import modules_in
from tfmot_asp.keras_models.variables import underlying_variable
from tfmot_asp.permutation.plan import ModelPlan, plan_model
from tfmot_asp.permutation.report import PermutationReport, finish

TOLERANCE = 1e-5
"""Relative to the largest output. float32 keeps 6e-8; reordered sums over some layers lose two digits at most."""

BATCH = 3  # the library traces with 2


train_first = False
"""Whether `check` plans a model, trains it for a step, and wants the same plan again: gradients change the graphs of
called functions."""


class EveryKernel:
    """A policy that prunes whatever is a matrix product, at any size."""

    def __init__(self, skip: Callable[[Any], bool] = lambda layer: False) -> None:
        self.skip = skip

    def why(self, layer: Any) -> str | None:
        if self.skip(layer):
            return f"{layer.name!r} is skipped"
        return None if kernels_of(layer) else "no kernel"


@dataclasses.dataclass(repr=False)
class Outcome:
    plan: ModelPlan
    report: PermutationReport
    change: float
    orders: list[np.ndarray]

    @property
    def groups(self) -> int:
        return len(self.plan.plan.groups)

    @property
    def sizes(self) -> list[int]:
        return sorted(g.size for g in self.plan.plan.groups)

    def reason(self, layer: str) -> str | None:
        return next(entry.reason for entry in self.report.layers if entry.name == layer)

    def status(self, layer: str) -> str:
        return next(entry.status for entry in self.report.layers if entry.name == layer)


def variables_of(model: Any) -> list[Any]:
    weights = getattr(model, "weights", None)
    found = list(weights) if weights is not None else []
    for module in modules_in(model):
        found += [v for v in vars(module).values() if isinstance(v, tf.Variable)]
    found += [v for v in vars(model).values() if isinstance(v, tf.Variable)]
    found += list(model.variables) if hasattr(model, "variables") else []
    unique = {id(underlying_variable(v)): v for v in found}
    return list(unique.values())


def randomise(model: Any, seed: int = 0) -> None:
    """Matrices normal with a gain near 1, vectors in [0.5, 1.5]: a variance stays positive, a scale visible."""
    rng = np.random.default_rng(seed)
    for variable in variables_of(model):
        dtype = str(getattr(variable.dtype, "name", variable.dtype))
        if "float" not in dtype:
            continue
        shape = tuple(int(n) for n in variable.shape)
        if len([n for n in shape if n > 1]) < 2 or "variance" in variable.name:
            value = rng.uniform(0.5, 1.5, shape)
        else:
            value = rng.normal(size=shape) / math.sqrt(math.prod(shape[:-1]))
        variable.assign(tf.cast(tf.constant(value), dtype))


def random_inputs(model: Any, batch: int = BATCH, seed: int = 0) -> Any:
    """Random inputs for a functional or sequential model, in the structure that it takes."""
    rng = np.random.default_rng(seed)

    def one(spec: Any) -> tf.Tensor:
        dtype = tf.as_dtype(spec.dtype)
        shape = [batch, *(int(n) for n in tuple(spec.shape)[1:])]
        if dtype.is_integer:
            return tf.constant(rng.integers(0, 8, shape), dtype)
        return tf.cast(tf.constant(rng.normal(size=shape)), dtype)

    for attribute in ("_nested_inputs", "_inputs_struct"):
        structure = getattr(model, attribute, None)
        if structure is not None:
            return tf.nest.map_structure(one, structure)
    return one(model.inputs[0])


def outputs_of(model: Any, inputs: Any, call: Callable[..., Any] | None = None) -> list[np.ndarray]:
    result = call(inputs) if call is not None else model(inputs)
    return [np.asarray(tf.cast(t, tf.float64)) for t in tf.nest.flatten(result) if t is not None]


def relative_change(before: list[np.ndarray], after: list[np.ndarray]) -> float:
    assert len(before) == len(after) > 0
    worst = 0.0
    for a, b in zip(before, after, strict=True):
        assert np.isfinite(a).all(), "the test model overflows"
        scale = np.abs(a).max(initial=0.0)
        assert scale > 0, "the test model computes nothing"
        worst = max(worst, float(np.abs(a - b).max() / scale))
    return worst


def random_orders(plan: ModelPlan, seed: int = 0) -> list[np.ndarray]:
    """For every group an order in which no channel stays in its place."""
    rng = np.random.default_rng(seed)
    orders = []
    for group in plan.plan.groups:
        cycle = rng.permutation(group.size)
        order = np.empty(group.size, np.int64)
        order[cycle] = np.roll(cycle, 1)
        orders.append(order)
    return orders


def train(model: Any, inputs: Any, call: Callable[..., Any] | None, options: dict[str, Any]) -> ModelPlan:
    """Plans a model, then trains it for a step; returns the plan."""
    plan = plan_model(model, **options)
    variables = [underlying_variable(v) for v in getattr(model, "trainable_variables", ())]

    @tf.function
    def step() -> list[Any]:
        with tf.GradientTape() as tape:
            outputs = [t for t in tf.nest.flatten((call or model)(inputs)) if t is not None and t.dtype.is_floating]
            loss = tf.add_n([tf.reduce_mean(tf.cast(t, tf.float32) ** 2) for t in outputs])
        gradients = tape.gradient(loss, variables)
        return [tf.zeros_like(v) if g is None else g for v, g in zip(variables, gradients, strict=True)]

    for variable, gradient in zip(variables, step(), strict=True):
        variable.assign_sub(tf.cast(1e-3, variable.dtype) * tf.cast(tf.convert_to_tensor(gradient), variable.dtype))
    return plan


def check(
    model: Any,
    *,
    inputs: Any = None,
    permuted: int | None = None,
    fixed: int | None = None,
    groups: int | None = None,
    policy: Any = None,
    m_by_n: tuple[int, int] = (2, 4),
    tolerance: float = TOLERANCE,
    input_shapes: Any = None,
    call: Callable[..., Any] | None = None,
    seed: int = 0,
    randomly: bool = True,
) -> Outcome:
    """Moves every channel that the plan says may move and asserts that the model computes what it did.

    Args:
      model: the model; its weights are overwritten.
      inputs: what to call it on; random by default.
      permuted: how many kernels must be permuted wholly, so that freedom is not lost without notice.
      fixed: how many must not be, in whole or in part.
      groups: how many permutation groups there must be.
      policy: EveryKernel by default.
      m_by_n: the pattern.
      tolerance: largest change of an output relative to its largest value.
      input_shapes: as for `permute`.
      call: how to run the model on `inputs`.
      seed: of weights, inputs and orders.
      randomly: overwrite the weights.
    """
    if randomly:
        randomise(model, seed)
    inputs = random_inputs(model, seed=seed) if inputs is None else inputs
    options = {"policy": policy or EveryKernel(), "input_shapes": input_shapes, "sparsity_m_by_n": m_by_n}
    untrained = train(model, inputs, call, options) if train_first else None
    before = outputs_of(model, inputs, call)
    plan = plan_model(model, **options)
    if untrained is not None:
        assert plan.fingerprint() == untrained.fingerprint()
        assert [r and r.why for r in plan.plan.reasons] == [r and r.why for r in untrained.plan.reasons]
    assert not [r for r in plan.axes.reasons if "failed" in r.why], "a rule failed"
    orders = random_orders(plan, seed)
    report = finish(plan, model, orders, verify=False)
    change = relative_change(before, outputs_of(model, inputs, call))
    assert change <= tolerance, f"the outputs changed by {change:.2e}\n{report}"
    whole = sum(entry.status == "permuted" for entry in report.layers)
    rest = sum(entry.status in ("fixed", "partly permuted") for entry in report.layers)
    assert permuted is None or whole == permuted, f"{whole} kernels permuted, expected {permuted}\n{report}"
    assert fixed is None or rest == fixed, f"{rest} kernels not wholly permuted, expected {fixed}\n{report}"
    assert groups is None or len(plan.plan.groups) == groups, f"{len(plan.plan.groups)} groups\n{report}"
    return Outcome(plan, report, change, orders)
