"""The part of a sparsity report's text that is about time: of each product on a GPU, and what it makes of the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tfmot_asp.reports.document import Table
from tfmot_asp.reports.table import percent

if TYPE_CHECKING:
    from tfmot_asp.hardware.product_times import ProductTime
    from tfmot_asp.reports.sparsity_report import EstimatedGain, LayerSparsity, SparsityReport

_HEADER = ("layer", "M x N x K", "calls", "dense us", "2:4 us", "gain", "share", "faster")


def times_summary(report: SparsityReport) -> list[str]:
    """What the times of a report that has them come to."""
    now, prunable = report.gain_now, report.gain_prunable
    assert now is not None
    assert prunable is not None
    return [
        f"Estimated gain of these products, each by the faster kernel ({report.gpu}, {report.precision}):",
        f"  with what is 2:4 now                   {_gain(now)}",
        f"  if all prunable kernels were 2:4       {_gain(prunable)}",
        "Of the products alone: what lies between them takes the same time as before, so the model gains less.",
    ]


def times_table(report: SparsityReport) -> Table:
    """The times of a report that has them."""
    now, others = report.gain_now, sum(report.others_us or ())
    assert now is not None
    rows = [cells for row in report.layers for cells in _rows(row, now.dense_us)]
    title = f"Estimated microseconds on {report.gpu} in {report.precision}, dense and 2:4, of all calls"
    if not others:
        return Table(_HEADER, rows, title)
    outside = f"outside the kernels above: {_us(others)} us,{percent(others / now.dense_us, 0)}, always dense"
    return Table(_HEADER, rows, title, [outside])


def _rows(row: LayerSparsity, total: float) -> list[tuple[str, ...]]:
    """A line for each size of a kernel's products, the name in the first."""
    rows: list[tuple[str, ...]] = []
    for size, time in zip(row.gemms or (), row.times or (), strict=True):
        groups = f" x {size.groups} groups" if size.groups > 1 else ""
        share = time.dense_us / total if total else None
        rows.append(
            (
                "" if rows else row.name,
                f"{size.m} x {size.n} x {size.k}{groups}",
                str(size.calls),
                _us(time.dense_us),
                "-" if time.sparse_us is None else _us(time.sparse_us),
                "-" if time.speedup is None else f"{time.speedup:.2f}",
                percent(share),
                _faster(row, time),
            )
        )
    return rows


def _faster(row: LayerSparsity, time: ProductTime) -> str:
    if time.sparse_us is None:
        return f"dense, {row.no_sparse_kernel}" if row.no_sparse_kernel else "dense"
    return "2:4" if time.sparse_us < time.dense_us else "dense"


def _us(microseconds: float) -> str:
    return f"{microseconds:,.1f}" if microseconds < 1000 else f"{microseconds:,.0f}"


def _gain(gain: EstimatedGain) -> str:
    return f"x{gain.speedup:.2f}  ({_us(gain.dense_us)} us dense, {_us(gain.sparse_us)} us then)"
