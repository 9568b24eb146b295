"""How sparse a model is, layer by layer, and what that can gain: pattern, sizes, alignment, share of the work."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tfmot_asp import masks
from tfmot_asp.hardware import libraries
from tfmot_asp.hardware.cost_model import CostModel, cost_model
from tfmot_asp.hardware.policy import estimate_gains, why_dense
from tfmot_asp.hardware.product_times import dense_time, product_times, why_no_sparse_kernel
from tfmot_asp.hardware.rule import PruneForSparseTensorCores
from tfmot_asp.keras_models.checks import check_batch_size, check_built
from tfmot_asp.keras_models.kernels import Kernel, kernel_name, layers_with_kernels, used_kernel
from tfmot_asp.keras_models.which_keras import is_keras_layer
from tfmot_asp.pattern import TWO_FOUR, Pattern, PatternLike
from tfmot_asp.reason import Reason
from tfmot_asp.reports.sparsity_report import LayerSparsity, SparsityReport
from tfmot_asp.types import InputShapes, Policy, StrPath

if TYPE_CHECKING:
    from tfmot_asp.graph.products import GemmSize

logger = logging.getLogger(__name__)

_DENSE_BY_DEFAULT = (
    "the gains are over the dense kernels that a library takes by default; over the fastest, which TensorRT looks for, "
    "they are smaller, in int8 by much: gpu='H100-tuned' has those of an H100"
)


def sparsity_report(
    model: Any,
    *,
    policy: Policy | None = None,
    sparsity_m_by_n: PatternLike = TWO_FOUR,
    batch_size: int | None = 1,
    input_shapes: InputShapes | None = None,
    gpu: StrPath | None = None,
    precision: str = "fp16",
) -> SparsityReport:
    """Reports for every kernel of a model whether it is sparse, if it could be, and what that can gain.

    For the gain the model is traced, which takes a second or so: the size of each kernel's matrix products, their share
    of all multiply-adds, whether the sizes suit sparse kernels, and from that a bound for the whole model. It is no
    estimate: NVIDIA's own experience is about 15 % end to end for convolutional networks, usually less
    (github.com/NVIDIA/TensorRT, issue 2310). With ``gpu`` the time of each product is estimated too, dense and 2:4,
    from times that were measured on that GPU, and the gain of all of them. See docs/performance.md.

    Args:
        model: a built model or layer of tf_keras or Keras 3, wrapped or not.
        policy: what decides which layers are prunable: anything with ``why(layer) -> str | None``, such as
            ``PruneForSparseTensorCores``, or with tfmot's ``allow_pruning(layer) -> bool``. By default
            ``PruneForSparseTensorCores()``.
        sparsity_m_by_n: the pattern to look for, ``(zeros, block)`` or ``"N:M"``.
        batch_size: number of samples that the sizes are for, where the model leaves it open. None leaves sizes out, and
            with them the trace.
        input_shapes: shapes to trace with: one shape such as ``(None, 224, 224, 3)``, or a list or dict of shapes as
            the model is called. For models that do not know theirs, and those that leave sizes open, where it is
            otherwise 224 (images) or 128 (texts, signals), or another size if the model takes none of these.
        gpu: to estimate times for: ``"H100"``, or what else ``hardware.estimate`` takes. None leaves times out.
        precision: of these times, ``"fp16"`` or ``"int8"``.

    Returns:
        A ``SparsityReport``. Sizes are None, and a note says why, if shapes are not known and not given or the model
        cannot be traced. A note says which sizes were chosen, if the model leaves them open.

    Raises:
        TypeError: if ``policy``, ``batch_size`` or ``gpu`` is none.
        ValueError: if ``model`` is no Keras model or layer, or not built; if ``batch_size`` is less than 1, or None
            with a ``gpu``; if the ``input_shapes`` that are given do not fit the model; or if there are no times for
            this GPU or precision.
        FileNotFoundError: if ``gpu`` is a path and there is no such file.

    Example:
        >>> print(tfmot_asp.sparsity_report(model, batch_size=32))
        convnet: 0 of 3 prunable kernels are 2:4 along their reduction axis (4 kernels in all)
        ...
        layer  kind    shape      axis  zeros   2:4                 kept |w|  prunable
        stem   Conv2D  3x3x3x16   2       0.0%  no, 144 of 144       82.5%    has 3 input channels; sparse ...
        conv   Conv2D  3x3x16x16  2       0.0%  no, 576 of 576       69.4%    yes
        ...
    """
    pattern = Pattern.of(sparsity_m_by_n)
    times = None if gpu is None else cost_model(gpu, precision)
    if times is not None and batch_size is None:
        raise ValueError("times on a gpu are of products of some size: give batch_size, which is None")
    if not is_keras_layer(model):
        raise ValueError(f"sparsity_report takes a Keras model or layer, got a {type(model).__name__}: {model!s:.80}")
    check_built(model, "report on it")
    policy = PruneForSparseTensorCores() if policy is None else policy
    estimate_gains(policy, model, input_shapes)
    found = []
    for layer in layers_with_kernels(model):
        reason = why_dense(policy, layer.layer)
        found += [(kernel_name(layer.name, kernel.attribute), kernel, reason) for kernel in layer.kernels]
    rows = [_row(name, kernel, reason, pattern) for name, kernel, reason in found]
    report = SparsityReport(str(model.name), pattern, tuple(rows))
    if batch_size is None:
        return replace(report, notes=("GEMM sizes were left out: batch_size is None",))
    kernels = [kernel for _, kernel, _ in found]
    report = _with_sizes(report, model, kernels, batch_size, input_shapes)
    return report if times is None or report.multiply_adds is None else _with_times(report, kernels, times)


def _with_sizes(
    report: SparsityReport, model: Any, kernels: Sequence[Kernel], batch_size: int, input_shapes: Any
) -> SparsityReport:
    from tfmot_asp.graph import kernel_work, open_sizes  # here: they import TensorFlow

    batch_size = check_batch_size(batch_size)
    try:
        open_size = open_sizes.typical_size(model) if input_shapes is None else None
        work = kernel_work.measure(model, kernels, batch_size, input_shapes, open_size)
    except Exception as error:  # whatever a model's own code may raise: what is known without sizes is reported
        if input_shapes is not None:
            raise
        logger.debug("no sizes for %s", report.model, exc_info=True)
        return replace(report, notes=(f"GEMM sizes are not known: {error}",))
    rows = [
        _with_work(row, kernel, gemms, work.multiply_adds)
        for row, kernel, gemms in zip(report.layers, kernels, work.gemms, strict=True)
    ]
    first: dict[int, str] = {}
    for row, kernel in zip(rows, kernels, strict=True):
        first.setdefault(id(kernel.tf_variable), row.name)
    idle: list[str] = []
    tied: list[tuple[str, str]] = []
    for row, kernel in zip(rows, kernels, strict=True):
        owner = first[id(kernel.tf_variable)]
        if not row.gemms and owner == row.name:
            idle.append(row.name)
        elif not row.gemms:
            tied.append((row.name, owner))
    notes = []
    if open_size is not None:
        shapes = ", ".join(map(str, work.input_shapes))
        notes.append(
            f"the model leaves sizes open: these are for inputs of shape {shapes}, chosen here; give input shapes for "
            "others"
        )
    notes += [f"totals and shares are not exact: {reason}" for reason in work.uncounted]
    notes += [f"{name} has the kernel of {owner}, and its products are counted there" for name, owner in tied]
    if idle:
        notes.append(
            f"no product was found with the kernel of {', '.join(dict.fromkeys(idle))} when the model is called"
        )
    return replace(
        report,
        layers=tuple(rows),
        input_shapes=work.input_shapes,
        multiply_adds=work.multiply_adds,
        others=work.others,
        notes=tuple(notes),
    )


def _with_times(report: SparsityReport, kernels: Sequence[Kernel], model: CostModel) -> SparsityReport:
    rows = [
        replace(
            row,
            no_sparse_kernel=why_no_sparse_kernel(kernel, model.precision),
            times=product_times(kernel, row.gemms or (), model),
        )
        for row, kernel in zip(report.layers, kernels, strict=True)
    ]
    others = tuple(dense_time(other.gemms, model) for other in report.others)
    notes = report.notes if model.dense_was_searched else (*report.notes, _DENSE_BY_DEFAULT)
    return replace(report, layers=tuple(rows), gpu=model.gpu, precision=model.precision, others_us=others, notes=notes)


def _with_work(row: LayerSparsity, kernel: Kernel, gemms: tuple[GemmSize, ...], total: int) -> LayerSparsity:
    multiply_adds = sum(size.multiply_adds for size in gemms)
    return replace(
        row,
        gemms=gemms,
        multiply_adds=multiply_adds,
        share=multiply_adds / total if total else 0.0,
        misaligned_fp16=_misaligned("fp16", kernel, gemms),
        misaligned_int8=_misaligned("int8", kernel, gemms),
    )


def _misaligned(precision: str, kernel: Kernel, gemms: Sequence[GemmSize]) -> tuple[str, ...]:
    """Of the weight, and of the worst of its calls."""
    n, k = kernel.output_size // max(1, kernel.layout.groups), kernel.reduction_size
    rows: list[int | None] = [size.m for size in gemms] or [None]
    bad = {name for m in rows for name in libraries.misaligned(precision, m=m, n=n, k=k)}
    return tuple(name for name in "MNK" if name in bad)


def _row(name: str, kernel: Kernel, why: Reason | None, pattern: Pattern) -> LayerSparsity:
    weight = used_kernel(kernel)
    axes = kernel.layout.reduction_axes
    found, violations, retained = masks.standing(weight, axes, pattern), None, None
    if axes and weight.size:
        violations = found.violations
        total = float(np.sum(np.abs(weight), dtype=np.float64))
        retained = masks.retained_magnitude(weight, axes, pattern) / total if total else None
    if why is None and not found.asks:
        few = f"has {kernel.reduction_size} inputs, of which {pattern} keeps all"
        subject = f"{type(kernel.layer).__name__} {kernel.layer.name!r} ({kernel.attribute})"
        why = Reason(subject, few if axes else "sums over no channels")
    return LayerSparsity(
        name=name,
        kind=kernel.layout.kind,
        attribute=kernel.attribute,
        shape=kernel.shape,
        reduction_axes=axes,
        zeros=1 - int(np.count_nonzero(weight)) / max(1, weight.size),
        stripes=found.stripes,
        violations=violations,
        why=why,
        retained=retained,
        two_four=(found if pattern == TWO_FOUR else masks.standing(weight, axes)).holds,
        tensorrt=libraries.tensorrt_verdict(kernel),
        gemms=None,
        multiply_adds=None,
        share=None,
        misaligned_fp16=_misaligned("fp16", kernel, ()),
        misaligned_int8=_misaligned("int8", kernel, ()),
    )
