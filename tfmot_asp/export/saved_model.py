"""Writes a SavedModel for inference, and checks what was written before it takes its place."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_asp.export.kept_pattern import check_nothing_lost
from tfmot_asp.export.keywords import takes_aliases
from tfmot_asp.export.lowering.frozen import CannotFreezeError
from tfmot_asp.export.lowering.inference import (
    holder_of,
    inference_function,
    outputs_differ,
    serving_function,
)
from tfmot_asp.export.read_tensorflow import load_signature
from tfmot_asp.export.verify import verify
from tfmot_asp.files import replacing
from tfmot_asp.graph.flatten import trace_function
from tfmot_asp.graph.gemms import find_gemms
from tfmot_asp.hardware.precision import check_precision
from tfmot_asp.keras_models.plain import plain_model
from tfmot_asp.pattern import PatternLike
from tfmot_asp.reports.progress_bar import Stages
from tfmot_asp.reports.verification import VerificationReport
from tfmot_asp.types import InputShapes, StrPath

logger = logging.getLogger(__name__)

_STORED = {"fp32": None, "fp16": tf.float16, "bf16": tf.bfloat16}


@takes_aliases
def saved_model(
    model: Any,
    path: StrPath,
    *,
    overwrite: bool = False,
    fold_batch_norm: bool = True,
    batch_size: int | None = None,
    input_shapes: InputShapes | None = None,
    precision: str = "fp32",
    sparsity_m_by_n: PatternLike | None = None,
    progress: bool | None = None,
) -> VerificationReport:
    """Writes a model as a SavedModel with the inference signature ``serving_default``, in the form that TF-TRT takes.

    Pruning wrappers are left out, weights are constants, each matrix product reads a 2-D constant directly, and batch
    norm is folded into the kernel before it where the result is the same in real arithmetic: which scales whole output
    channels, so that zeros stay zeros. Where outputs differ by more than rounding, or the graph cannot be rewritten, it
    is exported as it is, with a warning. A model that reads lookup tables, or has 2 GiB of weights or more, keeps its
    variables (and its batch norm).

    The SavedModel is written to a temporary folder beside ``path``, read back and checked (all weights equal, the
    pattern in every pruned kernel, the same outputs for a random input), and only then renamed to ``path``: whatever
    happens, there is never half a model in that place.

    Args:
        model: a built tf_keras or Keras 3 model, with or without pruning wrappers. It stays as it is.
        path: folder to write. It must not exist, or be empty, unless ``overwrite``.
        overwrite: replace an existing SavedModel. A folder of other things is never replaced.
        fold_batch_norm: whether to fold batch norm, and other scales and shifts per channel.
        batch_size: fixed batch size of the signature; None leaves it open.
        input_shapes: for models that do not know their own input shapes, as in ``tfmot_asp.permute``.
        precision: that weights are stored in. ``"fp16"`` (or ``"bf16"``) narrows kernels and embedding tables, which
            halves the file; they are cast to float32 where they are read. Leave it out for TF-TRT, whose engines
            narrow weights by themselves: Grappler, which runs first, folds no cast of a constant above 100 kB.
            ``dtype=`` is the same.
        sparsity_m_by_n: the pattern that the model's kernels have, ``(zeros, block)`` or ``"N:M"``, which the file must
            keep; by default that of its pruning wrappers, and 2:4 for a model without.
        progress: show a progress bar; by default if stderr is a terminal.

    Returns:
        The ``VerificationReport`` of the written file.

    Raises:
        FileExistsError: if ``path`` exists.
        ValueError: if the model is none, not built, or its pruning has not reached the pattern; if ``precision``
            is unknown, too narrow for a weight, or asked for a model that keeps its variables.
        RuntimeError: if the written file does not say what the model says. Nothing is left behind then.

    Example:
        >>> report = tfmot_asp.export.saved_model(pruned, "exported", batch_size=32)
        >>> report.ok
        True
    """
    path = Path(path)
    narrow = _STORED[check_precision(precision, tuple(_STORED))]
    stages = ("tracing", "rewriting", "writing", "comparing", "checking")
    with (
        replacing(path, overwrite=overwrite, what="a SavedModel", folder=True) as written,
        Stages("saved_model", stages, progress) as at,
    ):
        at.begin("tracing")
        plain, pattern = plain_model(model, sparsity_m_by_n)
        original = serving_function(plain, batch_size, input_shapes)
        function = original
        at.begin("rewriting")
        try:
            function = inference_function(
                plain,
                batch_size,
                input_shapes,
                fold_batch_norm=fold_batch_norm,
                weights_dtype=narrow,
                inline_xla=False,  # the SavedModel must run on CPUs too
            )
        except CannotFreezeError as error:
            if narrow is not None:
                raise ValueError(f"weights cannot be stored in {narrow.name}: {error}") from error
            logger.warning("Exported with variables, and batch norm as it is: %s", error)
        at.begin("writing")
        holder = holder_of(function, plain if function is original else None)
        # Custom gradients (tf_keras' swish has one) capture what is no part of the function, and are not for inference.
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        tf.saved_model.save(holder, str(written), signatures={"serving_default": function}, options=options)
        at.begin("comparing")
        _compare(function, written)
        at.begin("checking")
        report = verify(written, sparsity_m_by_n=pattern, allow_unsafe=True)
        check_nothing_lost(original, report, "the SavedModel")
    logger.info("Wrote %s: %d of %d weights sparse.", path, report.sparse, len(report.layers))
    return replace(report, path=str(path))


def _compare(function: Any, written: Path) -> None:
    """Compares a written SavedModel with the function that it was written from: weights bit for bit, and outputs."""
    loaded = load_signature(written, allow_unsafe=True)
    ours, theirs = find_gemms(trace_function(function)), find_gemms(trace_function(loaded))
    if [gemm.type for gemm in ours] != [gemm.type for gemm in theirs]:
        raise RuntimeError(f"the SavedModel has {len(theirs)} matrix products where the model has {len(ours)}")
    for mine, other in zip(ours, theirs, strict=True):
        if mine.weight is None or other.weight is None:
            logger.warning("The weight of %s cannot be read: %s", mine.op, mine.problem or other.problem)
        elif not np.array_equal(mine.weight, other.weight, equal_nan=True):
            raise RuntimeError(f"the SavedModel's weight of {mine.op} ({mine.weight_name}) differs from the model's")
    if (difference := outputs_differ(function, loaded)) is not None:
        raise RuntimeError(f"the SavedModel does not compute what the model does: {difference}")
