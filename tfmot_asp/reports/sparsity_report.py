"""The tables of a sparsity report: what is sparse, and what it can gain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tfmot_asp.hardware import libraries
from tfmot_asp.pattern import Pattern
from tfmot_asp.reason import Reason
from tfmot_asp.reports.document import Document, Table
from tfmot_asp.reports.plain_data import plain
from tfmot_asp.reports.readable import Report
from tfmot_asp.reports.table import axes_of, count_of, percent, sizes_of
from tfmot_asp.reports.times_table import times_summary, times_table

if TYPE_CHECKING:
    from tfmot_asp.graph.kernel_work import OtherProduct
    from tfmot_asp.graph.products import GemmSize
    from tfmot_asp.hardware.product_times import ProductTime

_NOTES = 8


@dataclass(frozen=True)
class LayerSparsity:
    """One kernel of a model.

    Attributes:
        name: of the kernel, unique in the model: its layer's, with the attribute if the layer has several.
        kind: Keras class whose layout the kernel follows.
        attribute: which kernel of the layer.
        shape: of the kernel.
        reduction_axes: axes that the pattern runs along; empty for depthwise kernels, which have none.
        zeros: share of weights that are exactly zero, 0 to 1.
        stripes: number of stripes in which the pattern asks for zeros; 0 if it asks for none, of one or two inputs.
        violations: those with more nonzeros than the pattern keeps; None without a reduction axis.
        why: why the policy keeps the layer dense, or the pattern asks for no zeros in this kernel of a layer that
            it does not; None if it is prunable.
        retained: share of the kernel's magnitude that the pattern's mask keeps, 0 to 1: 1 if the pattern holds, and
            what one-shot pruning would keep if not. None without a reduction axis, and for an all-zero kernel.
        two_four: whether 2:4 asks for zeros and holds in every stripe, the one pattern that sparse Tensor Cores run,
            whichever pattern the report is about.
        tensorrt: whether TensorRT has a sparse kernel for it, and if not, why and by which rule.
        gemms: sizes of its products, one call's each; empty if the model does not use the kernel, None if not known.
        multiply_adds: of all its products; None if not known.
        share: of the model's multiply-adds, 0 to 1; None if not known.
        misaligned_fp16: which of M, N and K are no multiples of what cuSPARSELt's sparse fp16 kernels ask for. M, the
            positions, can be padded with little loss, N and K are the weight's.
        misaligned_int8: the same for int8.
        no_sparse_kernel: why there is no 2:4 kernel for it on the GPU that times are estimated for; None if there is.
        times: estimated times of its products, in the order of ``gemms``; None without a GPU to estimate for.
    """

    name: str
    kind: str
    attribute: str
    shape: tuple[int, ...]
    reduction_axes: tuple[int, ...]
    zeros: float
    stripes: int
    violations: int | None
    why: Reason | None
    retained: float | None
    two_four: bool
    tensorrt: libraries.TensorRTVerdict
    gemms: tuple[GemmSize, ...] | None
    multiply_adds: int | None
    share: float | None
    misaligned_fp16: tuple[str, ...]
    misaligned_int8: tuple[str, ...]
    no_sparse_kernel: str | None = None
    times: tuple[ProductTime, ...] | None = None

    @property
    def dense_us(self) -> float | None:
        """Microseconds of all its products with dense kernels; None without a GPU to estimate for."""
        return None if self.times is None else sum(time.dense_us for time in self.times)

    @property
    def sparse_us(self) -> float | None:
        """The same with 2:4 kernels; None if there are none for it."""
        times = [time.sparse_us for time in self.times or () if time.sparse_us is not None]
        return sum(times) if times else None

    @property
    def speedup(self) -> float | None:
        """How many times as fast its products are with 2:4 kernels; below 1 they are slower."""
        return self.dense_us / self.sparse_us if self.dense_us and self.sparse_us else None

    @property
    def prunable(self) -> bool:
        """Whether the policy would prune the kernel."""
        return self.why is None

    @property
    def reason(self) -> str | None:
        """``why`` as a sentence."""
        return None if self.why is None else str(self.why)

    @property
    def holds(self) -> bool:
        """Whether the pattern asks for zeros, and holds in every stripe."""
        return self.stripes > 0 and self.violations == 0


@dataclass(frozen=True)
class BestCase:
    """What sparse Tensor Cores can make of a model at best. See ``libraries.best_case``.

    Attributes:
        share: of the model's multiply-adds that they can do, 0 to 1.
        speedup: by Amdahl's law, if that share takes half the time.
    """

    share: float
    speedup: float


@dataclass(frozen=True)
class EstimatedGain:
    """What the products of a model take on a GPU, by ``hardware.estimate``. What lies between them comes on top.

    Attributes:
        dense_us: microseconds with dense kernels.
        sparse_us: with the 2:4 kernel where there is one and it is faster, and the dense one elsewhere.
    """

    dense_us: float
    sparse_us: float

    @property
    def speedup(self) -> float:
        """How many times as fast the products are."""
        return self.dense_us / self.sparse_us if self.sparse_us else 1.0


@dataclass(frozen=True)
class SparsityReport(Report):
    """The kernels of a model. ``str()`` is a table; ``to_dict()`` is plain data for JSON.

    Attributes:
        model: name of the model.
        sparsity_m_by_n: the pattern that was checked.
        layers: one row per kernel, in the model's order.
        input_shapes: shapes of the model's inputs that the sizes are for; None if the sizes are not known.
        multiply_adds: of the whole model, for these inputs; None if not known.
        others: products of no kernel above: of two activations, or with weights that cannot be pruned.
        notes: what could not be measured or counted, and what to do about it.
        gpu: name of the GPU that times are estimated for; None if none was given.
        precision: that they are estimated in.
        others_us: microseconds of each of ``others`` there.

    Example:
        >>> report = tfmot_asp.sparsity_report(model, batch_size=32)
        >>> print(report)
        >>> [layer.name for layer in report.layers if layer.prunable and not layer.holds]
    """

    model: str
    sparsity_m_by_n: Pattern
    layers: tuple[LayerSparsity, ...]
    input_shapes: tuple[tuple[int, ...], ...] | None = None
    multiply_adds: int | None = None
    others: tuple[OtherProduct, ...] = ()
    notes: tuple[str, ...] = ()
    gpu: str | None = None
    precision: str | None = None
    others_us: tuple[float, ...] | None = None

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
        return BestCase(share, libraries.best_case(share))

    @property
    def gain_now(self) -> EstimatedGain | None:
        """Of the model's products with the kernels that are 2:4 now. None without a GPU, or if sizes are not known."""
        return self._gain([row for row in self.layers if row.two_four])

    @property
    def gain_prunable(self) -> EstimatedGain | None:
        """If the kernels that the policy would prune were 2:4 too."""
        return self._gain([row for row in self.layers if row.two_four or row.prunable])

    def _gain(self, rows: Sequence[LayerSparsity]) -> EstimatedGain | None:
        if self.others_us is None:
            return None
        dense = sum(self.others_us) + sum(row.dense_us or 0.0 for row in self.layers)
        saved = sum(time.dense_us - time.best_us for row in rows for time in row.times or ())
        return EstimatedGain(dense, dense - saved)

    def to_dict(self) -> dict[str, Any]:
        """The report as dicts, lists, strings and numbers."""
        gains = {"now": self.gain_now, "prunable": self.gain_prunable}
        best = {"now": self.best_now, "prunable": self.best_prunable, "likely": self.best_likely}
        return {
            "model": self.model,
            "sparsity_m_by_n": list(self.sparsity_m_by_n),
            "prunable": self.prunable,
            "sparse": self.sparse,
            "input_shapes": None if self.input_shapes is None else [list(shape) for shape in self.input_shapes],
            "multiply_adds": self.multiply_adds,
            "best_case": {name: None if case is None else asdict(case) for name, case in best.items()},
            "gpu": self.gpu,
            "precision": self.precision,
            "estimated": {
                name: None if gain is None else {**asdict(gain), "speedup": gain.speedup}
                for name, gain in gains.items()
            },
            "layers": [_row_data(row) for row in self.layers],
            "others": [
                {**plain(other), "dense_us": dense_us}
                for other, dense_us in zip(self.others, self.others_us or (None,) * len(self.others), strict=True)
            ],
            "notes": list(self.notes),
        }

    def document(self) -> Document:
        return render(self)


