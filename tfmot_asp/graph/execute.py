"""Runs a flat graph op by op, eagerly, with variable values of one's own: nothing that the model holds is written.

A traced graph needs no Keras: whatever the model is made of, it is a list of ops. Running the list op by op lets a
caller stop anywhere, keep what it needs and free the rest, and give variables other values than the model's.

What no input takes part in (weights, and what is computed from weights alone) is computed once, not for each batch.
Writes to variables are left out, since a batch's outputs are what counts: a stateful RNN starts each batch from the
state that the model has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfmot_asp.graph.evaluate import attributes_of, run_op
from tfmot_asp.graph.flat_graph import Graph, Op, Tensor, local_variable
from tfmot_asp.graph.ops import READS
from tfmot_asp.graph.products import depends_on


class Interpreter:
    """Computes tensors of a flat graph.

    Args:
        graph: of ``tfmot_asp.graph.trace``, its shapes open or static.
        values: of variables, by their position in ``graph.variables``, where they are not to be the model's own.

    Raises:
        ValueError: if the graph reads a variable after writing it: the writes are left out.

    Example:
        >>> interpreter = Interpreter(trace(model))
        >>> interpreter.outputs([images])
    """

    def __init__(self, graph: Graph, values: Mapping[int, Any] | None = None) -> None:
        self.graph = graph
        self.varying = depends_on(graph, graph.inputs)
        self._own: dict[int, tf.Tensor] = {}
        self._copies: dict[int, tf.Variable] = {}
        self._constants: dict[Tensor, tf.Tensor] = {}
        self._attributes: dict[Op, tuple[Any, ...]] = {}
        _check_no_read_after_write(graph)
        for variable, value in (values or {}).items():
            self.assign(variable, value)

    def assign(self, variable: int, value: Any) -> None:
        """Gives a variable of the graph another value here; the model's own stays."""
        stored = local_variable(self.graph.variables[variable])
        self._own[variable] = tf.convert_to_tensor(value, stored.dtype)
        if variable in self._copies:
            self._copies[variable].assign(self._own[variable])
        self._constants.clear()

    def value(self, variable: int) -> tf.Tensor:
        """The value of a variable here."""
        own = self._own.get(variable)
        return own if own is not None else tf.convert_to_tensor(local_variable(self.graph.variables[variable]))

    def run(self, op: Op, inputs: Sequence[Any]) -> list[tf.Tensor]:
        """The outputs of one op on given inputs."""
        attributes = self._attributes.get(op)
        if attributes is None:
            attributes = self._attributes[op] = attributes_of(op.source)
        return run_op(op.source, inputs, attributes)

    def inputs_of(self, op: Op, varying: Mapping[Tensor, Any]) -> list[Any]:
        """The inputs of an op: those that vary from ``varying``, the others computed here."""
        return [varying[tensor] if tensor in self.varying else self._fixed(tensor, op) for tensor in op.inputs]

    def constant(self, target: Tensor) -> tf.Tensor:
        """A tensor that no input takes part in."""
        stack = [target]
        while stack:  # no recursion: chains of ops can be long
            tensor = stack[-1]
            op = tensor.op
            if tensor in self._constants:
                stack.pop()
            elif tensor.value is not None:
                self._constants[tensor] = tf.constant(tensor.value, tensor.dtype)
            elif op is not None and op.type == "Const":  # of strings, which a trace does not fold
                self._constants[tensor] = tf.constant(tf.make_ndarray(op.attr("value")))
            elif op is None:
                if tensor.captured is None:
                    raise ValueError(f"the value of {tensor!r} is not known")
                self._constants[tensor] = tensor.captured
            elif op.type == "ReadVariableOp" and op.inputs[0].variable is not None:
                self._constants[tensor] = self.value(op.inputs[0].variable)
            else:
                missing = [t for t in op.inputs if t not in self._constants and t.variable is None]
                if missing:
                    stack.extend(missing)
                    continue
                results = self.run(op, [self._fixed(t, op) for t in op.inputs])
                self._constants.update(zip(op.outputs, results, strict=True))
        return self._constants[target]

    def outputs(self, inputs: Sequence[Any]) -> list[tf.Tensor]:
        """The outputs of the graph on one batch.

        Args:
            inputs: a value for each input of the graph.
        """
        values: dict[Tensor, Any] = dict(zip(self.graph.inputs, inputs, strict=True))
        last = last_uses(self.graph.ops, self.graph.outputs)
        for op in self.graph.ops:
            if op.outputs and any(tensor in self.varying for tensor in op.outputs):
                values.update(zip(op.outputs, self.run(op, self.inputs_of(op, values)), strict=True))
                for tensor in last.get(op, ()):
                    values.pop(tensor, None)
        return [values[t] if t in self.varying else self.constant(t) for t in self.graph.outputs]

    def _fixed(self, tensor: Tensor, reader: Op) -> Any:
        if tensor.variable is None:
            return self.constant(tensor)
        variable = tensor.variable
        if reader.type in READS and variable not in self._own:
            return local_variable(self.graph.variables[variable]).handle
        if variable not in self._copies:  # the op may write to it
            self._copies[variable] = tf.Variable(self.value(variable), trainable=False)
        return self._copies[variable].handle


def last_uses(ops: Iterable[Op], kept: Iterable[Tensor]) -> dict[Op, list[Tensor]]:
    """For each op of a sequence the tensors that no later op of it reads; those of ``kept`` are never among them."""
    seen = set(kept)
    last: dict[Op, list[Tensor]] = {}
    for op in reversed(list(ops)):
        ends = [t for t in dict.fromkeys((*op.inputs, *op.outputs)) if t not in seen]
        seen.update(ends)
        if ends:
            last[op] = ends
    return last


def _check_no_read_after_write(graph: Graph) -> None:
    written: set[int] = set()
    for op in graph.ops:
        touched = {t.variable for t in op.inputs if t.variable is not None}
        if op.outputs and touched & written:
            name = graph.variables[min(touched & written)].name
            raise ValueError(f"{op} reads {name!r} after the model has written it, in inference: not supported")
        if not op.outputs:
            written |= touched
