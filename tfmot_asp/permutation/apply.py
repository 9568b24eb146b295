"""Reorder the weights of a model by a plan: all or nothing, verified by running the model before and after."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tfmot_asp import layouts
from tfmot_asp.permutation.groups import Group
from tfmot_asp.permutation.plan import ModelPlan, read

logger = logging.getLogger(__name__)

TOLERANCE = {"float64": 1e-9, "float32": 1e-4, "float16": 5e-2, "bfloat16": 2e-1}
"""Largest change of an output, relative to its largest value, that reordering a sum in this dtype can explain."""


class PermutationError(RuntimeError):
    """A permutation changed what the model computes. The model has been put back as it was."""


def apply(plan: ModelPlan, orders: Sequence[np.ndarray], model: Any = None, *, verify: bool = True) -> float | None:
    """Reorders the weights, and the optimizer's slots with them.

    Args:
      plan: of the model whose variables are to be reordered.
      orders: for each group the new order of its channels: place i takes what channel `orders[g][i]` had.
      model: whose optimizer, if it has one, keeps slots for the variables.
      verify: run the model on a random input before and after, and put everything back if an output changed.

    Returns:
      The largest change of an output relative to its largest value; None if not verified.

    Raises:
      PermutationError: if verification failed. The error names the group.
      BaseException: whatever interrupts the writing, after everything has been put back.
    """
    variables = list(_all_variables(plan, orders, model))
    old = [read(v) for v, _ in variables]
    new = [_reorder(value, moves) for value, (_, moves) in zip(old, variables, strict=True)]
    probe = _probe(plan) if verify else []
    before = _run(plan, probe) if verify else []
    written = 0
    try:
        for (variable, _), value in zip(variables, new, strict=True):
            written += 1  # counted first: an interrupted assignment is put back too
            variable.assign(value)
        if not verify:
            return None
        change = _change(before, _run(plan, probe))
        if change > _tolerance(plan):
            raise PermutationError(f"outputs changed by {change:.2g} of their size")
        return change
    except BaseException as error:
        for (variable, _), value in zip(variables[:written], old, strict=False):
            variable.assign(value)
        if isinstance(error, PermutationError):
            culprit = _culprit(plan, orders, variables, old, probe, before)
            raise PermutationError(
                f"the permutation was undone, because it would change what the model computes: {error} ({culprit}). "
                "The model is as it was. This is a defect of tfmot_asp: please report the model"
            ) from None
        raise


Moves = list[tuple[int, np.ndarray]]
"""For a variable: axis, and for each position on it the position that its new content has now."""


def variable_moves(plan: ModelPlan, orders: Sequence[np.ndarray]) -> dict[int, Moves]:
    """For each variable that changes, how. The keys are positions in the graph's variables."""
    moves: dict[int, dict[int, np.ndarray]] = {}
    for group, order in zip(plan.plan.groups, orders, strict=True):
        if np.array_equal(order, np.arange(group.size)):
            continue
        for slot in group.slots:
            size = int(plan.graph.variables[slot.variable].shape[slot.axis])
            index = moves.setdefault(slot.variable, {}).setdefault(slot.axis, np.arange(size))
            index[slot.positions] = slot.positions[order]
    return {variable: sorted(by_axis.items()) for variable, by_axis in sorted(moves.items())}


def _reorder(value: np.ndarray, moves: Moves) -> np.ndarray:
    for axis, index in moves:
        value = value.take(index, axis)
    return value


def _all_variables(plan: ModelPlan, orders: Sequence[np.ndarray], model: Any) -> Iterator[tuple[Any, Moves]]:
    for index, moves in variable_moves(plan, orders).items():
        variable = layouts.underlying_variable(plan.graph.variables[index])
        yield variable, moves
        for slot in _optimizer_slots(model, variable):
            yield slot, moves


# Optimizer slots


def _optimizer_slots(model: Any, variable: Any) -> Iterator[Any]:
    """The variables that the optimizer of `model` keeps for `variable` and that have its shape."""
    optimizer: Any = getattr(model, "optimizer", None)
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    if optimizer is None:
        return
    for slot in _slots_of(optimizer, variable):
        slot = layouts.underlying_variable(slot)
        if tuple(slot.shape) == tuple(variable.shape):
            yield slot
        elif int(np.prod(tuple(slot.shape))) > 1:
            raise ValueError(
                f"optimizer {type(optimizer).__name__} keeps a slot of shape {tuple(slot.shape)} for {variable.name!r} "
                f"of shape {tuple(variable.shape)}, which cannot be reordered along with it: permute before training, "
                "or compile the model anew"
            )


