"""Writes a SavedModel for inference, and checks what was written before it takes its place."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_asp.export.files import replacing
from tfmot_asp.export.gemms import find_gemms
from tfmot_asp.export.inference import plain_model, probe_inputs, serving_function
from tfmot_asp.export.verify import VerificationReport, load_signature, verify
from tfmot_asp.permutation.trace import trace_function

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
    with replacing(path, overwrite=overwrite, what="a SavedModel", is_ours=_is_saved_model) as written:
        plain, m_by_n = plain_model(model)
        function = serving_function(plain, batch_size, input_shapes)
        holder = tf.Module()
        holder.serve, holder.weights = function, list(function.variables)
        # Lookup tables of preprocessing layers: saved only if something that is saved refers to them.
        parts = tf.train.TrackableView(plain).descendants()
        holder.tables = [part for part in parts if hasattr(part, "resource_handle")]
        tf.saved_model.save(holder, str(written), signatures={"serving_default": function})
        _compare(function, written)
        report = verify(written, sparsity_m_by_n=m_by_n)
    logger.info("Wrote %s: %d of %d weights sparse.", path, report.sparse, len(report.layers))
    return VerificationReport(str(path), report.sparsity_m_by_n, report.layers)


def _is_saved_model(path: Path) -> bool:
    return (path / "saved_model.pb").exists()


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
    probe = probe_inputs(function)
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
