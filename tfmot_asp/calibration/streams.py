"""A model run twice at once: as it is, and as pruned so far, step by step, for all batches of data.

Where both streams see the same values nothing is computed twice: up to the first change, and in branches without one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from tfmot_asp.calibration.spill import Shelf
from tfmot_asp.graph.execute import Interpreter
from tfmot_asp.graph.flat_graph import Graph, Op, Tensor


@dataclass(frozen=True, eq=False)
class Pair:
    """A tensor in both streams; one object where they agree."""

    dense: tf.Tensor
    pruned: tf.Tensor

    @property
    def same(self) -> bool:
        """Whether the streams agree because nothing before has changed."""
        return self.dense is self.pruned


class Streams:
    """Both streams of a graph.

    Args:
        graph: of the model.
        values: variables, by position, whose value the dense stream is to have instead of the model's.
    """

    def __init__(self, graph: Graph, values: Mapping[int, Any] | None = None) -> None:
        self.graph = graph
        self.dense = Interpreter(graph, values)
        self.pruned = Interpreter(graph, values)
        self.varying = self.dense.varying
        self._changed: set[int] = set()
        self._behind = _variables_behind(graph, self.varying)

    def fixed_variables(self, op: Op) -> frozenset[int]:
        """The variables behind those inputs of an op that no data takes part in."""
        return frozenset().union(*(self._behind[t] for t in op.inputs if t in self._behind))

    def assign(self, variable: int, value: Any) -> None:
        """Changes a variable in the pruned stream."""
        self.pruned.assign(variable, value)
        self._changed.add(variable)

    def start(self, inputs: Sequence[tf.Tensor]) -> dict[Tensor, Pair]:
        """What is there before the first op: the inputs."""
        return {tensor: Pair(value, value) for tensor, value in zip(self.graph.inputs, inputs, strict=True)}

    def run(
        self, ops: Sequence[Op], state: dict[Tensor, Pair], freed: Mapping[Op | None, Sequence[Tensor]] | None = None
    ) -> None:
        """Runs ops on the state of one batch, and drops from it what is not needed any more."""
        for op in ops:
            varying = {t: state[t] for t in op.inputs if t in self.varying}
            dense = self.dense.run(op, self.dense.inputs_of(op, {t: pair.dense for t, pair in varying.items()}))
            if self._shares(op, varying):
                pruned = dense
            else:
                pruned = self.pruned.run(op, self.pruned.inputs_of(op, {t: p.pruned for t, p in varying.items()}))
            for tensor, one, other in zip(op.outputs, dense, pruned, strict=True):
                state[tensor] = Pair(one, other)
            for tensor in freed.get(op, ()) if freed is not None else ():
                state.pop(tensor, None)

    def value(self, tensor: Tensor, state: Mapping[Tensor, Pair]) -> Pair:
        """A tensor in both streams, also one that does not vary."""
        if tensor in self.varying:
            return state[tensor]
        return Pair(self.dense.constant(tensor), self.pruned.constant(tensor))

    def _shares(self, op: Op, varying: Mapping[Tensor, Pair]) -> bool:
        if op.source.op_def.is_stateful and "Random" in op.type:
            return True  # what is drawn is no effect of pruning
        if not all(pair.same for pair in varying.values()):
            return False
        return not self._changed or not self._changed & self.fixed_variables(op)


class Batches:
    """The states of all batches between two steps, on disk where they are too large to be held."""

    def __init__(self, states: Sequence[dict[Tensor, Pair]], shelf: Shelf) -> None:
        self._states: list[Any] = [shelf.put(state) for state in states]
        self._shelf = shelf

    def __iter__(self) -> Iterator[dict[Tensor, Pair]]:
        """Each batch's state, one at a time, to be changed in place."""
        for number, kept in enumerate(self._states):
            state = self._shelf.take(kept)
            self._states[number] = None
            try:
                yield state
            finally:
                self._states[number] = self._shelf.put(state)


def _variables_behind(graph: Graph, varying: set[Tensor]) -> dict[Tensor, frozenset[int]]:
    behind: dict[Tensor, frozenset[int]] = {}

    def of(tensor: Tensor) -> frozenset[int]:
        if tensor.variable is not None:
            return frozenset((tensor.variable,))
        return behind.get(tensor, frozenset())

    for op in graph.ops:
        found = frozenset().union(*(of(t) for t in op.inputs if t not in varying)) if op.inputs else frozenset()
        for tensor in op.inputs:
            if tensor.variable is not None:
                behind[tensor] = of(tensor)
        for tensor in op.outputs:
            if tensor not in varying and found:
                behind[tensor] = found
    return behind
