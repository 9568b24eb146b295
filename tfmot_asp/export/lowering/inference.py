"""The function that is exported: a model without its training parts, in inference mode.

What an exporter writes starts here, so that all of them export the same function with the same names.
"""

from __future__ import annotations

import gc
import itertools
import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.util import nest

from tfmot_asp.export.lowering.frozen import freeze, inlined
from tfmot_asp.export.lowering.lower import lower
from tfmot_asp.graph.compare import difference, is_compared, tolerance
from tfmot_asp.graph.flatten import trace_function
from tfmot_asp.graph.gemms import weight_names
from tfmot_asp.graph.inputs import input_specs, known_inputs, place_name
from tfmot_asp.graph.probes import outputs_of, probes
from tfmot_asp.keras_models.modules import modules_in
from tfmot_asp.types import InputShapes

logger = logging.getLogger(__name__)


def serving_function(
    model: Any, batch_size: int | None = None, input_shapes: InputShapes | None = None, *, distinct_names: bool = False
) -> Any:
    """A concrete function of the model in inference mode, with the model's own input and output names.

    Args:
        model: a built Keras model without pruning wrappers.
        batch_size: fixed batch size, or None to leave the first axis open.
        input_shapes: for models that do not know their own.
        distinct_names: whether an output that has an input's name is called ``NAME_output``, as ONNX needs it.

    Returns:
        A ``ConcreteFunction`` that returns a dict of outputs, as signatures must.

    Raises:
        ValueError: if ``batch_size`` is none, a recurrent layer is stateful, or the model does not take
            ``input_shapes``.
    """
    for part in modules_in(model):
        if getattr(part, "stateful", False) and hasattr(part, "return_sequences"):
            raise ValueError(
                f"Layer {part.name!r} is stateful: it remembers one call in the next, which an exported file does not. "
                "Export a copy of the model in which it has stateful=False"
            )
    structure, specs = _inputs(model, _checked(batch_size), input_shapes)
    taken = {spec.name for spec in specs} if distinct_names else set()

    @tf.function(input_signature=specs)
    def serve(*tensors: Any) -> dict[str, Any]:
        args, kwargs = tf.nest.pack_sequence_as(structure, list(tensors))
        named = _named_outputs(model, model(*args, **kwargs, training=False))
        return {f"{name}_output" if name in taken else name: value for name, value in named.items()}

    try:
        return serve.get_concrete_function()
    except (TypeError, ValueError) as error:
        if input_shapes is None:
            raise
        said = re.search(r"Input \d+ of layer .*", str(error)) or re.search(r"(?<=Error: ).*", str(error))
        raise ValueError(
            f"{model.name!r} cannot be called on input_shapes={input_shapes}: {said[0] if said else error}"
        ) from error


def _checked(batch_size: Any) -> int | None:
    if batch_size is None:
        return None
    if isinstance(batch_size, bool) or not isinstance(batch_size, (int, np.integer)) or batch_size < 1:
        raise ValueError(f"batch_size must be a positive number, or None for an open batch, got {batch_size!r}")
    return int(batch_size)


def inference_function(
    model: Any,
    batch_size: int | None = None,
    input_shapes: InputShapes | None = None,
    *,
    fold_batch_norm: bool = True,
    weights_dtype: tf.DType | None = None,
    inline_xla: bool = True,
    distinct_names: bool = False,
    real_numbers: bool = False,
) -> Any:
    """The same as ``serving_function``, made plain for converters, and compared with it on a random input.

    Variables are frozen to constants. Products read 2-D (or convolution) kernels directly, einsums with a constant
    kernel are matrix products, and batch norm is folded into the kernel before it: see ``frozen``.
    Fake quantization stays as it is.

    Args:
        model: a built Keras model without pruning wrappers.
        batch_size: fixed batch size, or None to leave the first axis open.
        input_shapes: for models that do not know their own.
        fold_batch_norm: whether to fold it.
        weights_dtype: a narrower type to store float32 weights in, each with a cast to float32 after it; products are
            computed in float32 all the same.
        inline_xla: whether functions that ask for XLA are inlined, as converters need it. tf_keras wraps grouped
            convolutions so, because TensorFlow's CPU kernels cannot run all graphs that have them.
        distinct_names: as in ``serving_function``.
        real_numbers: whether what is complex is computed in real numbers, see ``spectra``.

    Returns:
        A ``ConcreteFunction`` without variables, with the inputs and outputs of ``serving_function``.

    Raises:
        CannotFreezeError: (a ValueError) if the model reads lookup tables, or has 2 GiB of weights or more.
        ValueError: if a weight is too large for ``weights_dtype``.
    """
    function = serving_function(model, batch_size, input_shapes, distinct_names=distinct_names)
    keys = sorted(function.structured_outputs)
    frozen = freeze(function, model.name)
    if inline_xla:
        frozen = inlined(frozen)
    edit = frozen.edit()
    edit.store_large()
    frozen = frozen.edited(edit)
    gc.collect()  # TensorFlow's functions are cycles, and each holds a copy of all weights
    names = weight_names(trace_function(function))
    # Folding first; what it cannot do must not keep the rest from being done.
    for fold in (True, False) if fold_batch_norm else (False,):
        try:
            lowered = lower(
                frozen, fold_batch_norm=fold, names=names, weights_dtype=weights_dtype, real_numbers=real_numbers
            )
        except OverflowError as error:
            raise ValueError(
                f"{model.name!r} cannot be exported in {weights_dtype.name if weights_dtype else 'float32'}: {error}"
            ) from error
        except ValueError as error:
            problem: str | None = str(error)
        else:
            allowed = None if weights_dtype is None else tolerance("rewritten", [weights_dtype.name])
            problem = outputs_differ(function, lowered.function(keys, embed=False), allowed)
            if problem is None:
                return lowered.function(keys)
        what = "without folding batch norm" if fold else "with its graph as it is"
        logger.warning("%s is exported %s: %s", model.name, what, problem)
    if weights_dtype is not None:
        raise ValueError(f"{model.name!r} cannot be exported in {weights_dtype.name}: {problem}")
    return frozen.function(keys)


