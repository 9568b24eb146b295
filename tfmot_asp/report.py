"""How sparse a model is, layer by layer, and what that can gain: pattern, sizes, alignment, share of the work."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tfmot_asp import layouts, masks, tensor_cores
from tfmot_asp.eligibility import SparseTensorCoreRule, why_dense
from tfmot_asp.report_table import align as align  # other reports are tables as well
from tfmot_asp.report_table import render

if TYPE_CHECKING:
    from tfmot_asp.products import GemmSize
    from tfmot_asp.sizes import OtherProduct

logger = logging.getLogger(__name__)

# TF-ASP reports at this level, which Python shows by default.
SHOW_PRUNING_INFO = 30

# TF-ASP calls a layer pruned if its share of zeros is this close to what the pattern gives.
_ZERO_RATIO_TOLERANCE = 0.003


@dataclass(frozen=True)
class LayerSparsity:
    """One kernel of a model.

    Attributes:
        name: of the layer, unique in the model.
        kind: Keras class whose layout the kernel follows.
        attribute: which kernel of the layer.
        shape: of the kernel.
        reduction_axes: axes that the pattern runs along; empty for depthwise kernels, which have none.
        zeros: share of weights that are exactly zero, 0 to 1.
        stripes: number of stripes.
        violations: stripes with more than n - m nonzeros; None without a reduction axis.
        reason: why the policy keeps the layer dense; None if it is prunable.
        retained: share of the kernel's magnitude that the pattern's mask keeps, 0 to 1: 1 if the pattern holds, and
            what one-shot pruning would keep if not. None without a reduction axis, and for an all-zero kernel.
        two_four: whether 2:4 holds in every stripe, the one pattern that sparse Tensor Cores run, whichever pattern
            the report is about.
        tensorrt: whether TensorRT has a sparse kernel for it, and if not, why and by which rule.
        gemms: sizes of its products, one call's each; empty if the model does not use the kernel, None if not known.
        multiply_adds: of all its products; None if not known.
        share: of the model's multiply-adds, 0 to 1; None if not known.
        misaligned_fp16: which of M, N and K are no multiples of what cuSPARSELt's sparse fp16 kernels ask for. M, the
            positions, can be padded with little loss, N and K are the weight's.
        misaligned_int8: the same for int8.
    """

    name: str
    kind: str
    attribute: str
    shape: tuple[int, ...]
    reduction_axes: tuple[int, ...]
    zeros: float
    stripes: int
    violations: int | None
    reason: str | None
    retained: float | None
    two_four: bool
    tensorrt: tensor_cores.TensorRTVerdict
    gemms: tuple[GemmSize, ...] | None
    multiply_adds: int | None
    share: float | None
    misaligned_fp16: tuple[str, ...]
    misaligned_int8: tuple[str, ...]

    @property
    def prunable(self) -> bool:
        """Whether the policy would prune the layer."""
        return self.reason is None

    @property
    def holds(self) -> bool:
        """Whether the pattern holds in every stripe."""
        return self.violations == 0


@dataclass(frozen=True)
class BestCase:
    """What sparse Tensor Cores can make of a model at best. See ``tensor_cores.best_case``.

    Attributes:
        share: of the model's multiply-adds that they can do, 0 to 1.
        speedup: by Amdahl's law, if that share takes half the time.
    """

    share: float
    speedup: float


@dataclass(frozen=True)
class SparsityReport:
    """The kernels of a model. ``str()`` is a table; ``to_dict()`` is plain data for JSON.

    Attributes:
        model: name of the model.
        sparsity_m_by_n: the pattern that was checked.
        layers: one row per kernel, in the model's order.
        input_shapes: shapes of the model's inputs that the sizes are for; None if the sizes are not known.
        multiply_adds: of the whole model, for these inputs; None if not known.
        others: products of no kernel above: of two activations, or with weights that cannot be pruned.
        notes: what could not be measured or counted, and what to do about it.

    Example:
        >>> report = tfmot_asp.sparsity_report(model, batch_size=32)
        >>> print(report)
        >>> [layer.name for layer in report.layers if layer.prunable and not layer.holds]
    """

    model: str
    sparsity_m_by_n: tuple[int, int]
    layers: tuple[LayerSparsity, ...]
    input_shapes: tuple[tuple[int, ...], ...] | None = None
    multiply_adds: int | None = None
    others: tuple[OtherProduct, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def prunable(self) -> int:
        """Number of kernels that the policy would prune."""
        return sum(row.prunable for row in self.layers)

    @property
    def sparse(self) -> int:
        """Number of prunable kernels in which the pattern holds."""
        return sum(row.prunable and row.holds for row in self.layers)

    @property
    def best_now(self) -> BestCase | None:
        """With the kernels that are 2:4 now, where TensorRT can use it. None if sizes are not known."""
        return self._best_case([row for row in self.layers if row.two_four])

    @property
    def best_prunable(self) -> BestCase | None:
        """If the kernels that the policy would prune were 2:4 too."""
        return self._best_case([row for row in self.layers if row.two_four or row.prunable])

    @property
    def best_likely(self) -> BestCase | None:
        """As ``best_prunable``, of these only the kernels that are large enough for sparsity to be likely to win."""
        rows = [row for row in self.layers if row.two_four or row.prunable]
        return self._best_case([row for row in rows if row.tensorrt.gains])

    def _best_case(self, rows: Sequence[LayerSparsity]) -> BestCase | None:
        if not self.multiply_adds:
            return None
        share = sum(row.multiply_adds or 0 for row in rows if row.tensorrt.usable) / self.multiply_adds
        return BestCase(share, tensor_cores.best_case(share))

    def to_dict(self) -> dict[str, Any]:
        """The report as dicts, lists, strings and numbers."""
        rows = [{**_plain(row), "prunable": row.prunable, "holds": row.holds} for row in self.layers]
        best = {"now": self.best_now, "prunable": self.best_prunable, "likely": self.best_likely}
        return {
            "model": self.model,
            "sparsity_m_by_n": list(self.sparsity_m_by_n),
            "prunable": self.prunable,
            "sparse": self.sparse,
            "input_shapes": None if self.input_shapes is None else [list(shape) for shape in self.input_shapes],
            "multiply_adds": self.multiply_adds,
            "best_case": {name: None if case is None else asdict(case) for name, case in best.items()},
            "layers": rows,
            "others": [_plain(other) for other in self.others],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        return render(self)


def sparsity_report(
    model: Any,
    *,
    policy: Any = None,
    sparsity_m_by_n: tuple[int, int] = masks.DEFAULT_M_BY_N,
    batch_size: int | None = 1,
    input_shapes: Any = None,
) -> SparsityReport:
    """Reports for every kernel of a model whether it is sparse, if it could be, and what that can gain.

    For the gain the model is traced, which takes a second or so: the size of each kernel's matrix products, their share
    of all multiply-adds, whether the sizes suit sparse kernels, and from that a bound for the whole model. It is no
    estimate: NVIDIA's own experience is about 15 % end to end for convolutional networks, usually less
    (github.com/NVIDIA/TensorRT, issue 2310). See docs/performance.md.

    Args:
        model: a built model or layer of tf_keras or Keras 3, wrapped or not.
        policy: what decides which layers are prunable: anything with ``why(layer) -> str | None``, such as
            ``PruneForSparseTensorCores``, or with tfmot's ``allow_pruning(layer) -> bool``. By default
            ``SparseTensorCoreRule()``.
        sparsity_m_by_n: the pattern to look for.
        batch_size: number of samples that the sizes are for, where the model leaves it open. None leaves sizes out, and
            with them the trace.
        input_shapes: shapes to trace with, for models that leave theirs open (image size, number of tokens) or do not
            know them: one shape such as ``(None, 224, 224, 3)``, or a list or dict of shapes as the model is called.

    Returns:
        A ``SparsityReport``. Sizes are None, and a note says why, if shapes are open and not given or the model cannot
        be traced.

    Raises:
        TypeError: if ``policy`` or ``batch_size`` is none.
        ValueError: if ``model`` is no Keras model or layer, or not built; if ``batch_size`` is less than 1; or if the
            ``input_shapes`` that are given do not fit the model.

    Example:
        >>> print(tfmot_asp.sparsity_report(model, batch_size=32))
        layer   kind    shape        axis  zeros  2:4               kept |w|  prunable
        stem    Conv2D  3x3x3x16     2      0.0%  no, 144 of 144    77.9%     has 3 input channels; sparse Tensor ...
        conv1   Conv2D  3x3x16x32    2     50.0%  yes               100.0%    yes
    """
    m_by_n = masks.check_m_by_n(sparsity_m_by_n)
    if not layouts.is_keras_layer(model):
        raise ValueError(f"sparsity_report takes a Keras model or layer, got a {type(model).__name__}: {model!s:.80}")
    if not getattr(model, "built", True):
        raise ValueError(f"{model.name!r} is not built, so it has no kernels yet; call it on a batch first")
    policy = SparseTensorCoreRule() if policy is None else policy
    found = []
    for name, layer in layouts.all_layers(model):
        kernels = layouts.kernels_of(layer)
        reason = why_dense(policy, layer) if kernels else None
        found += [(name, kernel, reason) for kernel in kernels]
    rows = [_row(name, kernel, reason, m_by_n) for name, kernel, reason in found]
    report = SparsityReport(str(model.name), m_by_n, tuple(rows))
    if batch_size is None:
        return replace(report, notes=("GEMM sizes were left out: batch_size is None",))
    return _with_sizes(report, model, [kernel for _, kernel, _ in found], batch_size, input_shapes)


def _with_sizes(
    report: SparsityReport, model: Any, kernels: Sequence[layouts.Kernel], batch_size: int, input_shapes: Any
) -> SparsityReport:
    from tfmot_asp import sizes  # here: it imports TensorFlow

    batch_size = sizes.check_batch_size(batch_size)
    try:
        work = sizes.measure(model, kernels, batch_size, input_shapes)
    except Exception as error:  # whatever a model's own code may raise: what is known without sizes is reported
        if input_shapes is not None:
            raise
        logger.debug("no sizes for %s", report.model, exc_info=True)
        return replace(report, notes=(f"GEMM sizes are not known: {error}",))
    rows = [
        _with_work(row, kernel, gemms, work.multiply_adds)
        for row, kernel, gemms in zip(report.layers, kernels, work.gemms, strict=True)
    ]
    idle = [row.name for row in rows if not row.gemms]
    notes = [f"totals and shares are not exact: {reason}" for reason in work.uncounted]
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


def _with_work(row: LayerSparsity, kernel: layouts.Kernel, gemms: tuple[GemmSize, ...], total: int) -> LayerSparsity:
    multiply_adds = sum(size.multiply_adds for size in gemms)
    return replace(
        row,
        gemms=gemms,
        multiply_adds=multiply_adds,
        share=multiply_adds / total if total else 0.0,
        misaligned_fp16=_misaligned("fp16", kernel, gemms),
        misaligned_int8=_misaligned("int8", kernel, gemms),
    )


def _misaligned(precision: str, kernel: layouts.Kernel, gemms: Sequence[GemmSize]) -> tuple[str, ...]:
    """Of the weight, and of the worst of its calls."""
    n, k = kernel.output_size // max(1, kernel.layout.groups), kernel.reduction_size
    rows: list[int | None] = [size.m for size in gemms] or [None]
    bad = {name for m in rows for name in tensor_cores.misaligned(precision, m=m, n=n, k=k)}
    return tuple(name for name in "MNK" if name in bad)


def check_pruned_layers(model: Any, show_all: bool = False, check_structured: bool = False) -> tuple[int, int]:
    """Counts the Conv2D and Dense layers that are pruned, like TF-ASP's function of this name.

    A layer counts as pruned if its share of zeros is within 0.003 of what the 2:4 pattern gives: one half, or a little
    less where the input channels are no multiple of 4. Logs the count, at level ``SHOW_PRUNING_INFO`` (30).

    Args:
        model: a built model of tf_keras or Keras 3.
        show_all: log a line per layer as well.
        check_structured: in these lines, tell whether 2:4 really holds along the reduction axis.

    Returns:
        ``(pruned, total)``, the number of pruned layers and of all Conv2D and Dense layers.

    Raises:
        ValueError: as ``sparsity_report``.

    Example:
        >>> pruned, total = tfmot_asp.check_pruned_layers(model, show_all=True, check_structured=True)
    """
    m, n = masks.DEFAULT_M_BY_N
    pruned = total = 0
    for row in sparsity_report(model, batch_size=None).layers:
        if row.kind not in ("Conv2D", "Dense"):
            continue
        total += 1
        length = math.prod(row.shape[axis] for axis in row.reduction_axes)
        kept = length // n * (n - m) + min(n - m, length % n)
        pruned += int(kept < length and abs(row.zeros - (1 - kept / length)) < _ZERO_RATIO_TOLERANCE)
        if show_all:
            structured = f" Structured={row.holds}" if check_structured else ""
            logger.log(
                SHOW_PRUNING_INFO,
                "[TF-ASP] layer=%s, type=%s, shape=%s: zero_ratio=%f%s",
                row.name,
                row.kind,
                row.shape,
                row.zeros,
                structured,
            )
    logger.log(SHOW_PRUNING_INFO, "[TF-ASP] %d/%d layers (Conv2D or Dense) are pruned!", pruned, total)
    return pruned, total


def _row(name: str, kernel: layouts.Kernel, reason: str | None, m_by_n: tuple[int, int]) -> LayerSparsity:
    weight = np.asarray(kernel.tf_variable)
    axes = kernel.layout.reduction_axes
    stripes, violations, retained = 0, None, None
    if axes and weight.size:
        stripes = masks.stripe_count(weight.shape, axes, m_by_n)
        violations = masks.violations(weight, axes, m_by_n)
        total = float(np.sum(np.abs(weight), dtype=np.float64))
        retained = masks.retained_magnitude(weight, axes, m_by_n) / total if total else None
    same = m_by_n == masks.DEFAULT_M_BY_N
    two_four = bool(axes) and (violations if same else masks.violations(weight, axes)) == 0
    return LayerSparsity(
        name=name,
        kind=kernel.layout.kind,
        attribute=kernel.attribute,
        shape=kernel.shape,
        reduction_axes=axes,
        zeros=1 - int(np.count_nonzero(weight)) / max(1, weight.size),
        stripes=stripes,
        violations=violations,
        reason=reason,
        retained=retained,
        two_four=two_four,
        tensorrt=tensor_cores.tensorrt_verdict(kernel),
        gemms=None,
        multiply_adds=None,
        share=None,
        misaligned_fp16=_misaligned("fp16", kernel, ()),
        misaligned_int8=_misaligned("int8", kernel, ()),
    )


def _plain(record: Any) -> dict[str, Any]:
    """A record as JSON takes it, tuples as lists."""

    def lists(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: lists(item) for key, item in value.items()}
        return [lists(item) for item in value] if isinstance(value, (list, tuple)) else value

    return lists(asdict(record))