def _slots_of(optimizer: Any, variable: Any) -> list[Any]:
    if hasattr(optimizer, "get_slot_names"):  # tf_keras legacy
        by_name = getattr(optimizer, "_slots", {})
        key = getattr(variable, "_unique_id", None)
        return list(by_name.get(key, {}).values())
    position = _position(optimizer, variable)
    if position is None:
        return []
    count = len(_tracked(optimizer))
    slots = []
    for name, value in vars(optimizer).items():
        if name in ("_trainable_variables", "_variables", "_tracked", "_overwrite_variable_with_gradient"):
            continue
        if isinstance(value, (list, tuple)) and len(value) == count and all(hasattr(v, "assign") for v in value):
            slots.append(value[position])
    return slots


def _tracked(optimizer: Any) -> Sequence[Any]:
    index = getattr(optimizer, "_index_dict", None)  # tf_keras: unique id -> position
    return list(index) if index is not None else getattr(optimizer, "_trainable_variables", [])


def _position(optimizer: Any, variable: Any) -> int | None:
    index = getattr(optimizer, "_index_dict", None)
    if index is not None:
        return index.get(getattr(variable, "_unique_id", None))
    for i, tracked in enumerate(getattr(optimizer, "_trainable_variables", [])):
        if layouts.underlying_variable(tracked) is variable:
            return i
    return None


# Verification


def _probe(plan: ModelPlan) -> list[Any]:
    """A fixed random input: uniform in [0, 1) for floats, 0 or 1 for integers (a valid index anywhere)."""
    import tensorflow as tf

    rng = np.random.default_rng(0)
    values = []
    for tensor in plan.graph.inputs:
        shape = tensor.shape or ()
        if tensor.dtype.is_floating or tensor.dtype.is_complex:
            values.append(tf.cast(tf.constant(rng.random(shape, np.float32)), tensor.dtype))
        elif tensor.dtype == tf.string:
            values.append(tf.fill(shape, ""))
        else:
            values.append(tf.cast(tf.constant(rng.integers(0, 2, shape)), tensor.dtype))
    return values


def _run(plan: ModelPlan, probe: list[Any]) -> list[np.ndarray]:
    import tensorflow as tf

    signature = plan.function.structured_input_signature
    values = iter(probe)
    leaves = [next(values) if isinstance(leaf, tf.TypeSpec) else leaf for leaf in tf.nest.flatten(signature)]
    args, kwargs = tf.nest.pack_sequence_as(signature, leaves)
    flat = [o for o in tf.nest.flatten(plan.function(*args, **kwargs)) if tf.is_tensor(o)]
    return [tf.cast(o, tf.float64).numpy() for o in flat if o.dtype.is_floating]


def _change(before: list[np.ndarray], after: list[np.ndarray]) -> float:
    """The largest change of an output relative to its largest finite value; infinite if NaNs came or went."""
    change = 0.0
    for a, b in zip(before, after, strict=True):
        finite = np.isfinite(a)
        if not np.array_equal(finite, np.isfinite(b)):
            return float("inf")
        if finite.any():
            scale = np.abs(a[finite]).max()
            difference = np.abs(a[finite] - b[finite]).max()
            change = max(change, float(difference / scale) if scale > 0 else (0.0 if difference == 0 else np.inf))
    return change


def _tolerance(plan: ModelPlan) -> float:
    """By the coarsest floating dtype that the graph computes in."""
    names = {t.dtype.name for op in plan.graph.ops for t in op.outputs if t.dtype.is_floating}
    return max((TOLERANCE.get(name, TOLERANCE["bfloat16"]) for name in names), default=TOLERANCE["float32"])


def _culprit(
    plan: ModelPlan,
    orders: Sequence[np.ndarray],
    variables: list[tuple[Any, Moves]],
    old: list[np.ndarray],
    probe: list[Any],
    before: list[np.ndarray],
) -> str:
    """Which group alone changes the outputs. The model is left as it was."""
    original = {id(v): value for (v, _), value in zip(variables, old, strict=True)}
    worst: tuple[float, Group] | None = None
    for i, group in enumerate(plan.plan.groups):
        alone = [np.arange(g.size) for g in plan.plan.groups]
        alone[i] = np.asarray(orders[i])
        touched = list(_all_variables(plan, alone, None))
        try:
            for variable, moves in touched:
                variable.assign(_reorder(original[id(variable)], moves))
            change = _change(before, _run(plan, probe))
        finally:
            for variable, _ in touched:
                variable.assign(original[id(variable)])
        if worst is None or change > worst[0]:
            worst = change, group
    if worst is None:
        return "no group"
    return f"group {worst[1].name!r} alone changes them by {worst[0]:.2g}"
