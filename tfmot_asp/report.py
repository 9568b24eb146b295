"""How sparse a model is, layer by layer: the pattern, the zeros, and what keeps a layer dense."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tfmot_asp import layouts, masks
from tfmot_asp.eligibility import SparseTensorCoreRule

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

    @property
    def prunable(self) -> bool:
        """Whether the policy would prune the layer."""
        return self.reason is None

    @property
    def holds(self) -> bool:
        """Whether the pattern holds in every stripe."""
        return self.violations == 0


@dataclass(frozen=True)
class SparsityReport:
    """The kernels of a model. ``str()`` is a table; ``to_dict()`` is plain data for JSON.

    Attributes:
        model: name of the model.
        sparsity_m_by_n: the pattern that was checked.
        layers: one row per kernel, in the model's order.
    """

    model: str
    sparsity_m_by_n: tuple[int, int]
    layers: tuple[LayerSparsity, ...]

    @property
    def prunable(self) -> int:
        """Number of kernels that the policy would prune."""
        return sum(row.prunable for row in self.layers)

    @property
    def sparse(self) -> int:
        """Number of prunable kernels in which the pattern holds."""
        return sum(row.prunable and row.holds for row in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """The report as dicts, lists, strings and numbers."""
        m, n = self.sparsity_m_by_n
        rows = [
            {
                **asdict(row),
                "shape": list(row.shape),
                "reduction_axes": list(row.reduction_axes),
                "prunable": row.prunable,
                "holds": row.holds,
            }
            for row in self.layers
        ]
        return {
            "model": self.model,
            "sparsity_m_by_n": [m, n],
            "prunable": self.prunable,
            "sparse": self.sparse,
            "layers": rows,
        }

    def __str__(self) -> str:
        m, n = self.sparsity_m_by_n
        pattern = f"{n - m}:{n}" if 2 * m == n else f"{m} zeros in {n}"
        header = ("layer", "kind", "shape", "axis", "zeros", pattern, "kept |w|", "prunable")
        rows = [_cells(row) for row in self.layers]
        summary = (
            f"{self.model}: {self.sparse} of {self.prunable} prunable kernels are {pattern} along their reduction "
            f"axis ({len(self.layers)} kernels in all)"
        )
        return "\n".join([*align(header, rows), summary])


def sparsity_report(
    model: Any, *, policy: Any = None, sparsity_m_by_n: tuple[int, int] = masks.DEFAULT_M_BY_N
) -> SparsityReport:
    """Reports for every kernel of a model whether it is sparse, and if it could be.

    Args:
        model: a built model or layer of tf_keras or Keras 3, wrapped or not.
        policy: what decides which layers are prunable: anything with ``why(layer) -> str | None``, such as
            ``PruneForSparseTensorCores``, or with tfmot's ``allow_pruning(layer) -> bool``. By default
            ``SparseTensorCoreRule()``.
        sparsity_m_by_n: the pattern to look for.

    Returns:
        A ``SparsityReport``.

    Raises:
        ValueError: if ``model`` is no Keras model or layer, or not built.

    Example:
        >>> print(tfmot_asp.sparsity_report(model))
        layer   kind    shape        axis  zeros  2:4               kept |w|  prunable
        stem    Conv2D  3x3x3x16     2      0.0%  no, 144 of 144    77.9%     Conv2D 'stem' has 3 input channels; ...
        conv1   Conv2D  3x3x16x32    2     50.0%  yes               100.0%    yes
    """
    m_by_n = masks.check_m_by_n(sparsity_m_by_n)
    if not layouts.is_keras_layer(model):
        raise ValueError(f"sparsity_report takes a Keras model or layer, got a {type(model).__name__}: {model!s:.80}")
    if not getattr(model, "built", True):
        raise ValueError(f"{model.name!r} is not built, so it has no kernels yet; call it on a batch first")
    policy = SparseTensorCoreRule() if policy is None else policy
    rows = []
    for name, layer in layouts.all_layers(model):
        kernels = layouts.kernels_of(layer)
        reason = _reason(policy, layer) if kernels else None
        rows += [_row(name, kernel, reason, m_by_n) for kernel in kernels]
    return SparsityReport(str(model.name), m_by_n, tuple(rows))


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
    """
    m, n = masks.DEFAULT_M_BY_N
    pruned = total = 0
    for row in sparsity_report(model).layers:
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


def align(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table with columns padded to equal width, the last one left as it is."""
    table = [tuple(header), *(tuple(row) for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def _reason(policy: Any, layer: Any) -> str | None:
    if hasattr(policy, "why"):
        return policy.why(layer)
    return None if policy.allow_pruning(layer) else "the policy does not allow it"


def _row(name: str, kernel: layouts.Kernel, reason: str | None, m_by_n: tuple[int, int]) -> LayerSparsity:
    weight = np.asarray(kernel.tf_variable)
    axes = kernel.layout.reduction_axes
    stripes, violations, retained = 0, None, None
    if axes and weight.size:
        stripes = masks.stripe_count(weight.shape, axes, m_by_n)
        violations = masks.violations(weight, axes, m_by_n)
        total = float(np.sum(np.abs(weight), dtype=np.float64))
        retained = masks.retained_magnitude(weight, axes, m_by_n) / total if total else None
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
    )


def _cells(row: LayerSparsity) -> tuple[str, ...]:
    name = row.name if row.attribute in ("kernel", "_kernel") else f"{row.name}.{row.attribute}"
    if row.violations is None:
        pattern = "no reduction axis"
    else:
        pattern = "yes" if row.holds else f"no, {row.violations:,} of {row.stripes:,}"
    return (
        name,
        row.kind,
        "x".join(map(str, row.shape)),
        ",".join(map(str, row.reduction_axes)) or "-",
        f"{100 * row.zeros:5.1f}%",
        pattern,
        "-" if row.retained is None else f"{100 * row.retained:5.1f}%",
        "yes" if row.reason is None else row.reason,
    )
