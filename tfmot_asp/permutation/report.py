"""What a permutation did: per layer and per group, to read, to store, and to apply to an identical model elsewhere."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfmot_asp.files import replacing
from tfmot_asp.pattern import Pattern
from tfmot_asp.permutation.picture.drawn import Outline
from tfmot_asp.permutation.picture.plot import Picture, plot
from tfmot_asp.reports.document import Document, Table
from tfmot_asp.reports.readable import Report
from tfmot_asp.reports.table import percent
from tfmot_asp.types import InputShapes, Policy

if TYPE_CHECKING:
    from tfmot_asp.permutation.plan import ModelPlan
    from tfmot_asp.permutation.reorder import Moves
    from tfmot_asp.permutation.search import SearchResult

logger = logging.getLogger(__name__)

FORMAT = "tfmot_asp permutation 1"
_MUCH = 1 << 30  # bytes of memory that are worth a line


@dataclasses.dataclass(frozen=True)
class LayerEntry:
    """One layer with a kernel.

    Attributes:
        name: of the layer, with its path where names clash.
        kind: "Dense", "Conv2D", ...
        status: "permuted", "partly permuted" (some input channels must stay), "unchanged" (its input channels can move,
            but no order was found that keeps more), "fixed" (prunable, but none of its input channels can move) or
            "dense" (the policy does not prune it).
        reason: why some or all input channels stay, or why the layer is not pruned; None if all are permuted.
        size: length of the reduction axis.
        movable: how many of its positions could be reordered.
        retained_before: share of the kernel's magnitude that the mask keeps in the given order, in [0, 1].
        retained_after: the same in the new order.
    """

    name: str
    kind: str
    status: str
    reason: str | None = None
    size: int | None = None
    movable: int | None = None
    retained_before: float | None = None
    retained_after: float | None = None


@dataclasses.dataclass(frozen=True)
class GroupEntry:
    """One permutation group.

    Attributes:
        name: of the first layer whose input channels it orders.
        size: number of channels.
        layers: names of all layers whose input channels it orders.
        order: the new order: place i takes what channel `order[i]` had; a permutation of range(size).
        retained_before: sum of absolute weights kept in the given order, over the rows that were searched; None for an
            order that was found elsewhere, or together with that of other groups in the same stripes.
        retained_after: the same in the new order.
        efficacy: how much of what could be regained was (Pool & Yu, NeurIPS 2021), percent.
    """

    name: str
    size: int
    layers: tuple[str, ...]
    order: tuple[int, ...]
    retained_before: float | None
    retained_after: float | None
    efficacy: float | None


@dataclasses.dataclass(frozen=True)
class PermutationReport(Report):
    """The result of :func:`tfmot_asp.permute`. `str()` is a table.

    Attributes:
        layers: every layer with a kernel, in model order.
        groups: the permutation groups.
        sparsity_m_by_n: the pattern that was searched for.
        max_change: largest change of an output relative to its largest value, as measured; None if not verified.
        fingerprint: what :meth:`apply_to` compares.
        output_orders: with `outputs="free"`, for each output of the model where the channels on its last axis come
            from, `new[..., i] = old[..., order[i]]`; None where they stay. `tf.gather(new, np.argsort(order), axis=-1)`
            undoes it. Empty if outputs were pinned.
        memory: bytes that `permute` needed at most beside the model, as planned; None if not known.
        outline: what :meth:`plot` draws: the model's ops as plain data, about 150 bytes each; None if not known.

    Example:
        >>> report = tfmot_asp.permute(model)
        >>> report.save("permutation.json")
        >>> tfmot_asp.PermutationReport.load("permutation.json").apply_to(another_copy_of_the_model)
    """

    layers: tuple[LayerEntry, ...]
    groups: tuple[GroupEntry, ...]
    sparsity_m_by_n: Pattern
    max_change: float | None
    fingerprint: dict[str, Any] = dataclasses.field(repr=False)
    outline: Outline | None = dataclasses.field(default=None, repr=False)
    output_orders: tuple[tuple[int, ...] | None, ...] = dataclasses.field(default=(), repr=False)
    memory: int | None = None

    @property
    def prunable(self) -> int:
        """Number of kernels that the policy prunes."""
        return sum(layer.status != "dense" for layer in self.layers)

    @property
    def permuted(self) -> int:
        """Number of those whose input channels have another order now, wholly or partly."""
        return sum(layer.status in ("permuted", "partly permuted") for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Plain data: what :meth:`save` writes."""
        data = dataclasses.asdict(dataclasses.replace(self, outline=None))
        data["outline"] = self.outline.to_dict() if self.outline is not None else None
        return {"format": FORMAT, "permuted": self.permuted, "prunable": self.prunable, **data}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the report, with the orders, as JSON (RFC 8259: no NaN)."""
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False)
        with replacing(Path(path), overwrite=True, what="a report") as written:
            written.write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PermutationReport:
        """Reads a report written by :meth:`save`.

        Raises:
            ValueError: if the file is not such a report.
        """
        try:
            with open(path, encoding="utf-8") as file:
                data = json.load(file)
            if data["format"] != FORMAT:
                raise KeyError("format")
            groups = tuple(
                GroupEntry(**{**g, "layers": tuple(g["layers"]), "order": tuple(g["order"])}) for g in data["groups"]
            )
            for group in groups:
                if sorted(group.order) != list(range(group.size)):
                    raise ValueError(f"the order of group {group.name!r} is not a permutation")
            return cls(
                layers=tuple(LayerEntry(**entry) for entry in data["layers"]),
                groups=groups,
                sparsity_m_by_n=Pattern.of(data["sparsity_m_by_n"]),
                max_change=data["max_change"],
                fingerprint=data["fingerprint"],
                outline=Outline.from_dict(data["outline"]) if data.get("outline") else None,
                output_orders=tuple(None if o is None else tuple(o) for o in data.get("output_orders", ())),
                memory=data.get("memory"),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{os.fspath(path)} is not a report saved by tfmot_asp {FORMAT!r}: {error}") from error

    def plot(self, path: str | os.PathLike[str] | None = None) -> Picture | None:
        """Draws the model's ops: what was permuted, what carries the permutation, and what blocked the rest.

        Needs no model: a report that was saved and loaded draws the same picture.

        Args:
            path: ends in .png, .svg or .pdf, for which Graphviz must be installed, or in .dot (its input).

        Returns:
            Without a path, a picture that notebooks show; else None.

        Raises:
            ValueError: if the suffix is another, or the report knows no ops.
            FileNotFoundError, ImportError, RuntimeError: if the folder, pydot or Graphviz is missing.

        Example:
            >>> tfmot_asp.PermutationReport.load("resnet50.json").plot("resnet50.svg")
        """
        if self.outline is None:
            raise ValueError("this report carries no outline of its model to draw: make it anew with tfmot_asp.permute")
        if path is None:
            return Picture(self.outline)
        plot(self.outline, path)
        return None

    def apply_to(
        self,
        model: Any,
        *,
        policy: Policy | None = None,
        input_shapes: InputShapes | None = None,
        verify: bool = True,
        optimizer: Any = None,
    ) -> PermutationReport:
        """Reorders an identical model as this one was, without a search.

        Args:
            model: built alike and holding the same weights as the model that the report is of had before.
            policy: as it was given to `permute`.
            input_shapes: as for `permute`.
            verify: run the model before and after, as `permute` does.
            optimizer: as for `permute`.

        Returns:
            The report of that model.

        Raises:
            ValueError: if the model differs; the error names the difference. The model is as it was.
        """
        from tfmot_asp.permutation.plan import plan_model

        plan = plan_model(
            model,
            policy=policy,
            input_shapes=input_shapes,
            sparsity_m_by_n=self.sparsity_m_by_n,
            outputs="free" if self.output_orders else "pinned",
            merged={int(v): tuple(map(tuple, runs)) for v, runs in self.fingerprint.get("merged", {}).items()},
        )
        return finish(plan, model, self.orders_for(plan), verify=verify, optimizer=optimizer)

    def orders_for(self, plan: ModelPlan) -> list[np.ndarray]:
        """The orders of a plan's groups; raises ValueError if it is of another model, naming the first difference."""
        _check_same(self.fingerprint, plan.fingerprint())
        return [np.asarray(group.order, np.int64) for group in self.groups]

    def document(self) -> Document:
        count = len(self.groups)
        summary = f"{self.permuted} of {self.prunable} prunable kernels permuted, in {count} group{'s' * (count != 1)}"
        unchanged = sum(layer.status == "unchanged" for layer in self.layers)
        if unchanged:
            summary += f"; for {unchanged} no better order was found"
        if self.max_change is not None:
            summary += f"; largest change of an output {self.max_change:.1e} of its size"
        header = ("layer", "kind", "status", "kept before", "kept after", "why")
        rows = [
            (
                layer.name,
                layer.kind,
                layer.status,
                percent(layer.retained_before, 2),
                percent(layer.retained_after, 2),
                layer.reason or "",
            )
            for layer in self.layers
        ]
        lines = [summary]
        if self.memory is not None and self.memory > _MUCH:
            lines.append(f"needed up to {self.memory / 1e9:.2g} GB of memory beside the model")
        return Document(lines, [Table(header, rows)])