def _row_data(row: LayerSparsity) -> dict[str, Any]:
    data = {**plain(row), "reason": row.reason, "prunable": row.prunable, "holds": row.holds}
    data |= {"dense_us": row.dense_us, "sparse_us": row.sparse_us, "speedup": row.speedup}
    if row.times is not None:
        data["times"] = [{**plain(time), "speedup": time.speedup} for time in row.times]
    del data["why"]  # the reason in its parts
    return data


def render(report: SparsityReport) -> Document:
    """The report for reading: a table of the pattern, one of sizes with bounds for the model, one of times if any."""
    pattern = str(report.sparsity_m_by_n)
    header = ("layer", "kind", "shape", "axis", "zeros", pattern, "kept |w|", "prunable")
    lines = [
        f"{report.model}: {report.sparse} of {report.prunable} prunable kernels are {pattern} along their reduction "
        f"axis ({len(report.layers)} kernel{'s' * (len(report.layers) != 1)} in all)"
    ]
    tables = [Table(header, [_pattern_cells(row) for row in report.layers])]
    if report.multiply_adds is not None:
        lines += _summary(report)
        tables.append(_sizes(report))
    if report.gain_now is not None:
        lines += times_summary(report)
        tables.append(times_table(report))
    lines += [f"Note: {note}" for note in report.notes[:_NOTES]]
    if len(report.notes) > _NOTES:
        lines.append(f"Note: and {len(report.notes) - _NOTES} more, see .notes")
    return Document(lines, tables)


