"""Reorder the weights of a model by a plan: proven on copies first, then all or nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tfmot_asp.keras_models.slots import optimizers_of, slots_of
from tfmot_asp.keras_models.variables import assign, underlying_variable, view
from tfmot_asp.permutation.free_outputs import output_orders
from tfmot_asp.permutation.plan import ModelPlan
from tfmot_asp.permutation.reorder import Moves, inverse, permuted

logger = logging.getLogger(__name__)


class PermutationError(RuntimeError):
    """A permutation would change what the model computes. The model is as it was."""


def apply(
    plan: ModelPlan, orders: Sequence[np.ndarray], model: Any = None, *, verify: bool = True, optimizer: Any = None
) -> float | None:
    """Reorders the weights, and the optimizer's slots with them.

    Args:
        plan: of the model whose variables are to be reordered.
        orders: for each group the new order of its channels: place i takes what channel `orders[g][i]` had.
        model: whose optimizer, if it has one, keeps slots for the variables, as may those of models that hold it.
        optimizer: another that keeps slots for them, or several.
        verify: first run the model's function on copies of the weights, old and new, and refuse if an output changes.

    Returns:
        The largest change of an output relative to its largest value; None if not verified.

    Raises:
        ValueError: if the orders do not fit the plan, or an optimizer slot cannot be reordered.
        PermutationError: if verification failed. The error names the group.
        BaseException: whatever interrupts the writing, after everything has been put back.
    """
    variables = list(_all_variables(plan, orders, optimizers_of(model, optimizer)))
    change = _verified(plan, orders) if verify else None
    _write(variables)
    return change


def _write(variables: Sequence[tuple[Any, Moves]]) -> None:
    """Reorders variables one by one; whatever stops it, those that were are put back before it is raised on."""
    begun: list[tuple[Any, Moves, np.ndarray | None]] = []  # the value before: of the last, which may be half done
    try:
        for variable, moves in variables:
            old = view(variable)
            new = permuted(old, moves)
            begun.append((variable, moves, old))
            del old
            assign(variable, new)
            begun[-1] = (variable, moves, None)
    except BaseException:
        _put_back(begun)
        raise


def _put_back(begun: list[tuple[Any, Moves, np.ndarray | None]]) -> None:
    """Undoes `_write`, to the end, however often Ctrl-C is pressed meanwhile."""
    targets: dict[int, np.ndarray] = {}  # what is written: made once, as the variable may have been written already
    while begun:
        try:
            last = len(begun) - 1
            if last not in targets:
                targets.clear()
                variable, moves, old = begun[last]
                targets[last] = permuted(view(variable), inverse(moves)) if old is None else permuted(old, [])
            assign(begun[last][0], targets[last])
            begun.pop()
        except KeyboardInterrupt:
            continue


def variable_moves(plan: ModelPlan, orders: Sequence[np.ndarray]) -> dict[int, Moves]:
    """For each variable that changes, how. The keys are positions in the graph's variables.

    Groups are reordered one after the other: channels within their block first, then blocks as wholes.
    """
    _check_orders(plan, orders)
    moves: dict[int, dict[tuple[int, ...], np.ndarray]] = {}
    for group, order in zip(plan.plan.groups, orders, strict=True):
        if np.array_equal(order, np.arange(group.size)):
            continue
        for place in group.places:
            size = len(plan.axes.variable_axes[place.variable, place.axis])
            axes = plan.axes.runs(place.variable)[place.axis]
            index = moves.setdefault(place.variable, {}).setdefault(axes, np.arange(size))
            index[place.positions] = index[place.positions[order]]  # after what groups before it have moved
    return {variable: sorted(by_axis.items()) for variable, by_axis in sorted(moves.items())}


def _check_orders(plan: ModelPlan, orders: Sequence[np.ndarray]) -> None:
    groups = plan.plan.groups
    if len(orders) != len(groups):
        raise ValueError(f"expected one order for each of the {len(groups)} groups, got {len(orders)}")
    for group, order in zip(groups, orders, strict=True):
        if not np.array_equal(np.sort(order), np.arange(group.size)):
            raise ValueError(
                f"the order of group {group.name!r} must hold each of 0 to {group.size - 1} once, got {order}"
            )


def _all_variables(
    plan: ModelPlan, orders: Sequence[np.ndarray], optimizers: Sequence[Any]
) -> Iterator[tuple[Any, Moves]]:
    moved = [(underlying_variable(plan.graph.variables[i]), own) for i, own in variable_moves(plan, orders).items()]
    # A trace may read the replicas of a distributed variable one by one: they are written with it.
    replicas = {id(replica.handle) for variable, _ in moved for replica in getattr(variable, "values", ())[1:]}
    for variable, moves in moved:
        if not hasattr(variable, "values") and id(variable.handle) in replicas:
            continue
        yield variable, moves
        for slot, axes in slots_of(optimizers, variable, [run for run, _ in moves]):
            yield slot, [(tuple(axes[a] for a in run), order) for run, order in moves if axes.keys() >= set(run)]


# Verification


def _verified(plan: ModelPlan, orders: Sequence[np.ndarray]) -> float:
    from tfmot_asp.permutation import proof

    verifier = proof.Verifier(plan)
    moves, outputs = variable_moves(plan, orders), output_orders(plan, orders)
    own = proof.OwnWeights(plan)
    for weights in (proof.RandomWeights(plan), own):
        change, limit = verifier.change(weights, moves, outputs)
        if change <= limit or (weights is not own and not proof.conclusive(change, limit)):
            continue
        culprit = _culprit(plan, orders, verifier, weights)
        raise PermutationError(
            f"the permutation was not applied, because it would change what the model computes: {culprit}, the "
            f"outputs changed by {change:.2g} of their size. The model is as it was. This is a defect of tfmot_asp: "
            "please report the model"
        )
    if change > verifier.tolerance:
        logger.warning(
            "outputs changed by %.2g of their size, which for this model is rounding: a change of its input by one "
            "millionth does as much. With weights that do not amplify rounding, nothing changed",
            change,
        )
    return change


def _culprit(plan: ModelPlan, orders: Sequence[np.ndarray], verifier: Any, weights: Any) -> str:
    """The group that alone changes the outputs most."""
    worst = (0.0, "no group alone")
    for i, group in enumerate(plan.plan.groups):
        alone = [np.asarray(orders[i]) if g is group else np.arange(g.size) for g in plan.plan.groups]
        change, _ = verifier.change(weights, variable_moves(plan, alone), output_orders(plan, alone))
        worst = max(worst, (change, f"group {group.name!r} alone changes them by {change:.2g}"))
    return worst[1]
