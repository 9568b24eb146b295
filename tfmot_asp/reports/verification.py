"""Whether the sparsity pattern is in a written file, product by product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tfmot_asp.pattern import Pattern
from tfmot_asp.reports.document import Document, Table
from tfmot_asp.reports.plain_data import plain
from tfmot_asp.reports.readable import Report
from tfmot_asp.reports.table import Marked, axes_of, percent, sizes_of

_BAD = ("broken", "unreadable")


@dataclass(frozen=True)
class VerifiedLayer:
    """One weight of a written model, and the matrix products that read it.

    Attributes:
        name: of the variable or constant that holds the weight.
        op: name of the op that multiplies with it, the first if several do.
        type: of that op, as its format calls it: ``MatMul``, ``Conv``, ``FULLY_CONNECTED``, ...
        shape: of the weight as the op reads it.
        reduction_axes: its axes that the product sums over.
        zeros: share of weights that are exactly zero, 0 to 1.
        stripes: number of stripes in which the pattern asks for zeros.
        violations: stripes with more nonzeros than the pattern keeps; None without a reduction axis or a weight.
        status: ``"sparse"`` if the pattern holds; ``"broken"`` if it holds in half of the stripes or more but not in
            all; ``"dense"`` if in fewer; ``"small"`` if stripes are too short for the pattern to ask for zeros;
            ``"depthwise"`` without a reduction axis; ``"unreadable"`` if the weight could not be computed.
        reason: what keeps TensorRT from a sparse kernel for it, by the rule of ``sparsity_report``, or why it is
            unreadable; None otherwise.
        eligible: whether TensorRT said it could run all of its ops sparse; None before ``parse_tensorrt_log``.
        picked: whether TensorRT chose to, by timing; None before ``parse_tensorrt_log``.
        more_ops: names of further ops that multiply with it: a layer that is called several times.
    """

    name: str
    op: str
    type: str
    shape: tuple[int, ...]
    reduction_axes: tuple[int, ...]
    zeros: float
    stripes: int
    violations: int | None
    status: str
    reason: str | None
    eligible: bool | None = None
    picked: bool | None = None
    more_ops: tuple[str, ...] = ()

    @property
    def ops(self) -> tuple[str, ...]:
        """All ops that multiply with it."""
        return (self.op, *self.more_ops)

    @property
    def note(self) -> str:
        """The reason as text, empty if there is none."""
        return self.reason or ""

    @property
    def holds(self) -> bool:
        """Whether the pattern holds in every stripe, and asks for zeros at all."""
        return self.status == "sparse"


@dataclass(frozen=True)
class VerificationReport(Report):
    """What ``verify`` found. ``str()`` is a table; ``to_dict()`` is plain data for JSON.

    Attributes:
        path: of the file.
        sparsity_m_by_n: the pattern that was checked.
        layers: one row per constant weight of matrix products.
        notes: what else there is to say about the file: its size, the command that uses it.
    """

    path: str
    sparsity_m_by_n: Pattern
    layers: tuple[VerifiedLayer, ...]
    notes: tuple[str, ...] = ()

    @property
    def sparse(self) -> int:
        """Number of layers in which the pattern holds."""
        return sum(layer.holds for layer in self.layers)

    @property
    def ok(self) -> bool:
        """Whether some layer is sparse, none is broken, and all weights could be read.

        A dense layer is no failure: policies keep layers dense. Whether a layer that was to be sparse is dense shows in
        its row.
        """
        return self.sparse > 0 and not any(layer.status in _BAD for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """The report as dicts, lists, strings and numbers."""
        return {
            "path": self.path,
            "sparsity_m_by_n": list(self.sparsity_m_by_n),
            "ok": self.ok,
            "sparse": self.sparse,
            "layers": [{**plain(layer), "holds": layer.holds} for layer in self.layers],
            "notes": list(self.notes),
        }

    def document(self) -> Document:
        # TensorRT's columns, once its log was read.
        read = any(layer.eligible is not None for layer in self.layers)
        answers = {None: "-", True: "yes", False: "no"}
        tensorrt = [(answers[layer.eligible], answers[layer.picked]) if read else () for layer in self.layers]
        columns = ("eligible", "picked") if read else ()
        header = ("weight", "op", "shape", "axis", "zeros", "status", "violations", *columns, "why not")
        rows = [
            (
                layer.name,
                layer.type,
                sizes_of(layer.shape),
                axes_of(layer.reduction_axes),
                percent(layer.zeros),
                Marked(layer.status, "bad") if layer.status in _BAD else layer.status,
                "-" if not layer.stripes else f"{layer.violations:,} of {layer.stripes:,}",
                *answer,
                layer.reason or "",
            )
            for layer, answer in zip(self.layers, tensorrt, strict=True)
        ]
        verdict = "ok" if self.ok else "NOT ok"
        summary = f"{self.path}: {self.sparse} of {len(self.layers)} weights are {self.sparsity_m_by_n}; {verdict}"
        return Document([Marked(summary, "good" if self.ok else "bad"), *self.notes], [Table(header, rows)])
