"""What a model is called with: its own record of its inputs, or the shapes that the user gives, as static specs."""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.util import nest

from tfmot_asp.types import InputShapes

BATCH_SIZE = 2
"""The batch size of the traced function: not 1, so that the batch axis is never mistaken for one that broadcasts."""


# What stands for axes that a model leaves open, in examples: rows of text or a signal, the sides of an image or volume.
_TYPICAL = {2: 128, 3: 128, 4: 224, 5: 64}


def input_specs(
    model: Any, input_shapes: InputShapes | None = None, batch_size: int = BATCH_SIZE, open_size: int | None = None
) -> tuple[tuple, dict]:
    """The `(args, kwargs)` of `tf.TensorSpec`s, fully static, that `model` is called with. See :func:`trace`.

    Args:
        model: whose inputs they are.
        input_shapes: as the user gives them.
        batch_size: of open batch axes.
        open_size: of the other axes that the model leaves open; None to refuse these.
    """
    if input_shapes is not None:
        return _given_inputs(model, input_shapes, batch_size)
    known = known_inputs(model)
    if known is None:
        raise ValueError(
            f"{describe(model)} does not know the shapes of its inputs: "
            "call it once on a sample batch, or pass input_shapes=(None, ...)"
        )
    args, kwargs = known

    def static(spec: Any) -> Any:
        if not hasattr(spec, "shape"):
            return spec
        dims = shape_list(spec.shape)
        if dims is None or (open_size is None and any(d is None for d in dims[1:])):
            raise ValueError(
                f"{describe(model)} leaves the shape of input {_input_name(spec)!r} open ({spec.shape}): "
                f"pass input_shapes with a typical size, for example input_shapes={example_shapes(model)}"
            )
        sizes = [batch_size, *[open_size] * (len(dims) - 1)]
        full = [given if d is None else d for given, d in zip(sizes, dims, strict=True)]
        return tf.TensorSpec(full, _dtype(spec), name=_input_name(spec))

    # Positions of the call's arguments are kept; None and Python values among them pass through.
    return tuple(tf.nest.map_structure(static, args)), tf.nest.map_structure(static, kwargs)


def place_name(whole: Any, path: str) -> str:
    """What a part of something is called: ``place_name("cache", "0/key")`` is ``"cache_0_key"``."""
    return "_".join([str(whole), *filter(None, path.split("/"))])


def has_open_batch(specs: Sequence[tf.TensorSpec]) -> bool:
    """Whether the first axis of all inputs is open; numbers have none."""
    ranked = [spec for spec in specs if spec.shape.rank != 0]
    return bool(ranked) and all(spec.shape.rank and spec.shape[0] is None for spec in ranked)


def leaves_sizes_open(model: Any) -> bool:
    """Whether a model knows its inputs, but for the sizes of some axes other than the batch."""
    if any(
        isinstance(getattr(t, "type_spec", None), tf.RaggedTensorSpec) for t in getattr(model, "inputs", None) or ()
    ):
        return False  # rows of several lengths, of which no one size is an example
    shapes = [shape_list(t.shape) for t in tf.nest.flatten(known_inputs(model)) if hasattr(t, "shape")]
    return None not in shapes and any(d is None for dims in shapes if dims for d in dims[1:])


def example_shapes(model: Any) -> Any:
    """What could be passed as `input_shapes`: the model's own names and structure, typical sizes for open axes."""

    def example(spec: Any) -> Any:
        dims = shape_list(spec.shape) if hasattr(spec, "shape") else None
        if dims is None:
            return (None, 224, 224, 3)
        return tuple(d if d is not None or not i else _TYPICAL.get(len(dims), 128) for i, d in enumerate(dims))

    args, _ = known_inputs(model) or ((), {})
    shapes = [tf.nest.map_structure(example, a) for a in args]
    return shapes[0] if len(shapes) == 1 else shapes


def input_names(model: Any, specs: tuple[tuple, dict]) -> list[str]:
    """What the user calls each tensor of `specs`: by its Keras Input, its key in a dict, or its argument of `call`."""
    args, kwargs = specs
    if getattr(model, "inputs", None):  # functional or sequential
        names = [_input_name(t) or "" for t in tf.nest.flatten(known_inputs(model))]
        if len(names) == len(tf.nest.flatten(specs)):
            return names
    parameters = _parameters(model)
    parameters += [f"argument {i}" for i in range(len(parameters), len(args))]
    return [
        f"{argument}[{path}]" if path.isdigit() else path or argument
        for argument, structure in [*zip(parameters, args, strict=False), *sorted(kwargs.items())]
        for path, spec in nest.flatten_with_joined_string_paths(structure)
        if isinstance(spec, tf.TensorSpec)
    ]