def _check_same(stored: dict[str, Any], found: dict[str, Any]) -> None:
    """Raises with the first difference of two fingerprints. Names may differ: Keras numbers layers as they are made."""
    for what, singular, first in (("variables", "variable", 0), ("kernels", "kernel", 1)):
        ours, theirs = stored[what], found[what]
        for i, (a, b) in enumerate(zip(ours, theirs, strict=False)):
            if list(a)[first:] != list(b)[first:]:
                raise ValueError(f"the report does not fit this model: {singular} {i} is {b} here and was {a} there")
        if len(ours) != len(theirs):
            raise ValueError(f"the report does not fit this model: {len(theirs)} {what} here, {len(ours)} there")
    if stored["groups"] != found["groups"]:
        raise ValueError("the report does not fit this model: the same variables are connected in another way")


def finish(
    plan: ModelPlan,
    model: Any,
    orders: Sequence[np.ndarray],
    results: Sequence[SearchResult | None] | None = None,
    *,
    verify: bool = True,
    optimizer: Any = None,
) -> PermutationReport:
    """Applies the orders of a plan's groups and reports. Writing the weights is the last that can fail."""
    from tfmot_asp.permutation.apply import apply

    report = report_of(plan, model, orders, results)
    change = apply(plan, orders, model, verify=verify, optimizer=optimizer)
    logger.info("%d of %d prunable kernels permuted", report.permuted, report.prunable)
    return dataclasses.replace(report, max_change=change)