def check_outputs(names: Iterable[str], function: Any) -> list[str]:
    """The names of outputs that a user gives.

    Args:
        names: one, or several.
        function: whose outputs they are.

    Raises:
        ValueError: if the function has no such output.
    """
    given, known = [names] if isinstance(names, str) else list(names), list(function.structured_outputs)
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ValueError(f"uncompared names {', '.join(map(repr, unknown))}; the outputs are {', '.join(known)}")
    return given


def holder_of(function: Any, model: Any) -> tf.Module:
    """What a function is saved with: its variables, and the lookup tables of the model's preprocessing layers.

    Args:
        function: the ``ConcreteFunction`` to save.
        model: where its tables are; None if it has none.
    """
    holder = tf.Module()
    holder.serve, holder.weights = function, list(function.variables)
    # Saved only if something that is saved refers to them.
    parts = () if model is None else tf.train.TrackableView(model).descendants()
    holder.tables = [part for part in parts if hasattr(part, "resource_handle")]
    return holder


def outputs_differ(function: Any, other: Any, allowed: float | None = None) -> str | None:
    """Runs two functions on the same random input.

    Args:
        function: what is right.
        other: what is compared with it, called with the same inputs by name.
        allowed: largest difference relative to the largest value of an output; by default what rounding may do in the
            output's type.

    Returns:
        None if they agree (or no input can be made up for them), else which output differs and by how much.
    """
    with _remapping_off():
        for probe, expected in probes(function):
            got = outputs_of(other, probe)
            for name, value in expected.items():
                if not is_compared(value):
                    continue  # an argmax may flip on a tie
                change = difference(value, got.get(name))
                if change > (allowed or tolerance("rewritten", [value.dtype.name])):
                    return f"output {name!r} changes by {change:.1e} of its size"
    return None


@contextmanager
def _remapping_off() -> Iterator[None]:
    """Keeps TensorFlow from fusing a grouped convolution with what follows: its CPU has no kernel for the result."""
    before = tf.config.optimizer.get_experimental_options().get("remapping")
    tf.config.optimizer.set_experimental_options({"remapping": False})
    try:
        yield
    finally:
        # Absent means the default, which is on.
        tf.config.optimizer.set_experimental_options({"remapping": True if before is None else before})


def _inputs(model: Any, batch_size: int | None, input_shapes: InputShapes | None) -> tuple[Any, list[tf.TensorSpec]]:
    """How to call the model, as (args, kwargs), and the flat list of its inputs' specs."""
    own = getattr(model, "inputs", None)
    own_names = getattr(model, "input_names", None) or [getattr(tensor, "name", None) for tensor in own or ()]
    known = known_inputs(model) if own and input_shapes is None else None
    nested = known or input_specs(model, input_shapes)
    given = [getattr(spec, "name", None) for spec in tf.nest.flatten(nested)]
    names = own_names if known or (own and len(own_names) == len(given) and not any(given)) else given
    specs: list[tf.TensorSpec] = []
    flat = tf.nest.flatten(nested)
    for index, tensor in enumerate(flat):
        name = (names[index] if index < len(names) and len(names) == len(flat) else None) or f"input_{index}"
        shape = tf.TensorShape(tensor.shape).as_list()
        shape[:1] = [batch_size] * len(shape[:1])  # a number has no batch
        specs.append(tf.TensorSpec(shape, tf.as_dtype(tensor.dtype), _input_name(name, {spec.name for spec in specs})))
    return tf.nest.map_structure(lambda _: 0, nested), specs


def _input_name(name: Any, taken: set[str | None]) -> str:
    """The name of an input with what TensorFlow's signatures do not take in a name replaced, and unlike the others."""
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", str(name).split(":")[0])
    if not plain[:1].isascii() or not plain[:1].isalnum():
        plain = f"input{plain}"
    count = itertools.count(1)
    unique = plain
    while unique in taken:
        unique = f"{plain}_{next(count)}"
    return unique


def _named_outputs(model: Any, outputs: Any) -> dict[str, Any]:
    if isinstance(outputs, dict):
        return {
            place_name(key, path): value
            for key, structure in outputs.items()
            for path, value in nest.flatten_with_joined_string_paths(structure)
        }
    flat = tf.nest.flatten(outputs)
    names = getattr(model, "output_names", None) or []
    if len(names) != len(flat) or len(set(names)) != len(names):
        names = [f"output_{index}" for index in range(len(flat))]
    return dict(zip(names, flat, strict=True))
