"""Trace a model into one flat graph of ops with static shapes, each weight known by identity.

The graph is read from a concrete function of the model in inference mode. Nested functions are entered, so that a rule
never meets a call; shapes that the nested function leaves open are inferred again from the caller's; whatever can be
computed from constants alone (shape arithmetic, masks, position tables) is computed here. Nothing in this module knows
what an op does to the channels of a tensor: that is :mod:`tfmot_asp.permutation.rules`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context, execute
from tensorflow.python.framework import function_def_to_graph

from tfmot_asp.graph.inputs import describe, input_specs, shape_list
from tfmot_asp.keras_models.variables import underlying_variable

logger = logging.getLogger(__name__)

_CALLS = frozenset({"PartitionedCall", "StatefulPartitionedCall"})
_BRANCHES = frozenset({"If", "StatelessIf"})
_FOLD_LIMIT = 1 << 22  # elements; a table larger than this is data, not shape arithmetic
_UNSET = object()


@dataclasses.dataclass(eq=False, repr=False)
class Tensor:
    """A tensor of the flat graph.

    Attributes:
      shape: static shape, or None where even inference leaves a dimension open.
      dtype: TensorFlow dtype.
      op: the op that makes it; None for a function input or a captured value.
      index: which of the op's outputs it is.
      variable: for a resource, position of the variable in :attr:`Graph.variables`.
      value: the value, where it is a constant.
      used: whether an op or an output of the graph reads it.
      name: of a function input, as the caller spelled it.
    """

    shape: tuple[int, ...] | None
    dtype: tf.DType
    op: Op | None = None
    index: int = 0
    variable: int | None = None
    value: np.ndarray | None = None
    used: bool = True
    name: str = ""

    @property
    def is_resource(self) -> bool:
        return self.dtype in (tf.resource, tf.variant)

    def __repr__(self) -> str:  # not of its op, whose inputs have ops, ...
        return f"Tensor({self.name or self.op or 'constant'}, {self.shape}, {self.dtype.name})"


@dataclasses.dataclass(eq=False, repr=False)
class Op:
    """An op of the flat graph: type, scoped name, inputs and outputs, and the attributes of the original.

    `training` marks ops that only a training step runs: they are traced for the variables that inference leaves out.
    """

    index: int
    type: str
    name: str
    inputs: list[Tensor]
    outputs: list[Tensor]
    source: tf.Operation
    training: bool = False

    def attr(self, name: str, default: Any = _UNSET) -> Any:
        try:
            return self.source.get_attr(name)
        except ValueError:
            if default is _UNSET:
                raise
            return default

    def __repr__(self) -> str:
        return f"Op({self})"

    def __str__(self) -> str:
        return f"{self.type} {self.name!r}"


@dataclasses.dataclass(eq=False, repr=False)
class Graph:
    """A flat graph: ops in execution order, inputs, outputs, and the variables that the ops read, by identity."""

    ops: list[Op]
    inputs: list[Tensor]
    outputs: list[Tensor]
    variables: list[tf.Variable]

    def __repr__(self) -> str:
        return f"Graph({len(self.ops)} ops, {len(self.variables)} variables)"

    def variable_index(self, variable: Any) -> int | None:
        """Position of `variable` in :attr:`variables`, or None if the function does not use it."""
        key = variable_key(variable)
        return next((i for i, v in enumerate(self.variables) if variable_key(v) == key), None)


def variable_key(variable: Any) -> Any:
    """A hashable key of the storage behind a variable: equal for all Python wrappers of one resource."""
    return _handle_key(local_variable(variable).handle)


def local_variable(variable: Any) -> Any:
    """The plain `tf.Variable` that holds the numbers here: of a distributed one, the replica that a trace reads."""
    variable = underlying_variable(variable)
    return variable._primary if isinstance(variable, tf.distribute.DistributedValues) else variable


def _handle_key(handle: Any) -> Any:
    return id(handle)


def trace(model: Any, input_shapes: Any = None) -> Graph:
    """Traces `model` in inference mode at a fixed batch size.

    Args:
      model: a tf_keras or Keras 3 model, a layer, or any `tf.Module` with `__call__`.
      input_shapes: shapes of the inputs, for models that do not know their own: one shape, or a list, tuple or dict of
        them as the model is called. A leading None is the batch. `tf.TensorSpec`s are taken too.

    Returns:
      The flat graph. The model's state is not touched.

    Raises:
      TypeError: if `model` cannot be called.
      ValueError: if a shape is unknown and not given, the model is not built, or it cannot be traced.
    """
    specs = input_specs(model, input_shapes)
    return trace_function(concrete_function(model, specs), variables=variables_of(model))


def concrete_function(model: Any, specs: tuple[tuple, dict], training: bool = False) -> Any:
    """A concrete function of `model` for `specs`, the (args, kwargs) of :func:`input_specs`.

    It returns the model's outputs and, since a permutation must leave them alone as well, the losses that layers add.
    """
    if not callable(model):
        raise TypeError(f"expected a Keras model or a callable tf.Module, got {type(model).__name__}")
    args, kwargs = specs
    mode = {"training": training} if _takes_training(model) else {}

    def run(*a: Any, **k: Any) -> Any:
        return model(*a, **k, **mode), list(getattr(model, "losses", ()))

    with _losses_kept(model):
        try:
            # Plain tracing first: it is faster, and enough for all that Keras ships.
            return tf.function(run, autograph=False).get_concrete_function(*args, **kwargs)
        except Exception as plain:
            try:
                return tf.function(run, autograph=True).get_concrete_function(*args, **kwargs)
            except Exception:
                raise ValueError(
                    f"{describe(model)} could not be traced as one graph on inputs {_shapes_text(args, kwargs)}: "
                    f"{type(plain).__name__}: {plain}. If it needs other inputs, pass input_shapes=... as it is called"
                ) from plain


@contextlib.contextmanager
def _losses_kept(model: Any) -> Iterator[None]:
    """Puts back the lists in which Keras layers collect the losses of their last call."""
    layers = list(getattr(model, "submodules", ())) if isinstance(model, tf.Module) else []
    layers += [model, *(model._flatten_layers() if hasattr(model, "_flatten_layers") else ())]
    kept = [
        (layer, name, list(getattr(layer, name)))
        for layer in layers
        for name in ("_losses", "_eager_losses")
        if isinstance(getattr(layer, name, None), list)
    ]
    try:
        yield
    finally:
        for layer, name, losses in kept:
            getattr(layer, name)[:] = losses


def _shapes_text(args: tuple, kwargs: dict) -> str:
    def text(spec: Any) -> Any:
        return tuple(spec.shape) if hasattr(spec, "shape") else spec

    shapes = [tf.nest.map_structure(text, a) for a in args]
    return ", ".join([str(s) for s in shapes] + [f"{k}={tf.nest.map_structure(text, v)}" for k, v in kwargs.items()])


def variables_of(model: Any) -> list[tf.Variable]:
    """All variables of a model, unwrapped, each once."""
    found: dict[Any, tf.Variable] = {}
    for variable in (*getattr(model, "variables", ()), *getattr(model, "weights", ())):
        variable = underlying_variable(variable)
        if hasattr(local_variable(variable), "handle"):
            found.setdefault(variable_key(variable), variable)
    return list(found.values())


def _takes_training(model: Any) -> bool:
    if hasattr(model, "trainable_weights") and hasattr(model, "call"):
        expects = getattr(model, "_expects_training_arg", None)
        if expects is None:
            expects = getattr(model, "_call_has_training_arg", None)
        if expects is not None:
            return bool(expects)
    function = getattr(model, "call", None) or model.__call__
    try:
        return "training" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


# The flat graph


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
    return Graph(graph.ops + step.ops, graph.inputs + step.inputs, graph.outputs + step.outputs, step.variables)


def trace_called(graph: Graph, op: Op, function: str, inputs: Sequence[Tensor]) -> Graph:
    """The flat graph of a function that an op of `graph` calls when it likes (a loop's body, a branch), on `inputs`."""
    body = _function_graph(op.source.graph, function)
    flattener = _Flattener(None, known=graph.variables)
    env: dict[int, Tensor] = {id(p): t for p, t in zip(body.inputs, inputs, strict=True)}
    flattener._body(body, env, f"{op.name}/")
    outputs = [env[id(t)] for t in body.outputs]
    return Graph(_live(flattener.ops, outputs), list(inputs), outputs, graph.variables)


def trace_loop(graph: Graph, op: Op) -> tuple[Graph, Graph]:
    """The condition and the body of a `While` op of `graph`, as flat graphs with the same inputs.

    An input that no step changes is the op's own input, so that what it comes from can be followed out of the loop. Any
    other is a new tensor that no op makes; its shape is that of the first step, and None if it differs in later ones.
    """
    body_name, cond_name = op.attr("body").name, op.attr("cond").name
    raw = _function_graph(op.source.graph, body_name)
    inputs = [
        given if _passed_on(raw, i) else Tensor(given.shape, given.dtype, variable=given.variable)
        for i, given in enumerate(op.inputs)
    ]
    body = trace_called(graph, op, body_name, inputs)
    while changed := [i for i, t in enumerate(inputs) if t.shape is not None and t.shape != body.outputs[i].shape]:
        for i in changed:
            inputs[i] = Tensor(None, inputs[i].dtype, variable=inputs[i].variable)
        body = trace_called(graph, op, body_name, inputs)
    return trace_called(graph, op, cond_name, inputs), body


def _passed_on(body: Any, index: int) -> bool:
    """Whether a loop's body returns its input of that index as it came."""
    result = body.outputs[index]
    while result.op.type == "Identity":
        result = result.op.inputs[0]
    return result is body.inputs[index]


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
            inputs.append(Tensor(_full(shape), placeholder.dtype, name=_argument_name(placeholder)))
        env: dict[int, Tensor] = {id(p): t for p, t in zip(arguments, inputs, strict=True)}
        for external, placeholder in zip(captured, internal, strict=True):
            env[id(placeholder)] = self._capture(external)
        self._body(graph, env, "")
        outputs = [env[id(t)] for t in graph.outputs]
        return Graph(_live(self.ops, outputs), inputs, outputs, self.variables)

    def _capture(self, external: Any) -> Tensor:
        if external.dtype not in (tf.resource, tf.variant):
            value = external.numpy() if hasattr(external, "numpy") else None
            return Tensor(_full(external.shape), external.dtype, value=value)
        tensor = Tensor((), external.dtype)
        variable = self._by_handle.get(_handle_key(external))
        if variable is not None:
            tensor.variable = self._known.setdefault(_handle_key(external), len(self.variables))
            if tensor.variable == len(self.variables):
                self.variables.append(variable)
        return tensor

    def _body(self, graph: Any, env: dict[int, Tensor], scope: str) -> None:
        for op in graph.get_operations():
            if op.outputs and all(id(t) in env for t in op.outputs):
                continue  # arguments and captures
            inputs = [env[id(t)] for t in op.inputs]
            if op.type in _CALLS:
                self._enter(graph, op, op.get_attr("f").name, inputs, env, scope)
                continue
            if op.type in _BRANCHES and inputs[0].value is not None and np.ndim(inputs[0].value) == 0:
                branch = "then_branch" if inputs[0].value else "else_branch"
                self._enter(graph, op, op.get_attr(branch).name, inputs[1:], env, scope)
                continue
            new = Op(len(self.ops), op.type, scope + op.name, inputs, [], op)
            values = self._fold_variable(op, inputs) or _fold(op, inputs)
            shapes = self._shapes(op, inputs) if values is None else [np.shape(v) for v in values]
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

    def _shapes(self, op: Any, inputs: list[Tensor]) -> list[tuple[int, ...] | None]:
        if op.type == "ResourceGather" and inputs[0].variable is not None and inputs[1].shape is not None:
            batch = int(op.get_attr("batch_dims"))
            return [(*inputs[1].shape, *self.variables[inputs[0].variable].shape.as_list()[1 + batch :])]
        return _output_shapes(op, inputs)

    def _enter(
        self, graph: Any, op: Any, function: str, inputs: list[Tensor], env: dict[int, Tensor], scope: str
    ) -> None:
        body = _function_graph(graph, function)
        inner = {id(p): t for p, t in zip(body.inputs, inputs, strict=True)}
        self._body(body, inner, f"{scope}{op.name}/")
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
        writes = op.source.op_def.is_stateful and any(t.is_resource for t in op.inputs) and not op.outputs
        if writes or any(id(t) in needed and t.value is None for t in op.outputs):
            live.append(op)
            needed.update(id(t) for t in op.inputs)
    live.reverse()
    for index, op in enumerate(live):
        op.index = index
        for tensor in op.outputs:
            tensor.used = id(tensor) in needed
    return live


def _function_graph(graph: Any, name: str) -> Any:
    outer = graph
    while outer is not None:
        function = outer._get_function(name)
        if function is not None:
            body = getattr(function, "graph", None)
            if body is not None:
                return body
            break
        outer = getattr(outer, "outer_graph", None)
    library = {f.signature.name: f for f in graph.as_graph_def(add_shapes=True).library.function}
    return function_def_to_graph.function_def_to_graph(library[name])


def _full(shape: Any) -> tuple[int, ...] | None:
    dims = shape_list(shape)
    return None if dims is None or any(d is None for d in dims) else tuple(d for d in dims if d is not None)


def _output_shapes(op: Any, inputs: list[Tensor]) -> list[tuple[int, ...] | None]:
    shapes = [_full(t.shape) for t in op.outputs]
    if all(s is not None for s in shapes) or any(t.is_resource for t in inputs):
        return shapes
    # The op sits in a function that was traced for any batch size: infer again, from the shapes of this call.
    scratch = tf.Graph()
    try:
        with scratch.as_default():
            copies = [
                tf.constant(t.value, t.dtype) if t.value is not None else tf.compat.v1.placeholder(t.dtype, t.shape)
                for t in inputs
            ]
            node = op.node_def
            attrs = {k: v for k, v in node.attr.items() if not k.startswith("_")}
            new = scratch.create_op(op.type, copies, [t.dtype for t in op.outputs], attrs=attrs, op_def=op.op_def)
            return [_full(t.shape) for t in new.outputs]
    except (ValueError, TypeError, tf.errors.OpError) as error:
        logger.debug("no shape inferred for %s %s: %s", op.type, op.name, error)
        return shapes


def _fold(op: Any, inputs: list[Tensor]) -> list[np.ndarray] | None:
    """Values of the op's outputs, where its inputs are constants (or, for `Shape` and its like, have static shapes)."""
    if op.type == "Const":
        return [tf.make_ndarray(op.get_attr("value"))] if op.outputs[0].dtype != tf.string else None
    if len(op.outputs) == 0 or any(t.is_resource for t in inputs):
        return None
    if op.type in ("Shape", "Size", "Rank") and inputs[0].shape is not None:
        dims = np.asarray(inputs[0].shape, np.int64)
        dtype = op.outputs[0].dtype.as_numpy_dtype
        value = {"Shape": dims, "Size": np.prod(dims), "Rank": len(dims)}[op.type]
        return [np.asarray(value, dtype)]
    if not inputs or any(t.value is None for t in inputs) or op.op_def.is_stateful:
        return None
    if any(t.value is not None and t.value.size > _FOLD_LIMIT for t in inputs):
        return None
    return _evaluate(op, [t.value for t in inputs])


def _evaluate(op: Any, values: list[Any]) -> list[np.ndarray] | None:
    """Runs the op eagerly on the CPU; None where that is not possible or the result is large."""
    for output in op.outputs:
        size = output.shape.num_elements()
        if output.dtype in (tf.string, tf.resource, tf.variant) or (size is not None and size > _FOLD_LIMIT):
            return None
    attrs: list[Any] = []
    for attribute in op.op_def.attr:
        attrs += [attribute.name, _plain(op.get_attr(attribute.name))]
    try:
        with tf.init_scope(), tf.device("cpu"):
            inputs = [tf.constant(v, t.dtype) for v, t in zip(values, op.inputs, strict=True)]
            results = execute.execute(op.type, len(op.outputs), inputs, tuple(attrs), context.context())
        return [r.numpy() for r in results]
    except (TypeError, ValueError, NotImplementedError, tf.errors.OpError) as error:
        logger.debug("not folded: %s %s: %s", op.type, op.name, error)
        return None


def _plain(attribute: Any) -> Any:
    """An attribute as the eager runtime takes it: types as their enum."""
    if isinstance(attribute, tf.DType):
        return attribute.as_datatype_enum
    if isinstance(attribute, list):
        return [_plain(a) for a in attribute]
    return attribute
