"""In which order the outputs of a model are, where they are free to move with what they carry.

An encoder's residual stream is its output, so with outputs pinned none of the kernels that read the stream can move.
Left free, the stream is one group, and who reads the output undoes its order with one gather, or in the next layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tfmot_asp.permutation.plan import ModelPlan

OUTPUTS = ("pinned", "free")


def output_orders(plan: ModelPlan, orders: Sequence[np.ndarray]) -> tuple[np.ndarray | None, ...]:
    """The order of each output's last axis.

    Args:
        plan: of the model.
        orders: for each group the new order of its channels.

    Returns:
        For each output of the model where its channels come from, ``new[..., i] = old[..., order[i]]``; None if they
        stay in place.
    """
    levels = {group.level for group in plan.plan.groups}
    classes = {level: plan.axes.classes(level).of for level in levels}
    found: list[np.ndarray | None] = []
    for tensor in plan.graph.outputs[: plan.outputs]:
        ids = plan.axes[tensor][-1] if tensor.shape and tensor.value is None else None
        order = np.arange(0 if ids is None else len(ids))
        for group, new in zip(plan.plan.groups, orders, strict=True):
            if ids is None:
                break
            place, of = group.places[0], classes[group.level]
            members = of[plan.axes.variable_axes[place.variable, place.axis][place.positions]]
            channel = np.full(of.max(initial=-1) + 1, -1)
            channel[members] = np.arange(group.size)
            order = order[_order(channel[of[ids]], new)]
        found.append(None if np.array_equal(order, np.arange(len(order))) else order)
    return tuple(found)


def _order(channel: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The order of an axis of which each position carries a channel of a group, -1 for none."""
    result = np.arange(len(channel))
    seen: dict[int, list[int]] = {}
    for position in np.flatnonzero(channel >= 0):  # a channel may be there several times, as in x concatenated with x
        seen.setdefault(int(channel[position]), []).append(int(position))
    for target, places in seen.items():
        result[places] = seen[int(order[target])]
    return result
