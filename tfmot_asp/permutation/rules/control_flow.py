"""Loops and branches: what they call is a graph of its own, whose ops have the same rules.

A loop computes the same in another order of channels if its body does: its first step takes what is reordered and
hands on what is reordered, and so on. So each loop variable has axes that are one for what the loop is given, what
each step takes and returns, and what the loop returns. The condition must not see the difference, which its rules say.
"""

from __future__ import annotations

import tensorflow as tf

from tfmot_asp.graph.flat_graph import Graph, Op, Tensor
from tfmot_asp.graph.flatten import trace_branches, trace_loop
from tfmot_asp.graph.ops import CHOICES, LOOPS
from tfmot_asp.permutation.axes import Axes, Axis, Outputs
from tfmot_asp.permutation.rules.registry import register_rule


@register_rule(*LOOPS)
def loop(op: Op, axes: Axes) -> Outputs:
    """Ties what goes in, what each step takes and returns, and what comes out; body and condition by their own rules.

    What no step changes is in the body the tensor that it is outside. Pins all if a resource is exchanged on the way,
    and variables of the loop whose shape differs between steps.
    """
    condition, body = trace_loop(axes.graph, op)
    if any(inside is not given and given.dtype == tf.resource for given, inside in _pairs(op, body)):
        return axes.pin_all(op, "a loop that exchanges variables")
    for given, inside in _pairs(op, body):
        if inside is given:
            continue
        if inside.dtype == tf.variant:
            axes.same_list(given, inside)
        elif inside.shape is None:
            for axis in axes[given]:
                axes.pin(axis, "of another shape in each step of a loop", op)
        else:
            # Equal slices at the start, such as a state of zeros, need not be equal after the first step.
            axes[inside] = [
                None if n == 1 else axes.fresh(n) if axis is None else axis
                for axis, n in zip(axes[given], inside.shape, strict=True)
            ]
    for graph in (condition, body):
        _walk(axes, op, graph)
    for axis in _known(axes, condition.outputs[0]):
        axes.pin(axis, "decides how often a loop runs", op)
    results: list[list[Axis]] = []
    for (_, inside), returned, output in zip(_pairs(op, body), body.outputs, op.outputs, strict=True):
        results.append([])
        if output.dtype == tf.variant:
            axes.same_list(inside, returned)
            axes.same_list(inside, output)
        elif inside.shape is None or returned.shape is None or output.shape is None:
            for axis in _known(axes, returned):
                axes.pin(axis, "of another shape in each step of a loop", op)
            results[-1] = [axes.pinned(n, "of another shape in each step of a loop", op) for n in output.shape or ()]
        elif not output.is_resource:
            results[-1] = [axes.tie(a, b) for a, b in zip(axes[inside], axes[returned], strict=True)]
    return results


@register_rule(*CHOICES)
def branches(op: Op, axes: Axes) -> Outputs:
    """Ties what each branch returns, by their own rules. Pins what is chosen by, and outputs of several shapes."""
    for axis in axes[op.inputs[0]]:
        axes.pin(axis, "decides which branch runs", op)
    bodies = trace_branches(axes.graph, op)
    for body in bodies:
        _walk(axes, op, body)
    results: list[list[Axis]] = []
    for output, *returned in zip(op.outputs, *(body.outputs for body in bodies), strict=True):
        results.append([])
        if output.dtype == tf.variant:
            for tensor in returned:
                axes.same_list(output, tensor)
        elif output.shape is None or any(tensor.shape != output.shape for tensor in returned):
            reason = "of another shape in each branch"
            for tensor in returned:
                for axis in _known(axes, tensor):
                    axes.pin(axis, reason, op)
            results[-1] = [axes.pinned(n, reason, op) for n in output.shape or ()]
        elif not output.is_resource:
            results[-1] = [None] * len(output.shape)
            for tensor in returned:
                results[-1] = [axes.tie(a, b) for a, b in zip(results[-1], axes[tensor], strict=True)]
    return results


def _pairs(op: Op, body: Graph) -> list[tuple[Tensor, Tensor]]:
    return list(zip(op.inputs, body.inputs, strict=True))


def _walk(axes: Axes, op: Op, graph: Graph) -> None:
    for inner in graph.ops:
        inner.training = op.training
    axes.walk(graph)


def _known(axes: Axes, tensor: Tensor) -> tuple[Axis, ...]:
    """The axes of a tensor; none if its shape is not known."""
    return axes[tensor] if tensor.shape is not None and not tensor.is_resource else ()
