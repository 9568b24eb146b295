"""The function that is exported: a model without its training parts, in inference mode.

What an exporter writes starts here, so that all of them export the same function with the same names.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.framework import convert_to_constants

from tfmot_asp import layouts, masks
from tfmot_asp.permutation.trace import input_specs


def plain_model(model: Any) -> tuple[Any, tuple[int, int]]:
    """The model without pruning wrappers, with all masks applied, and the pattern that they had.

    Args:
        model: a built tf_keras or Keras 3 model, with or without pruning wrappers. It stays as it is: what comes back
            shares its weights.

    Raises:
        ValueError: if the model is none, is not built, its pruning has not reached the pattern, or it mixes patterns.
    """
    if not layouts.is_keras_model(model):
        raise ValueError(f"export takes a Keras model, got a {type(model).__name__}: {model!s:.80}")
    if not model.built:
        raise ValueError(f"Model {model.name!r} is not built; call it on a batch, or build it, before exporting it")
    if layouts.is_keras3(model):
        return model, masks.DEFAULT_M_BY_N
    from tensorflow_model_optimization.python.core.sparsity.keras import prune, pruning_wrapper

    wrappers = [
        layer
        for layer in model._flatten_layers(include_self=False)
        if isinstance(layer, pruning_wrapper.PruneLowMagnitude)
    ]
    if not wrappers:
        return model, masks.DEFAULT_M_BY_N
    patterns = {tuple(wrapper.sparsity_m_by_n) for wrapper in wrappers if wrapper.sparsity_m_by_n}
    if len(patterns) > 1:
        raise ValueError(f"Model {model.name!r} mixes the patterns {sorted(patterns)}; export one pattern at a time")
    for wrapper in wrappers:
        wrapper.pruning_obj.weight_mask_op()
    m_by_n = patterns.pop() if patterns else masks.DEFAULT_M_BY_N
    for wrapper in wrappers:
        for kernel in layouts.kernels_of(wrapper) if wrapper.sparsity_m_by_n else ():
            axes = kernel.layout.reduction_axes
            if axes and masks.violations(np.asarray(kernel.tf_variable), axes, m_by_n):
                raise ValueError(
                    f"Layer {kernel.layer.name!r} has not reached its {m_by_n} pattern: train to the end of its "
                    "pruning schedule first, or call tfmot_asp.strip_pruning(model), which prunes it now."
                )
    return prune.strip_pruning(model), m_by_n


def serving_function(model: Any, batch_size: int | None = None, input_shapes: Any = None) -> Any:
    """A concrete function of the model in inference mode, with the model's own input and output names.

    Args:
        model: a built Keras model without pruning wrappers.
        batch_size: fixed batch size, or None to leave the first axis open.
        input_shapes: for models that do not know their own.

    Returns:
        A ``ConcreteFunction`` that returns a dict of outputs, as signatures must.
    """
    structure, specs = _inputs(model, batch_size, input_shapes)

    @tf.function(input_signature=specs)
    def serve(*tensors: Any) -> dict[str, Any]:
        args, kwargs = tf.nest.pack_sequence_as(structure, list(tensors))
        return _named_outputs(model, model(*args, **kwargs, training=False))

    return serve.get_concrete_function()


def inference_function(
    model: Any, batch_size: int | None = None, input_shapes: Any = None, *, fold_batch_norm: bool = True
) -> Any:
    """``serving_function`` with all variables frozen to constants."""
    function = serving_function(model, batch_size, input_shapes)
    frozen = convert_to_constants.convert_variables_to_constants_v2(function, lower_control_flow=False)
    graph_def = frozen.graph.as_graph_def()
    names = [tensor.name for tensor in frozen.inputs]
    results = [tensor.name for tensor in frozen.outputs]

    @tf.function(input_signature=list(function.structured_input_signature[0]))
    def infer(*tensors: Any) -> dict[str, Any]:
        found = tf.import_graph_def(graph_def, dict(zip(names, tensors, strict=True)), results, name="")
        return dict(zip(sorted(function.structured_outputs), found, strict=True))

    return infer.get_concrete_function()


def _inputs(model: Any, batch_size: int | None, input_shapes: Any) -> tuple[Any, list[tf.TensorSpec]]:
    """How to call the model, as (args, kwargs), and the flat list of its inputs' specs."""
    known = getattr(model, "inputs", None) if input_shapes is None else None
    if known:
        structure = getattr(model, "_nested_inputs", None)  # tf_keras
        if structure is None:
            structure = getattr(model, "_inputs_struct", known)  # Keras 3
        structure = structure if structure is not None else known
        if isinstance(structure, list) and len(structure) == 1:
            structure = structure[0]
        nested: Any = ((structure,), {})
        names = getattr(model, "input_names", None) or [getattr(tensor, "name", None) for tensor in known]
    else:
        nested = input_specs(model, input_shapes)
        names = [getattr(spec, "name", None) for spec in tf.nest.flatten(nested)]
    specs = []
    flat = tf.nest.flatten(nested)
    for index, tensor in enumerate(flat):
        name = (names[index] if index < len(names) and len(names) == len(flat) else None) or f"input_{index}"
        shape = [batch_size, *tf.TensorShape(tensor.shape)[1:]]
        specs.append(tf.TensorSpec(shape, tf.as_dtype(tensor.dtype), str(name).split(":")[0].replace("/", "_")))
    return tf.nest.map_structure(lambda _: 0, nested), specs


def _named_outputs(model: Any, outputs: Any) -> dict[str, Any]:
    if isinstance(outputs, dict):
        return {str(key): value for key, value in outputs.items()}
    flat = tf.nest.flatten(outputs)
    names = getattr(model, "output_names", None) or []
    if len(names) != len(flat) or len(set(names)) != len(names):
        names = [f"output_{index}" for index in range(len(flat))]
    return dict(zip(names, flat, strict=True))


def probe_inputs(function: Any) -> dict[str, Any] | None:
    """A random input, batch 1 where that is open; None if another axis is open or an input is neither float nor int."""
    generator = np.random.default_rng(0)
    probe = {}
    for spec in function.structured_input_signature[0]:
        shape = [1 if size is None and axis == 0 else size for axis, size in enumerate(spec.shape)]
        if None in shape or not (spec.dtype.is_floating or spec.dtype.is_integer):
            return None
        values = generator.standard_normal(shape) if spec.dtype.is_floating else np.zeros(shape)
        probe[spec.name] = tf.cast(tf.constant(values), spec.dtype)
    return probe