def report_of(
    plan: ModelPlan, model: Any, orders: Sequence[np.ndarray], results: Sequence[SearchResult | None] | None = None
) -> PermutationReport:
    """The report on orders that are yet to be applied."""
    from tfmot_asp.permutation.apply import variable_moves
    from tfmot_asp.permutation.free_outputs import output_orders
    from tfmot_asp.permutation.picture.outline import outline

    moves = variable_moves(plan, orders)
    before = [plan.retained(kernel) for kernel in plan.plan.kernels]
    after = [plan.retained(kernel, moves.get(kernel.variable, [])) for kernel in plan.plan.kernels]
    return PermutationReport(
        layers=tuple(_layers(plan, moves, before, after)),
        groups=tuple(_group_entries(plan, orders, results)),
        sparsity_m_by_n=plan.pattern,
        max_change=None,
        fingerprint=plan.fingerprint(),
        outline=outline(plan, model),
        output_orders=tuple(
            None if order is None else tuple(int(i) for i in order) for order in output_orders(plan, orders)
        )
        if plan.free
        else (),
    )


def _layers(
    plan: ModelPlan,
    moves: Mapping[int, Moves],
    before: Sequence[tuple[float, float]],
    after: Sequence[tuple[float, float]],
) -> list[LayerEntry]:
    entries = []
    for i, kernel in enumerate(plan.plan.kernels):
        status, reason = plan.plan.status(i), plan.plan.reasons[i]
        why = None if reason is None else str(reason)
        summed = [plan.axes.runs(kernel.variable)[axis] for axis in kernel.reduction_axes]
        moved = any(axes in summed for axes, _ in moves.get(kernel.variable, ()))
        if status != "fixed" and not moved:
            status, why = "unchanged", why or "no order was found that keeps more than the given one"
        entries.append(
            LayerEntry(
                kernel.name,
                plan.kinds[i],
                status,
                why,
                kernel.reduction_size,
                plan.plan.movable[i],
                before[i][0] / before[i][1] if before[i][1] else 1.0,
                after[i][0] / after[i][1] if after[i][1] else 1.0,
            )
        )
    entries += [LayerEntry(u.name, u.kind, "fixed", str(u.reason)) for u in plan.unused]
    entries += [LayerEntry(d.name, d.kind, "dense", str(d.reason)) for d in plan.dense]
    return entries


def _group_entries(
    plan: ModelPlan, orders: Sequence[np.ndarray], results: Sequence[SearchResult | None] | None
) -> list[GroupEntry]:
    entries = []
    for i, (group, order) in enumerate(zip(plan.plan.groups, orders, strict=True)):
        result = results[i] if results is not None else None
        names = tuple(plan.plan.kernels[k].name for k in group.kernels)
        entries.append(
            GroupEntry(
                group.name,
                group.size,
                names,
                tuple(int(c) for c in order),
                float(result.retained_before) if result else None,
                float(result.retained_after) if result else None,
                float(result.efficacy) if result else None,
            )
        )
    return entries
