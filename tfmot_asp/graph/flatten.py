"""Flattens a concrete function: calls are entered, shapes inferred, and what constants alone decide is computed.

Shapes that a nested function leaves open are inferred again from the caller's. Whatever can be computed from constants
(shape arithmetic, masks, position tables) is a value of the graph, no op.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.framework import function_def_to_graph

from tfmot_asp.graph.budget import GRAPH_NODE, spend
from tfmot_asp.graph.evaluate import infer_shapes, is_costly, run_op, size_of_outputs
from tfmot_asp.graph.flat_graph import Graph, Op, Tensor, variable_key
from tfmot_asp.graph.inputs import shape_list
from tfmot_asp.graph.list_shapes import ListShape, list_shape, taken_out
from tfmot_asp.graph.ops import CHOICES, LOOPS

logger = logging.getLogger(__name__)

_CALLS = frozenset({"PartitionedCall", "StatefulPartitionedCall"})
_BRANCHES = frozenset({"If", "StatelessIf"})
_FOLD_LIMIT = 1 << 22  # elements; a table larger than this is data, not shape arithmetic


def trace_function(
    function: Any, input_shapes: Sequence[Any] | None = None, *, variables: Sequence[tf.Variable] = ()
) -> Graph:
    """Flattens a concrete function.

    Args:
        function: a `ConcreteFunction`, also one restored from a SavedModel.
        input_shapes: one static shape per input, where the function's own are open. Without it open shapes stay open
            (`Tensor.shape` is None).
        variables: what else it may read than the variables that it knows of itself.
    """
    return _Flattener(function, variables).run(input_shapes)


def add_training(graph: Graph, function: Any, variables: Sequence[tf.Variable] = ()) -> Graph:
    """The graph with the ops of a training step added, on inputs of their own; the outputs of both are outputs."""
    step = _Flattener(function, variables, known=graph.variables).run(None)
    for op in step.ops:
        op.training = True
        op.index += len(graph.ops)
    for tensor, known in zip(step.inputs, graph.inputs, strict=False):
        tensor.name = known.name
    outputs = graph.outputs + step.outputs
    return Graph(graph.ops + step.ops, graph.inputs + step.inputs, outputs, step.variables, len(graph.outputs))


def flatten_body(graph: Graph, op: Op, function: str, inputs: Sequence[Tensor], outputs: int | None = None) -> Graph:
    """The flat graph of a function that an op of ``graph`` calls when it likes: a loop's body, a branch.

    Args:
        graph: whose variables it reads.
        op: of that graph.
        function: its name.
        inputs: of the function.
        outputs: how many it has, where the op has as many.
    """
    body = function_graph(op.source.graph, function, len(inputs), outputs)
    flattener = _Flattener(None, known=graph.variables)
    env: dict[int, Tensor] = {id(p): t for p, t in zip(body.inputs, inputs, strict=True)}
    flattener.flatten(body, env, f"{op.name}/")
    results = [env[id(t)] for t in body.outputs]
    return Graph(_live(flattener.ops, results), list(inputs), results, graph.variables)


def trace_loop(graph: Graph, op: Op) -> tuple[Graph, Graph]:
    """The condition and the body of a `While` op of `graph`, as flat graphs with the same inputs.

    An input that no step changes is the op's own input, so that what it comes from can be followed out of the loop. Any
    other is a new tensor that no op makes; its shape is that of the first step, and None if it differs in later ones.
    """
    body_name, cond_name = op.attr("body").name, op.attr("cond").name
    raw = function_graph(op.source.graph, body_name, len(op.inputs), len(op.outputs))
    inputs = [
        given if _passed_on(raw, i) else _loop_variable(given, _list_shape(given, graph.variables))
        for i, given in enumerate(op.inputs)
    ]
    while True:
        body = flatten_body(graph, op, body_name, inputs, len(op.outputs))
        after = [_list_shape(t, graph.variables) for t in body.outputs]
        shapes = [t.shape if t.shape == r.shape else None for t, r in zip(inputs, body.outputs, strict=True)]
        lists = [t.stacked.joined(r) if t.stacked and r else None for t, r in zip(inputs, after, strict=True)]
        changed = [
            i for i, t in enumerate(inputs) if t not in op.inputs and (t.shape, t.stacked) != (shapes[i], lists[i])
        ]
        if not changed:
            break
        for i in changed:
            inputs[i] = _loop_variable(inputs[i], lists[i])
            inputs[i].shape = shapes[i]
    return flatten_body(graph, op, cond_name, inputs), body


def trace_branches(graph: Graph, op: Op) -> list[Graph]:
    """The branches of an `If` or `Case` op of `graph`, as flat graphs on the op's own inputs but the first."""
    if op.type.endswith("If"):
        names = [op.attr("then_branch").name, op.attr("else_branch").name]
    else:
        names = [branch.name for branch in op.attr("branches")]
    return [flatten_body(graph, op, name, op.inputs[1:], len(op.outputs)) for name in names]


