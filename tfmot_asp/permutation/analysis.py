"""One pass over the ops of a graph: each op's rule ties and pins the elements of its axes."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping

from tfmot_asp.graph.flat_graph import Graph, Op
from tfmot_asp.permutation.axes import Axes, Axis, Nested, Outputs, Runs
from tfmot_asp.permutation.rearrange import Rearrangement, find_rearrangements
from tfmot_asp.permutation.regrouping import resolve
from tfmot_asp.permutation.rules import rule_for
from tfmot_asp.permutation.rules.nesting import nesting_rule

logger = logging.getLogger(__name__)


def analyse(graph: Graph, *, pin_ends: bool = True, free: int = 0, merged: Mapping[int, Runs] | None = None) -> Axes:
    """Runs the rule of every op of `graph` and returns the tied and pinned elements.

    Args:
        graph: the traced model.
        pin_ends: pin the positions of inputs and outputs, as a model demands. Without, ops can be studied alone.
        free: how many of the outputs, from the first, may have the channels on their last axis reordered.
        merged: of which variables some axes are taken as one, see `merged_axes`.
    """
    axes = Axes(graph, merged)
    axes.walk = functools.partial(_walk, axes)
    for tensor in graph.inputs:
        name = f" {tensor.name!r}" if tensor.name else ""
        reason = f"fed by input {tensor.index}{name} of the model"
        axes[tensor] = [
            None if n == 1 else axes.pinned(n, reason) if pin_ends else axes.fresh(n) for n in tensor.shape or ()
        ]
    axes.walk(graph)
    step = len(graph.outputs) if graph.step is None else graph.step
    ends = [*enumerate(graph.outputs[:step]), *enumerate(graph.outputs[step:])]
    for i, tensor in ends if pin_ends else ():
        if tensor.shape is not None and tensor.value is None:
            channels_move = i < free and len(tensor.shape) > 1
            for ids in axes[tensor][:-1] if channels_move else axes[tensor]:
                axes.pin(ids, f"returned as output {i} of the model")
    resolve(axes)
    return axes


def _walk(axes: Axes, graph: Graph) -> None:
    """Runs the rules of the ops of a graph, the inputs of which have axes."""
    rearrangements = find_rearrangements(graph)
    bridged = {inner.index for r in rearrangements.values() for inner in r.inner}
    axes.walked += graph.ops
    for op in graph.ops:
        outputs: Outputs
        if op.index in bridged:
            outputs = [[axes.fresh(n) for n in t.shape or ()] for t in op.outputs]
        elif op.index in rearrangements:
            outputs = [_rearranged(axes, rearrangements[op.index])]
        else:
            outputs = _ruled(op, axes)
        for tensor, result in zip(op.outputs, outputs, strict=True):
            if tensor.shape is not None and not tensor.is_resource:
                axes[tensor] = [None if n == 1 else a for a, n in zip(result, tensor.shape, strict=True)]


def _ruled(op: Op, axes: Axes) -> Outputs:
    """The axes of the op's outputs by its rule. Where there is none, or it fails, everything stays in place."""
    if not all(t.shape is not None or t.is_resource or not t.used for t in (*op.inputs, *op.outputs)):
        return axes.pin_all(op, "a shape that is not known before the model runs")
    rule = rule_for(op.type)
    if rule is None:
        return axes.pin_all(op, "an op that tfmot_asp has no permutation rule for")
    try:
        outputs = _nesting(op, axes) or rule(op, axes)
        _check(op, outputs)
    except Exception as error:  # a rule may be the user's, and one odd op must not stop a whole model
        logger.warning("the permutation rule of %s failed, so what it touches stays in place: %r", op, error)
        return axes.pin_all(op, f"the permutation rule of this op failed: {error}")
    return outputs


def _nesting(op: Op, axes: Axes) -> Outputs | None:
    """The axes of the op's outputs, if one of its inputs is nested and the op keeps it so."""
    rule = nesting_rule(op.type)
    if rule is None:
        return None
    if not any(isinstance(axis, Nested) for t in op.inputs if not t.is_resource for axis in axes.nested(t)):
        return None
    return rule(op, axes)  # type: ignore[return-value]


def _check(op: Op, outputs: Outputs) -> None:
    if len(outputs) != len(op.outputs):
        raise ValueError(f"it returned axes for {len(outputs)} outputs of {len(op.outputs)}")
    for tensor, result in zip(op.outputs, outputs, strict=True):
        if tensor.shape is None or tensor.is_resource:
            continue
        found = tuple("*" if a is None else len(a) for a in result)
        if len(found) != len(tensor.shape) or any(
            a not in ("*", n) for a, n in zip(found, tensor.shape, strict=True) if n != 1
        ):
            raise ValueError(f"it returned axes {found} for a tensor of shape {tensor.shape}")


def _rearranged(axes: Axes, rearrangement: Rearrangement) -> list[Axis]:
    source = axes[rearrangement.source]
    return [None if item is None else axes.pick(source[item[0]], item[1]) for item in rearrangement.axes]