def known_inputs(model: Any) -> tuple[tuple, dict] | None:
    """The `(args, kwargs)` that a model knows that it is called with, as specs with open axes; None if it does not."""
    structure = None
    if hasattr(model, "_nested_inputs") and getattr(model, "_is_graph_network", False):  # tf_keras functional
        structure = model._nested_inputs
    elif type(model).__module__.startswith("keras") or hasattr(model, "_inputs_struct"):  # Keras 3 functional
        structure = getattr(model, "_inputs_struct", None)
        if structure is None and getattr(model, "_functional", None) is not None:
            structure = getattr(model._functional, "_inputs_struct", None)
    if structure is None and getattr(model, "inputs", None):
        inputs = list(model.inputs)
        structure = inputs[0] if len(inputs) == 1 else inputs
    if structure is not None:
        return (tf.nest.map_structure(lambda t: tf.TensorSpec(t.shape, _dtype(t), name=_input_name(t)), structure),), {}
    save_spec = getattr(model, "save_spec", None)  # tf_keras subclassed, once called
    if callable(save_spec):
        spec = save_spec(dynamic_batch=True)
        if spec is not None:
            args, kwargs = spec
            return tuple(args), {k: v for k, v in dict(kwargs).items() if k != "training"}
    shapes = getattr(model, "_build_shapes_dict", None)  # Keras 3 subclassed, once built
    if shapes:
        return tuple(_unbatched(s, _compute_dtype(model)) for s in shapes.values()), {}
    signature = getattr(type(model).__call__, "input_signature", None)  # a tf.Module's tf.function
    return (tuple(signature), {}) if signature else None


def _unbatched(shapes: Any, dtype: str) -> Any:
    if _is_shape(shapes):
        return tf.TensorSpec([None, *list(shapes)[1:]], dtype)
    if isinstance(shapes, Mapping):
        return {key: _unbatched(s, dtype) for key, s in shapes.items()}
    return [_unbatched(s, dtype) for s in shapes]


def _given_inputs(model: Any, shapes: Any, batch_size: int) -> tuple[tuple, dict]:
    """The arguments for `input_shapes`: one structure, or one for each argument if `call` takes several."""
    known = known_inputs(model)
    _check_batch(shapes, known)
    one = known[0][0] if known and known[0] else None
    parameters = _parameters(model)
    if isinstance(shapes, Mapping) and not isinstance(one, Mapping) and shapes and set(shapes) <= set(parameters):
        dtypes = dict(zip(parameters, known[0], strict=False)) if known else {}
        specs = {
            name: _named(_from_shapes(shapes[name], dtypes.get(name), batch_size), name)
            for name in parameters
            if name in shapes
        }
        leading = list(itertools.takewhile(specs.__contains__, parameters))
        return tuple(specs.pop(name) for name in leading), specs
    if _is_list_of_shapes(shapes) and not isinstance(one, (list, tuple)) and required_arguments(model) > 1:
        several = known[0] if known and len(known[0]) == len(shapes) else [None] * len(shapes)
        return tuple(_from_shapes(s, k, batch_size) for s, k in zip(shapes, several, strict=True)), {}
    return (_from_shapes(shapes, one, batch_size),), {}


def _check_batch(shape: Any, known: tuple[tuple, dict] | None) -> None:
    """Refuses the shape of a single sample, which Keras does in many lines."""
    leaves = tf.nest.flatten(known) if known else []
    if len(leaves) != 1 or not _is_shape(shape):
        return
    dims = shape_list(getattr(leaves[0], "shape", None))
    if dims and dims[0] is None and len(dims) == len(shape) + 1 and leaves[0].shape[1:].is_compatible_with(shape):
        batched = (1, *shape)
        raise ValueError(f"input_shapes={tuple(shape)} lacks the batch, which comes first: input_shapes={batched}")


def _named(structure: Any, argument: str) -> Any:
    """The specs of an argument, named by it and by their places in it."""

    def named(path: str, spec: tf.TensorSpec) -> tf.TensorSpec:
        return tf.TensorSpec(spec.shape, spec.dtype, name=spec.name or place_name(argument, path))

    return nest.map_structure_with_paths(named, structure)


