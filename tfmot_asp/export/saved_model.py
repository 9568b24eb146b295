"""Writes a SavedModel for inference, and checks what was written before it takes its place."""

from __future__ import annotations

import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_asp import layouts, masks
from tfmot_asp.export.gemms import find_gemms
from tfmot_asp.export.verify import VerificationReport, load_signature, verify
from tfmot_asp.permutation.trace import input_specs, trace_function

logger = logging.getLogger(__name__)

_OUTPUT_TOLERANCE = 1e-4  # relative; the file's graph may be optimised differently from the model's


def saved_model(
    model: Any,
    path: Any,
    *,
    overwrite: bool = False,
    batch_size: int | None = None,
    input_shapes: Any = None,
) -> VerificationReport:
    """Writes a model as a SavedModel with the inference signature ``serving_default``.

    Pruning wrappers are left out. The SavedModel is written to a temporary folder beside ``path``, read back and
    checked (all weights equal, the pattern in every pruned kernel, the same outputs for a random input), and only then
    renamed to ``path``: whatever happens, there is never half a model in that place.

    Args:
        model: a built tf_keras or Keras 3 model, with or without pruning wrappers.
        path: folder to write. It must not exist unless ``overwrite``.
        overwrite: replace an existing SavedModel. A folder that is no SavedModel is never replaced.
        batch_size: fixed batch size of the signature; None leaves it open.
        input_shapes: for models that do not know their own input shapes, as in ``tfmot_asp.permute``.

    Returns:
        The ``VerificationReport`` of the written file.

    Raises:
        FileExistsError: if ``path`` exists.
        ValueError: if the model is none, not built, or its pruning has not reached the pattern.
        RuntimeError: if the written file does not say what the model says. Nothing is left behind then.

    Example:
        >>> report = tfmot_asp.export.saved_model(pruned, "exported")
        >>> report.ok
        True
    """
    path = Path(path)
    _check_target(path, overwrite)
    if not layouts.is_keras_model(model):
        raise ValueError(f"export.saved_model takes a Keras model, got a {type(model).__name__}: {model!s:.80}")
    if not model.built:
        raise ValueError(f"Model {model.name!r} is not built; call it on a batch, or build it, before exporting it")
    plain, m_by_n = _without_wrappers(model)
    function = serving_function(plain, batch_size, input_shapes)
    holder = tf.Module()
    holder.serve, holder.weights = function, list(function.variables)
    # Lookup tables of preprocessing layers: saved only if something that is saved refers to them.
    holder.tables = [part for part in tf.train.TrackableView(plain).descendants() if hasattr(part, "resource_handle")]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        written = temporary / "model"
        tf.saved_model.save(holder, str(written), signatures={"serving_default": function})
        _compare(function, written)
        report = verify(written, sparsity_m_by_n=m_by_n)
        if path.exists():
            path.rename(temporary / "replaced")
        try:
            written.rename(path)
        except OSError:
            if (temporary / "replaced").exists():
                (temporary / "replaced").rename(path)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    logger.info("Wrote %s: %d of %d weights sparse.", path, report.sparse, len(report.layers))
    return VerificationReport(str(path), report.sparsity_m_by_n, report.layers)


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


def _check_target(path: Path, overwrite: bool) -> None:
    if not path.exists():
        return
    if not overwrite:
        raise FileExistsError(f"{str(path)!r} exists; give another path, or overwrite=True to replace a SavedModel")
    if not (path / "saved_model.pb").exists():
        raise FileExistsError(f"{str(path)!r} exists and is no SavedModel, so overwrite=True does not replace it")


def _without_wrappers(model: Any) -> tuple[Any, tuple[int, int]]:
    """The model without pruning wrappers, with all masks applied, and the pattern that they had."""
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


def _compare(function: Any, written: Path) -> None:
    """Compares a written SavedModel with the function that it was written from: weights bit for bit, and outputs."""
    loaded = load_signature(written)
    ours, theirs = find_gemms(trace_function(function)), find_gemms(trace_function(loaded))
    if [gemm.type for gemm in ours] != [gemm.type for gemm in theirs]:
        raise RuntimeError(f"the SavedModel has {len(theirs)} matrix products where the model has {len(ours)}")
    for mine, other in zip(ours, theirs, strict=True):
        if mine.weight is None or other.weight is None:
            logger.warning("The weight of %s cannot be read: %s", mine.op, mine.problem or other.problem)
        elif not np.array_equal(mine.weight, other.weight, equal_nan=True):
            raise RuntimeError(f"the SavedModel's weight of {mine.op} ({mine.weight_name}) differs from the model's")
    probe = _probe(function)
    if probe is None:
        return
    expected, got = function(*probe.values()), loaded(**probe)
    for name, value in expected.items():
        before, after = np.asarray(value), np.asarray(got[name])
        if before.dtype.kind not in "fc":
            continue  # an argmax may flip on a tie
        scale = float(np.max(np.abs(before), initial=0.0))
        if not np.allclose(before, after, rtol=0, atol=_OUTPUT_TOLERANCE * scale, equal_nan=True):
            raise RuntimeError(f"the SavedModel's output {name!r} differs from the model's for the same input")


def _probe(function: Any) -> dict[str, Any] | None:
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
