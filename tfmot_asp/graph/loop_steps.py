"""How often a loop runs."""

from __future__ import annotations

import math

from tfmot_asp.graph.flat_graph import Graph, Op, Tensor


def number_of_steps(op: Op, condition: Graph, body: Graph) -> int | None:
    """How often a loop runs, if each of its conditions compares a counter with a constant."""
    known: list[int] = []
    stack = list(condition.outputs)
    while stack:
        test = stack.pop()
        maker = test.op
        if test.value is not None:
            known += [] if test.value else [0]
        elif maker is None:
            return None
        elif maker.type in ("Identity", "LogicalAnd"):
            stack += maker.inputs
        elif maker.type in ("Less", "LessEqual", "Greater", "GreaterEqual"):
            steps = _steps_until(op, maker, body)
            if steps is None:
                return None
            known.append(steps)
        else:
            return None
    return min(known) if known else None


def _steps_until(op: Op, comparison: Op, body: Graph) -> int | None:
    counter, limit = comparison.inputs
    upwards = comparison.type.startswith("Less")
    if counter.value is not None:
        counter, limit, upwards = limit, counter, not upwards
    if limit.value is None or limit.value.ndim or counter not in body.inputs:
        return None
    index = body.inputs.index(counter)
    start, step = op.inputs[index].value, _increment(body.outputs[index], counter)
    if start is None or step is None or (step <= 0) == upwards or not step:
        return None
    distance = float(limit.value - start) / step
    inclusive = comparison.type.endswith("Equal")
    return max(0, math.floor(distance) + 1 if inclusive else math.ceil(distance))


def _increment(result: Tensor, counter: Tensor) -> float | None:
    while result.op is not None and result.op.type == "Identity":
        result = result.op.inputs[0]
    if result.op is None or result.op.type not in ("Add", "AddV2"):
        return None
    first, second = result.op.inputs
    added = second if first is counter else first if second is counter else None
    return None if added is None or added.value is None or added.value.ndim else float(added.value)
