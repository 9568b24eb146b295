"""In which order to run the ops of a graph, so that everything that reads a pruned kernel runs after it is pruned.

A *change* gives variables new values from what reaches their ops: a kernel that is pruned, a batch normalization whose
statistics move. The ops that read these variables wait for it; the ops that it needs to see its data come first. Each
op runs once, whatever the number of changes, so the work of a pass grows with the model and not with its square.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from tfmot_asp.graph.execute import last_uses
from tfmot_asp.graph.flat_graph import Graph, Op, Tensor


@dataclass(frozen=True, eq=False)
class Change:
    """Something that gives variables new values once its tensors are there.

    Attributes:
        what: whose values change; the schedule does not look at it.
        variables: positions in the graph's variables.
        sites: for each place that it looks at the tensors that it needs there.
    """

    what: Any
    variables: tuple[int, ...]
    sites: tuple[tuple[Tensor, ...], ...]


@dataclass(frozen=True, eq=False)
class Step:
    """Ops to run, and then a change.

    Attributes:
        ops: in order.
        change: what to do then; None at the end.
        sites: which of the change's sites are ready. Not all are where a layer's output comes back to it.
        freed: for each op the tensors that nothing needs after it; under None those that the change was the last to
            need.
    """

    ops: tuple[Op, ...]
    change: Change | None
    sites: tuple[int, ...] = ()
    freed: dict[Op | None, list[Tensor]] = field(default_factory=dict)


def schedule(
    graph: Graph,
    changes: Sequence[Change],
    varying: Collection[Tensor],
    fixed_variables: Callable[[Op], frozenset[int]],
    outputs: Sequence[Tensor],
) -> list[Step]:
    """Plans a pass.

    Args:
        graph: of the model.
        changes: in the order in which they come where the data leaves a choice.
        varying: the tensors that depend on the inputs; the others take no step.
        fixed_variables: for an op the variables behind those of its inputs that do not vary.
        outputs: what must be there at the end.

    Returns:
        One step for each change, and a last one. Each varying op that a change or an output needs is in one of them.
    """
    bit = {variable: 1 << i for i, change in enumerate(changes) for variable in change.variables}
    behind: dict[Tensor, int] = {}
    for op in graph.ops:
        waits = 0
        for variable in fixed_variables(op):
            waits |= bit.get(variable, 0)
        for tensor in op.inputs:
            waits |= behind.get(tensor, 0)
        for tensor in op.outputs:
            if tensor in varying:
                behind[tensor] = waits

    def needs(site: tuple[Tensor, ...]) -> int:
        result = 0
        for tensor in site:
            result |= behind.get(tensor, 0)
        return result

    order = _order(changes, [[needs(site) for site in change.sites] for change in changes])
    done: set[Op] = set()
    plans: list[tuple[list[Op], Change | None, tuple[int, ...]]] = []
    for number, ready in order:
        change = changes[number]
        plans.append((_missing([t for s in ready for t in change.sites[s]], done, varying), change, ready))
    plans.append((_missing(outputs, done, varying), None, ()))
    return _with_frees(plans, varying, outputs)


def _order(changes: Sequence[Change], needed: list[list[int]]) -> list[tuple[int, tuple[int, ...]]]:
    """The order of the changes, each with the sites that are ready then."""
    order: list[tuple[int, tuple[int, ...]]] = []
    waiting = list(range(len(changes)))
    done = 0
    while waiting:

        def ready(number: int) -> tuple[int, ...]:
            return tuple(i for i, need in enumerate(needed[number]) if not need & ~done)  # noqa: B023 (called at once)

        # Sites that the change's own result comes back to can never be ready before it.
        own = {number: sum(bool(need & 1 << number) for need in needed[number]) for number in waiting}
        chosen = next((n for n in waiting if ready(n) and len(ready(n)) + own[n] == len(needed[n])), None)
        if chosen is None:
            chosen = next((n for n in waiting if ready(n)), waiting[0])
        order.append((chosen, ready(chosen)))
        waiting.remove(chosen)
        done |= 1 << chosen
    return order


def _missing(targets: Sequence[Tensor], done: set[Op], varying: Collection[Tensor]) -> list[Op]:
    """The varying ops that ``targets`` need and that are not done yet, in order; marks them done."""
    found: list[Op] = []
    stack = [t.op for t in targets if t.op is not None and t in varying]
    while stack:
        op = stack.pop()
        if op in done:
            continue
        done.add(op)
        found.append(op)
        stack.extend(t.op for t in op.inputs if t.op is not None and t in varying)
    return sorted(found, key=lambda op: op.index)


def _with_frees(
    plans: Sequence[tuple[list[Op], Change | None, tuple[int, ...]]],
    varying: Collection[Tensor],
    outputs: Sequence[Tensor],
) -> list[Step]:
    later = set(outputs)
    steps: list[Step] = []
    for ops, change, ready in reversed(plans):
        freed: dict[Op | None, list[Tensor]] = {}
        looked_at = {t for s in ready for t in change.sites[s]} if change is not None else set()
        if ends := [t for t in looked_at if t not in later and t in varying]:
            freed[None] = ends
        later |= looked_at
        for op, tensors in last_uses(ops, later).items():
            freed[op] = [t for t in tensors if t in varying]
        later.update(t for op in ops for t in op.inputs)
        steps.append(Step(tuple(ops), change, ready, freed))
    return steps[::-1]
