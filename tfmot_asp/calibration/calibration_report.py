"""What pruning with data did: per kernel, and to the model's outputs."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from tfmot_asp.reports.document import Document, Table
from tfmot_asp.reports.plain_data import plain
from tfmot_asp.reports.readable import Report


@dataclasses.dataclass(frozen=True)
class CalibratedKernel:
    """One kernel in a calibration.

    Attributes:
        name, kind: of its layer.
        rows: how many rows of its input were looked at; 0 if its inputs could not be followed.
        error_before: relative error of the outputs of its product, on the data, with the mask by magnitude; None if
            not known.
        error_after: the same with the mask and weights that it got.
        seconds: that its step took.
        note: what was done otherwise than asked for, and why; None if nothing was.
    """

    name: str
    kind: str
    rows: int
    error_before: float | None
    error_after: float | None
    seconds: float
    note: str | None = None


@dataclasses.dataclass(frozen=True)
class OutputChange:
    """How an output of the model changed on the data, from dense to pruned.

    Attributes:
        name: of the output.
        relative: norm of the change, relative to that of the dense output.
        correlation: between dense and pruned values.
        agreement: share of positions at which the last axis has its largest value at the same place; for whole numbers
            the share that is equal; None for an output of one channel.
    """

    name: str
    relative: float
    correlation: float
    agreement: float | None


@dataclasses.dataclass(frozen=True)
class CalibrationReport(Report):
    """What pruning with data did; ``print`` it for a table.

    Attributes:
        method, effort: as asked for.
        samples, batches: how much data there was.
        kernels: in order of execution.
        outputs: of the model.
        batch_norms: how many batch normalizations got other statistics.
        batch_norm: "relative" or "absolute".
        seconds: in all.
        distillation: relative error of the outputs before and after the distillation; None if there was none.
    """

    method: str
    effort: str
    samples: int
    batches: int
    kernels: tuple[CalibratedKernel, ...]
    outputs: tuple[OutputChange, ...]
    batch_norms: int
    batch_norm: str
    seconds: float
    distillation: tuple[float, float] | None = None

    def document(self) -> Document:
        rows = [
            (k.name, k.kind, f"{k.rows:,}" if k.rows else "-", *map(_share, (k.error_before, k.error_after)))
            + (f"{k.seconds:.1f}", k.note or "")
            for k in self.kernels
        ]
        counted = f"{self.samples:,} samples in {self.batches:,} batches"
        lines = [f"Pruned by {self.method} ({self.effort}) on {counted}, {self.seconds:.0f} s"]
        for out in self.outputs:
            agreement = "" if out.agreement is None else f", largest at the same place {out.agreement:.1%}"
            lines.append(
                f"output {out.name}: changed by {_share(out.relative)}, correlation {out.correlation:.4f}{agreement}"
            )
        if self.batch_norms:
            lines.append(f"statistics of {self.batch_norms} batch normalizations moved ({self.batch_norm})")
        if self.distillation is not None:
            before, after = self.distillation
            lines.append(f"distillation: error of the outputs {_share(before)} -> {_share(after)}")
        lines.append("These numbers are of the calibration data; accuracy is measured on other data.")
        header = ("layer", "kind", "rows", "error by magnitude", "error now", "s", "note")
        return Document(lines, [Table(header, rows)])

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data, for JSON."""
        data = plain(self)
        return {"layers" if key == "kernels" else key: value for key, value in data.items()}


def _share(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.2%}"


class OutputComparison:
    """Compares an output of two models over batches."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._sums = np.zeros(6)  # of 1, a, b, a², b², ab
        self._difference = 0.0
        self._agreeing = self._positions = 0

    def add(self, dense: np.ndarray, pruned: np.ndarray) -> None:
        """Adds a batch of the output, of either model."""
        if dense.dtype.kind not in "fiub" and dense.dtype.name != "bfloat16":
            return
        if dense.dtype.kind in "iub":
            self._agreeing += int((dense == pruned).sum())
            self._positions += dense.size
        elif dense.ndim > 1 and dense.shape[-1] > 1:
            same = dense.argmax(-1) == pruned.argmax(-1)
            self._agreeing += int(same.sum())
            self._positions += same.size
        a, b = (np.asarray(value, np.float64).reshape(-1) for value in (dense, pruned))
        self._difference += float(((a - b) ** 2).sum())
        self._sums += [a.size, a.sum(), b.sum(), a @ a, b @ b, a @ b]

    def result(self) -> OutputChange:
        """The change over all batches."""
        n, a, b, aa, bb, ab = self._sums
        if not n:
            return OutputChange(self.name, math.nan, math.nan, None)
        spread = math.sqrt(max(0.0, aa - a * a / n) * max(0.0, bb - b * b / n))
        relative = math.sqrt(self._difference / aa) if aa else (0.0 if not self._difference else math.inf)
        correlation = (ab - a * b / n) / spread if spread else (1.0 if not self._difference else math.nan)
        return OutputChange(
            self.name, relative, float(correlation), self._agreeing / self._positions if self._positions else None
        )