def _passed_on(body: Any, index: int) -> bool:
    """Whether a loop's body returns its input of that index as it came."""
    result = body.outputs[index]
    while result.op.type == "Identity":
        result = result.op.inputs[0]
    return result is body.inputs[index]


def _loop_variable(given: Tensor, stacked: ListShape | None) -> Tensor:
    return Tensor(given.shape, given.dtype, variable=given.variable, stacked=stacked)


def _list_shape(tensor: Tensor, variables: Sequence[tf.Variable]) -> ListShape | None:
    return list_shape(tensor, functools.partial(_returned, variables)) if tensor.dtype == tf.variant else None


def _returned(variables: Sequence[tf.Variable], output: Tensor) -> list[Tensor]:
    """What the body of a loop, or each branch of a choice, returns for one of its outputs."""
    op, graph = output.op, Graph([], [], [], list(variables))
    assert op is not None
    bodies = [trace_loop(graph, op)[1]] if op.type in LOOPS else trace_branches(graph, op)
    return [body.outputs[output.index] for body in bodies]


class _Flattener:
    def __init__(self, function: Any, variables: Sequence[tf.Variable] = (), known: Sequence[tf.Variable] = ()):
        self.function = function
        self.ops: list[Op] = []
        self.variables: list[tf.Variable] = list(known)
        # The model's own last: of a distributed variable the function has the replica that it reads, not all.
        known_to_function = function.variables if function is not None else ()
        self._by_handle = {variable_key(v): v for v in (*known_to_function, *variables)}
        self._known: dict[int, int] = {variable_key(v): i for i, v in enumerate(known)}

    def run(self, input_shapes: Sequence[Any] | None) -> Graph:
        graph = self.function.graph
        captured = list(self.function.captured_inputs)
        arguments = list(graph.inputs)[: len(graph.inputs) - len(captured)]
        internal = list(graph.inputs)[len(arguments) :]
        inputs = []
        for i, placeholder in enumerate(arguments):
            shape = placeholder.shape if input_shapes is None else input_shapes[i]
            inputs.append(Tensor(_full(shape), placeholder.dtype, index=i, name=_argument_name(placeholder)))
        env: dict[int, Tensor] = {id(p): t for p, t in zip(arguments, inputs, strict=True)}
        for external, placeholder in zip(captured, internal, strict=True):
            env[id(placeholder)] = self._capture(external)
        self.flatten(graph, env, "")
        outputs = [env[id(t)] for t in graph.outputs]
        return Graph(_live(self.ops, outputs), inputs, outputs, self.variables)

    def _capture(self, external: Any) -> Tensor:
        if external.dtype not in (tf.resource, tf.variant):
            value = external.numpy() if hasattr(external, "numpy") else None
            return Tensor(_full(external.shape), external.dtype, value=value, captured=external)
        tensor = Tensor((), external.dtype, captured=external)
        variable = self._by_handle.get(id(external))
        if variable is not None:
            tensor.variable = self._known.setdefault(id(external), len(self.variables))
            if tensor.variable == len(self.variables):
                self.variables.append(variable)
        return tensor

    def flatten(self, graph: Any, env: dict[int, Tensor], scope: str) -> None:
        for op in graph.get_operations():
            if op.outputs and all(id(t) in env for t in op.outputs):
                continue  # arguments and captures
            inputs = [env[id(t)] for t in op.inputs]
            spend(GRAPH_NODE, "the ops of its functions, once for each call")
            if op.type in _CALLS:
                self._enter(graph, op, op.get_attr("f").name, inputs, env, scope)
                continue
            if op.type in _BRANCHES and inputs[0].value is not None and np.ndim(inputs[0].value) == 0:
                branch = "then_branch" if inputs[0].value else "else_branch"
                self._enter(graph, op, op.get_attr(branch).name, inputs[1:], env, scope)
                continue
            new = Op(len(self.ops), op.type, scope + op.name, inputs, [], op)
            values = self._fold_variable(op, inputs) or _fold(op, inputs)
            shapes = self._shapes(new) if values is None else [np.shape(v) for v in values]
            for i, (output, shape) in enumerate(zip(op.outputs, shapes, strict=True)):
                value = None if values is None else values[i]
                # A resource passes through these unchanged; what other ops do to one pins it.
                passed = op.type in ("Identity", "IdentityN") and inputs[i].is_resource
                variable = inputs[i].variable if passed else None
                tensor = Tensor(shape, output.dtype, new, i, variable, value)
                new.outputs.append(tensor)
                env[id(output)] = tensor
            self.ops.append(new)

    def _fold_variable(self, op: Any, inputs: list[Tensor]) -> list[np.ndarray] | None:
        if op.type == "VariableShape" and inputs[0].variable is not None:
            shape = self.variables[inputs[0].variable].shape
            return [np.asarray(shape.as_list(), op.outputs[0].dtype.as_numpy_dtype)]
        return None

    def _shapes(self, op: Op) -> list[tuple[int, ...] | None]:
        inputs = op.inputs
        if op.type == "ResourceGather" and inputs[0].variable is not None and inputs[1].shape is not None:
            batch = int(op.attr("batch_dims"))
            return [(*inputs[1].shape, *self.variables[inputs[0].variable].shape.as_list()[1 + batch :])]
        shapes = _output_shapes(op.source, inputs)
        if None not in shapes:
            return shapes
        here = Graph([], [], [], self.variables)
        if op.type in LOOPS:
            return [t.shape for t in trace_loop(here, op)[1].inputs]
        if op.type in CHOICES:
            branches = [[t.shape for t in branch.outputs] for branch in trace_branches(here, op)]
            return [of_each[0] if len(set(of_each)) == 1 else None for of_each in zip(*branches, strict=True)]
        if op.type.startswith("TensorList"):
            taken = taken_out(op.type, inputs, functools.partial(_returned, self.variables))
            return [taken if shape is None else shape for shape in shapes]
        return shapes

    def _enter(
        self, graph: Any, op: Any, function: str, inputs: list[Tensor], env: dict[int, Tensor], scope: str
    ) -> None:
        body = function_graph(graph, function, len(inputs), len(op.outputs))
        inner = {id(p): t for p, t in zip(body.inputs, inputs, strict=True)}
        self.flatten(body, inner, f"{scope}{op.name}/")
        for output, result in zip(op.outputs, body.outputs, strict=True):
            env[id(output)] = inner[id(result)]