def _is_list_of_shapes(shapes: Any) -> bool:
    return isinstance(shapes, (list, tuple)) and len(shapes) > 1 and not _is_shape(shapes)


def _parameters(model: Any) -> list[str]:
    """The names of a subclassed model's arguments; none of a functional one, which takes one structure."""
    if getattr(model, "inputs", None):
        return []
    try:
        return list(inspect.signature(getattr(model, "call", model.__call__)).parameters)
    except (TypeError, ValueError):
        return []


def required_arguments(model: Any) -> int:
    """How many arguments the model must be called with."""
    if getattr(model, "_is_graph_network", False):
        return 1
    try:
        parameters = inspect.signature(getattr(model, "call", model.__call__)).parameters.values()
    except (TypeError, ValueError):
        return 1
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.default is p.empty and p.kind in positional for p in parameters)


def _from_shapes(shapes: Any, known: Any, batch_size: int) -> Any:
    shapes, dtype, name = _shape_dtype_name(shapes)
    if dtype is not None:
        return tf.TensorSpec(_static(shapes, batch_size), dtype, name=name)
    if isinstance(shapes, tf.TensorShape) or _is_shape(shapes):
        leaves = tf.nest.flatten(known) if known is not None else []
        dtype = leaves[0].dtype if len(leaves) == 1 else tf.float32
        return tf.TensorSpec(_static(shapes, batch_size), dtype)
    if isinstance(shapes, Mapping):
        inner = known if isinstance(known, Mapping) else {_input_name(spec): spec for spec in tf.nest.flatten(known)}
        return {k: _from_shapes(s, inner.get(k), batch_size) for k, s in shapes.items()}
    if isinstance(shapes, Sequence) and not isinstance(shapes, str):
        if len(shapes) == 1 and known is not None and hasattr(known, "shape"):
            return _from_shapes(shapes[0], known, batch_size)
        inner_list = list(known) if isinstance(known, (list, tuple)) else [None] * len(shapes)
        if len(inner_list) != len(shapes):
            raise ValueError(f"input_shapes names {len(shapes)} inputs, the model has {len(inner_list)}")
        return [_from_shapes(s, k, batch_size) for s, k in zip(shapes, inner_list, strict=True)]
    raise TypeError(
        "input_shapes must be a shape such as (None, 224, 224, 3), with a type where it needs one such as "
        f"((None, 128), 'int32'), or a list or dict of these; got {shapes!r}"
    )


def _shape_dtype_name(given: Any) -> tuple[Any, tf.DType | None, str | None]:
    """Apart what a shape is given with: `(shape, dtype)`, a `tf.TensorSpec` or any other object that has both."""
    is_pair = isinstance(given, tuple) and len(given) == 2 and not _is_shape(given[1])
    if is_pair and (_is_shape(given[0]) or isinstance(given[0], tf.TensorShape)):
        with contextlib.suppress(TypeError):  # two shapes
            return given[0], tf.as_dtype(given[1]), None
    if hasattr(given, "shape") and hasattr(given, "dtype"):
        return given.shape, None if given.dtype is None else tf.as_dtype(given.dtype), _input_name(given)
    return given, None, None


def _static(shape: Any, batch_size: int) -> list[int]:
    dims = shape_list(shape)
    if dims is None or any(d is None for d in dims[1:]):
        raise ValueError(f"input_shapes must be known except for the batch, got {shape}")
    if any(d is not None and d < (not i) for i, d in enumerate(dims)):  # an input may be empty, a batch may not
        raise ValueError(f"input_shapes must not be negative, and the batch positive; got {shape}")
    return [batch_size if d is None else d for d in dims]


def _is_shape(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(d is None or isinstance(d, (int, np.integer)) for d in value)


def shape_list(shape: Any) -> list[int | None] | None:
    if isinstance(shape, tf.TensorShape):
        return None if shape.rank is None else shape.as_list()
    return None if shape is None else [None if d is None else int(d) for d in shape]


def _dtype(spec: Any) -> tf.DType:
    return tf.as_dtype(spec.dtype)


def _compute_dtype(model: Any) -> str:
    return getattr(model, "compute_dtype", None) or "float32"


def _input_name(spec: Any) -> str | None:
    name = getattr(spec, "name", None)
    return name.split(":")[0].split("/")[-1] if isinstance(name, str) else None


def describe(model: Any) -> str:
    name = getattr(model, "name", None)
    return f"{type(model).__name__} {name!r}" if name else type(model).__name__
