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
    classes = plan.axes.classes().of
    channel = np.full(classes.max(initial=-1) + 1, -1)
    group_of = channel.copy()
    for number, group in enumerate(plan.plan.groups):
        place = group.places[0]
        members = classes[plan.axes.variable_axes[place.variable, place.axis][place.positions]]
        channel[members], group_of[members] = np.arange(group.size), number
    found: list[np.ndarray | None] = []
    for tensor in plan.graph.outputs[: plan.outputs]:
        ids = plan.axes[tensor][-1] if tensor.shape and tensor.value is None else None
        found.append(None if ids is None else _order(channel[classes[ids]], group_of[classes[ids]], orders))
    return tuple(found)


def _order(channel: np.ndarray, group_of: np.ndarray, orders: Sequence[np.ndarray]) -> np.ndarray | None:
    """The order of an axis of which each position carries a channel of a group, -1 for none."""
    order = np.arange(len(channel))
    for number in np.unique(group_of[group_of >= 0]):
        positions = np.flatnonzero(group_of == number)
        seen: dict[int, list[int]] = {}
        for position in positions:  # a channel may be there several times, as after a concatenation with itself
            seen.setdefault(int(channel[position]), []).append(int(position))
        for target, places in seen.items():
            sources = seen[int(orders[number][target])]
            order[places] = sources
    return None if np.array_equal(order, np.arange(len(order))) else order
