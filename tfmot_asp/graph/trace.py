"""Trace a model into one flat graph of ops with static shapes, each weight known by identity.

The graph is read from a concrete function of the model in inference mode, flattened: a rule never meets a call. Nothing
in this room knows what an op does to the channels of a tensor: that is :mod:`tfmot_asp.permutation.rules`.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from tfmot_asp.graph.flat_graph import Graph, local_variable, variable_key
from tfmot_asp.graph.flatten import trace_function
from tfmot_asp.graph.inputs import describe, input_specs
from tfmot_asp.keras_models.modules import all_variables, modules_in
from tfmot_asp.keras_models.variables import underlying_variable
from tfmot_asp.keras_models.wrappers import parts_of
from tfmot_asp.types import InputShapes


def trace(model: Any, input_shapes: InputShapes | None = None) -> Graph:
    """Traces `model` in inference mode at a fixed batch size.

    Args:
        model: a tf_keras or Keras 3 model, a layer, or any `tf.Module` with `__call__`.
        input_shapes: shapes of the inputs, for models that do not know their own: one shape, or a list, tuple or dict
            of them as the model is called. A leading None is the batch. With a type where it needs one:
            `((None, 128), "int32")`, or a `tf.TensorSpec`. A dict may have the names of arguments as its keys.

    Returns:
        The flat graph. The model's state is not touched.

    Raises:
        TypeError: if `model` cannot be called.
        ValueError: if a shape is unknown and not given, the model is not built, or it cannot be traced.
    """
    specs = input_specs(model, input_shapes)
    return trace_function(concrete_function(model, specs), variables=variables_of(model))


def concrete_function(
    model: Any, specs: tuple[tuple, dict], training: bool = False, collect: Callable[[], Any] | None = None
) -> Any:
    """A concrete function of `model` for `specs`, the (args, kwargs) of :func:`input_specs`.

    It returns the model's outputs and, since a permutation must leave them alone as well, the losses that layers add;
    with `collect` also what that returns at the end of the trace.
    """
    if not callable(model):
        raise TypeError(f"expected a Keras model or a callable tf.Module, got {type(model).__name__}")
    args, kwargs = specs
    mode = {"training": training} if _takes_training(model) else {}

    def run(*a: Any, **k: Any) -> Any:
        results = model(*a, **k, **mode), list(getattr(model, "losses", ()))
        return results if collect is None else (*results, collect())

    with _losses_kept(model), _without_cudnn(model):
        try:
            # Plain tracing first: it is faster, and enough for all that Keras ships.
            return tf.function(run, autograph=False).get_concrete_function(*args, **kwargs)
        except Exception as plain:
            try:
                return tf.function(run, autograph=True).get_concrete_function(*args, **kwargs)
            except Exception as converted:
                advice = "If it needs other inputs, pass input_shapes=... as it is called"
                if isinstance(converted, tf.errors.OperatorNotAllowedInGraphError):
                    advice = (
                        "It decides in Python by the values of tensors, which no graph can hold: use tf.cond or "
                        "keras.ops.cond there, or take the models that it is made of one by one"
                    )
                raise ValueError(
                    f"{describe(model)} could not be traced as one graph on inputs {_shapes_text(args, kwargs)}: "
                    f"{type(plain).__name__}: {plain}. {advice}"
                ) from plain


@contextlib.contextmanager
def _losses_kept(model: Any) -> Iterator[None]:
    """Puts back the lists in which Keras layers collect the losses of their last call."""
    layers = [model, *modules_in(model), *parts_of(model)]
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


@contextlib.contextmanager
def _without_cudnn(model: Any) -> Iterator[None]:
    """Has recurrent layers of Keras 3 trace loops, as they do without a GPU, so that what is found is the same."""
    layers = [layer for layer in (*modules_in(model), *parts_of(model)) if getattr(layer, "use_cudnn", False)]
    before = [layer.use_cudnn for layer in layers]
    try:
        for layer in layers:
            layer.use_cudnn = False
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer.use_cudnn = value


def _shapes_text(args: tuple, kwargs: dict) -> str:
    def text(spec: Any) -> Any:
        return tuple(spec.shape) if hasattr(spec, "shape") else spec

    shapes = [tf.nest.map_structure(text, a) for a in args]
    return ", ".join([str(s) for s in shapes] + [f"{k}={tf.nest.map_structure(text, v)}" for k, v in kwargs.items()])


def variables_of(model: Any) -> list[tf.Variable]:
    """All variables of a model, unwrapped, each once."""
    found: dict[Any, tf.Variable] = {}
    for variable in all_variables(model):
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