def _pattern_cells(row: LayerSparsity) -> tuple[str, ...]:
    if row.violations is None:
        pattern = "no reduction axis"
    elif not row.stripes:
        pattern = "small"
    else:
        pattern = "yes" if row.holds else f"no, {row.violations:,} of {row.stripes:,}"
    prunable = "yes" if row.why is None else row.why.why
    shape, axes = sizes_of(row.shape), axes_of(row.reduction_axes)
    return (row.name, row.kind, shape, axes, percent(row.zeros), pattern, percent(row.retained), prunable)


def _sizes(report: SparsityReport) -> Table:
    """The table of sizes. Sources of its rules stand below it, by number."""
    sources: dict[str, int] = {}

    def cite(source: str) -> str:
        return f"[{sources.setdefault(source, len(sources) + 1)}]"

    header = ["layer", "M", "N", "K", "groups", "calls", "multiply-adds", "share"]
    header += [f"{precision} {cite(libraries.CUSPARSELT)}" for precision in ("fp16", "int8")]
    header.append("sparse kernel in TensorRT")
    rows = [cells for row in report.layers for cells in _size_rows(row, cite)]
    shapes = ", ".join(f"({', '.join(map(str, shape))})" for shape in report.input_shapes or ())
    title = f"Matrix products, M x N with sums over K, for inputs of shape {shapes}"
    return Table(header, rows, title, [f"[{number}] {source}" for source, number in sources.items()])


def _size_rows(row: LayerSparsity, cite: Callable[[str], str]) -> list[tuple[str, ...]]:
    """A line for each size of a kernel's products; the first has what holds for all of them."""
    sizes = [(size.m, size.n, size.k, size.groups, size.calls) for size in row.gemms or ()] or [(*"----", 0)]
    verdict = row.tensorrt
    answer = "yes" if verdict.usable else "no"
    if verdict.reason:
        answer += f", {verdict.reason} {cite(verdict.source)}"
    work = (count_of(row.multiply_adds or 0), percent(row.share or 0))
    sides = (row.misaligned_fp16, row.misaligned_int8)
    whole = (*work, *(_alignment(bad) if row.reduction_axes else "-" for bad in sides), answer)
    names, wholes = (row.name, *("",) * (len(sizes) - 1)), (whole, *(("",) * len(whole),) * (len(sizes) - 1))
    return [(name, *map(str, size), *rest) for name, size, rest in zip(names, sizes, wholes, strict=True)]


def _alignment(bad: Sequence[str]) -> str:
    of_weight = [name for name in bad if name != "M"]
    return f"no: {' '.join(of_weight)}" if of_weight else "pad M" if bad else "yes"


def _summary(report: SparsityReport) -> list[str]:
    total = report.multiply_adds or 0
    lines = [f"{report.model}: {count_of(total)} multiply-adds"]
    reasons: dict[str, list[int]] = {}
    for other in report.others:
        reasons.setdefault(other.reason, []).append(other.multiply_adds)
    for reason, works in reasons.items():
        share = sum(works) / total if total else 0.0
        lines.append(f"  {100 * share:.1f}% outside the kernels above, in {reason}: {len(works)}")
    if report.best_now and report.best_prunable and report.best_likely:
        lines += [
            "Best case on sparse Tensor Cores (fp16 or int8; Amdahl's law, with half the time for what they do):",
            f"  with what is 2:4 now                   {_bound(report.best_now)}",
            f"  if all prunable kernels were 2:4       {_bound(report.best_prunable)}",
            f"  of these, likely large enough to gain  {_bound(report.best_likely)}",
            "A bound, no estimate: time is not multiply-adds, and TensorRT times both kernels and takes the faster.",
            f"NVIDIA's experience is 15% end to end with convolutions, usually less: {libraries.END_TO_END}",
        ]
    return lines


def _bound(case: BestCase) -> str:
    return f"x{case.speedup:.2f}  ({100 * case.share:.1f}% of multiply-adds)"