def _argument_name(placeholder: Any) -> str:
    try:
        return placeholder.op.get_attr("_user_specified_name").decode()
    except ValueError:
        return ""


def _live(ops: list[Op], outputs: list[Tensor]) -> list[Op]:
    """The ops that the outputs or the state of a variable depend on; constants are values, not ops."""
    needed = {id(t) for t in outputs}
    live = []
    for op in reversed(ops):
        may_write = not op.outputs or op.type in (*LOOPS, *CHOICES)
        writes = may_write and op.source.op_def.is_stateful and any(t.is_resource for t in op.inputs)
        if writes or any(id(t) in needed and t.value is None for t in op.outputs):
            live.append(op)
            needed.update(id(t) for t in op.inputs)
    live.reverse()
    for index, op in enumerate(live):
        op.index = index
        for tensor in op.outputs:
            tensor.used = id(tensor) in needed
    return live


def function_graph(graph: Any, name: str, inputs: int, outputs: int | None = None) -> Any:
    """The graph of a function that an op of ``graph`` calls by name.

    A function that was differentiated in this process has had its graph changed: intermediates have become outputs, and
    loops got more of them. It is then read from its definition, which is what runs.

    Args:
        graph: in which the op is.
        name: of the function.
        inputs: how many inputs the op gives it.
        outputs: how many outputs the op has, if it has those of the function.
    """
    outer = graph
    while outer is not None:
        function = outer._get_function(name)
        if function is not None:
            body = getattr(function, "graph", None)
            if body is not None and len(body.inputs) == inputs and outputs in (None, len(body.outputs)):
                return body
            break
        outer = getattr(outer, "outer_graph", None)
    outer = graph
    while outer is not None:
        library = {f.signature.name: f for f in outer.as_graph_def(add_shapes=True).library.function}
        if name in library:
            with graph.as_default():  # in which what it calls in turn is found
                return function_def_to_graph.function_def_to_graph(library[name])
        outer = getattr(outer, "outer_graph", None)
    raise ValueError(f"the graph calls a function {name!r} that it does not hold")


