"""The tables of a sparsity report: what is sparse, and what it can gain."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tfmot_asp import tensor_cores

if TYPE_CHECKING:
    from tfmot_asp.report import BestCase, LayerSparsity, SparsityReport

_WIDTH = 150
_NAME_WIDTH = 48
_NOTES = 8
_TITLE = re.compile(r"^\w+ '[^']*':? (?:is )?")  # what a reason starts with; the first columns of its row say the same


def align(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table with columns padded to equal width, the last one left as it is."""
    table = [tuple(header), *(tuple(row) for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def render(report: SparsityReport) -> str:
    """The report as text: a table of the pattern, then a table of sizes with the bounds for the whole model."""
    m, n = report.sparsity_m_by_n
    pattern = f"{n - m}:{n}" if 2 * m == n else f"{m} zeros in {n}"
    header = ("layer", "kind", "shape", "axis", "zeros", pattern, "kept |w|", "prunable")
    whole = align(header, [_pattern_cells(row) for row in report.layers])
    lines = [*map(_shortened, whole), *_cut_reasons(report, whole)]
    lines.append(
        f"{report.model}: {report.sparse} of {report.prunable} prunable kernels are {pattern} along their reduction "
        f"axis ({len(report.layers)} kernels in all)"
    )
    if report.multiply_adds is not None:
        lines += ["", *_sizes(report)]
    lines += [f"Note: {note}" for note in report.notes[:_NOTES]]
    if len(report.notes) > _NOTES:
        lines.append(f"Note: and {len(report.notes) - _NOTES} more, see .notes")
    return "\n".join(lines)


def _shortened(line: str) -> str:
    return line if len(line) <= _WIDTH else f"{line[: _WIDTH - 3].rstrip()}..."


def _cut_reasons(report: SparsityReport, lines: Sequence[str]) -> list[str]:
    """The reasons that did not fit into the table, each once, with the first layer that has it."""
    layers: dict[str, list[str]] = {}
    for row, line in zip(report.layers, lines[1:], strict=True):
        if row.reason is not None and len(line) > _WIDTH:
            layers.setdefault(_TITLE.sub("", row.reason), []).append(_name(row))
    written = []
    for reason, names in layers.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        written += textwrap.wrap(f"{names[0]}{more}: {reason}", _WIDTH, subsequent_indent="  ")
    return ["Not prunable:", *written] if written else []


def _name(row: LayerSparsity) -> str:
    name = row.name if row.attribute in ("kernel", "_kernel") else f"{row.name}.{row.attribute}"
    if len(name) <= _NAME_WIDTH:
        return name
    end = (_NAME_WIDTH - 3) // 2
    return f"{name[: _NAME_WIDTH - 3 - end]}...{name[-end:]}"  # what tells names apart is at either end


def _pattern_cells(row: LayerSparsity) -> tuple[str, ...]:
    if row.violations is None:
        pattern = "no reduction axis"
    else:
        pattern = "yes" if row.holds else f"no, {row.violations:,} of {row.stripes:,}"
    return (
        _name(row),
        row.kind,
        "x".join(map(str, row.shape)),
        ",".join(map(str, row.reduction_axes)) or "-",
        f"{100 * row.zeros:5.1f}%",
        pattern,
        "-" if row.retained is None else f"{100 * row.retained:5.1f}%",
        "yes" if row.reason is None else _TITLE.sub("", row.reason),
    )


def _sizes(report: SparsityReport) -> list[str]:
    sources: list[str] = []  # those that a row refers to, by number

    def cite(source: str) -> str:
        if source not in sources:
            sources.append(source)
        return f"[{sources.index(source) + 1}]"

    header = (
        "layer", "M", "N", "K", "groups", "calls", "multiply-adds", "share", f"fp16 {cite(tensor_cores.CUSPARSELT)}",
        "int8 [1]", "sparse kernel in TensorRT",
    )  # fmt: skip
    rows = []
    for row in report.layers:
        verdict = row.tensorrt
        answer = "yes" if verdict.usable else "no"
        if verdict.reason:
            answer += f", {verdict.reason} {cite(verdict.source)}"
        work = (count_of(row.multiply_adds or 0), f"{100 * (row.share or 0):5.1f}%")
        sides = (row.misaligned_fp16, row.misaligned_int8)
        aligned = [_alignment(bad) if row.reduction_axes else "-" for bad in sides]
        gemms = row.gemms or ()
        first = [str(value) for size in gemms[:1] for value in (size.m, size.n, size.k, size.groups, size.calls)]
        rows.append((_name(row), *(first or ["-", "-", "-", "-", "0"]), *work, *aligned, answer))
        rows += [
            ("", *(str(value) for value in (size.m, size.n, size.k, size.groups, size.calls)), "", "", "", "", "")
            for size in gemms[1:]
        ]
    shapes = ", ".join(f"({', '.join(map(str, shape))})" for shape in report.input_shapes or ())
    lines = [f"Matrix products, M x N with sums over K, for inputs of shape {shapes}", *align(header, rows)]
    lines += [f"[{number}] {source}" for number, source in enumerate(sources, 1)]
    return [*lines, *_summary(report)]


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
            f"  of these, large enough to gain likely  {_bound(report.best_likely)}",
            "A bound, no estimate: time is not multiply-adds, and TensorRT times both kernels and takes the faster.",
            f"NVIDIA's experience is 15% end to end with convolutions, usually less: {tensor_cores.END_TO_END}",
        ]
    return lines


def _bound(case: BestCase) -> str:
    return f"x{case.speedup:.2f}  ({100 * case.share:.1f}% of multiply-adds)"


def count_of(number: int) -> str:
    """A large number for reading: ``3.86 G``."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}" if number < 1000 * size else f"{number / size:,.0f} {unit}"
    return str(number)