def _full(shape: Any) -> tuple[int, ...] | None:
    dims = shape_list(shape)
    return None if dims is None or any(d is None for d in dims) else tuple(d for d in dims if d is not None)


def _output_shapes(op: Any, inputs: list[Tensor]) -> list[tuple[int, ...] | None]:
    shapes = [_full(t.shape) for t in op.outputs]
    if all(s is not None for s in shapes) or any(t.is_resource for t in inputs):
        return shapes
    # The op sits in a function that was traced for any batch size: infer again, from the shapes of this call.
    given = [tf.TensorSpec(t.shape, t.dtype) if t.value is None else t.value for t in inputs]
    return [_full(shape) for shape in infer_shapes(op, given)]


def _fold(op: Any, inputs: list[Tensor]) -> list[np.ndarray] | None:
    """Values of the op's outputs, where its inputs are constants (or, for `Shape` and its like, have static shapes)."""
    if op.type == "Const":
        if op.outputs[0].dtype == tf.string:
            return None
        stored = op.get_attr("value")  # one value may stand for all
        spend(
            math.prod(d.size for d in stored.tensor_shape.dim) * op.outputs[0].dtype.size, f"its constant {op.name!r}"
        )
        return [tf.make_ndarray(stored)]
    if len(op.outputs) == 0 or any(t.is_resource for t in inputs):
        return None
    if op.type in ("Shape", "Size", "Rank") and inputs[0].shape is not None:
        dims = np.asarray(inputs[0].shape, np.int64)
        dtype = op.outputs[0].dtype.as_numpy_dtype
        value = {"Shape": dims, "Size": np.prod(dims), "Rank": len(dims)}[op.type]
        return [np.asarray(value, dtype)]
    if not inputs or any(t.value is None for t in inputs) or op.op_def.is_stateful or is_costly(op):
        return None
    if any(t.value is not None and t.value.size > _FOLD_LIMIT for t in inputs):
        return None
    return _evaluate(op, [t.value for t in inputs])


def _evaluate(op: Any, values: list[Any]) -> list[np.ndarray] | None:
    """Runs the op eagerly on the CPU; None where that is not possible or the result is large."""
    if any(output.dtype in (tf.string, tf.resource, tf.variant) for output in op.outputs):
        return None
    if any((output.shape.num_elements() or 0) > _FOLD_LIMIT for output in op.outputs):
        return None
    if any(output.shape.num_elements() is None for output in op.outputs) and size_of_outputs(op, values) > _FOLD_LIMIT:
        return None
    try:
        with tf.init_scope(), tf.device("cpu"):
            results = run_op(op, [tf.constant(v, t.dtype) for v, t in zip(values, op.inputs, strict=True)])
        folded = [result.numpy() for result in results]
    except (TypeError, ValueError, NotImplementedError, tf.errors.OpError) as error:
        logger.debug("not folded: %s %s: %s", op.type, op.name, error)
        return None
    spend(sum(value.nbytes for value in folded), f"what {op.name!r} computes from constants")
    return folded
