"""Reads from a TensorRT build log which layers could use sparse kernels, and which got them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tfmot_asp.reports.document import Document, Table
from tfmot_asp.reports.readable import Readable
from tfmot_asp.reports.verification import VerificationReport

# TensorRT 8 and 10 word them in these two ways; newer ones say how many, and in verbose logs which.
_ELIGIBLE = (
    re.compile(r"\(Sparsity\)\s+Layers eligible for sparse math:(?P<names>.*)"),
    re.compile(r"\(Sparsity\)\s+Found (?P<count>\d+) layer\(s\) eligible to use sparse tactics(?::(?P<names>.*))?"),
)
_PICKED = (
    re.compile(r"\(Sparsity\)\s+TRT inference plan picked sparse implementation for layers:(?P<names>.*)"),
    re.compile(r"\(Sparsity\)\s+Chose (?P<count>\d+) layer\(s\) using sparse tactics(?::(?P<names>.*))?"),
)
_COLORS = re.compile(r"\x1b\[[0-9;]*m")
_FUSED = re.compile(r"\s+\+\s+|\s*\|\|\s*")
_OPEN, _CLOSE = "([{", ")]}"

_FIRST_WITH_SPARSITY = 8.0  # compute capability of Ampere


@dataclass(frozen=True)
class TensorRTSparsity(Readable):
    """What TensorRT says about sparsity. ``str()`` is text; ``to_dict()`` is plain data for JSON.

    Attributes:
        eligible: names of the engine's layers whose weights are 2:4, in the log's order; a fused layer's name joins
            those of its parts, as in ``"conv1 + relu1"``. Empty if the log only counts them.
        picked: those for which a sparse kernel was the fastest.
        eligible_count: number of eligible layers.
        picked_count: number of picked ones.
        report: the report that was given, with ``eligible`` and ``picked`` in each layer.
        unmatched: names in the log that no layer of the report has; empty without a report.
    """

    eligible: tuple[str, ...]
    picked: tuple[str, ...]
    eligible_count: int
    picked_count: int
    report: VerificationReport | None = None
    unmatched: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The result as dicts, lists, strings and numbers."""
        return {
            "eligible": list(self.eligible),
            "picked": list(self.picked),
            "eligible_count": self.eligible_count,
            "picked_count": self.picked_count,
            "unmatched": list(self.unmatched),
            "report": None if self.report is None else self.report.to_dict(),
        }

    def document(self) -> Document:
        if self.report is not None:
            return self.report.document()
        rows = [(name, "sparse" if name in self.picked else "dense") for name in self.eligible]
        return Document([self.summary], [Table(("layer", "kernel"), rows)] if rows else [])

    @property
    def summary(self) -> str:
        """The counts in words."""
        return (
            f"TensorRT: {self.eligible_count} layers eligible for sparse kernels, {self.picked_count} of them use one"
        )


def parse_tensorrt_log(text: str | os.PathLike[str], report: VerificationReport | None = None) -> TensorRTSparsity:
    """Reads TensorRT's sparsity lines out of a build log.

    A log may hold them several times, for the parts of an engine or for several engines: a layer counts as eligible or
    picked if one of them says so. Logs without names (not verbose) give the counts only.

    Args:
        text: the log, of trtexec, polygraphy or TensorRT's own logger; or its path as a ``pathlib.Path``.
        report: of the ONNX file that the engine was built from. Each of its layers is looked up by the name of its node
            among the parts of the log's fused layers.

    Returns:
        What the log says, with the report filled in if one was given.

    Raises:
        TypeError: if ``text`` is neither text nor a path.
        ValueError: if the lines are missing, with what may be the reason.

    Example:
        >>> result = tfmot_asp.export.parse_tensorrt_log(pathlib.Path("build.log"), report)
        >>> print(result.report)
    """
    text = _read(text)
    eligible = list(_matches(text, _ELIGIBLE))
    picked = list(_matches(text, _PICKED))
    if not eligible or not picked:
        raise ValueError(_why_missing(text, bool(eligible)))
    result = TensorRTSparsity(_names(eligible), _names(picked), _count(eligible), _count(picked))
    return result if report is None else _merge(result, report)


def _read(text: str | os.PathLike[str]) -> str:
    if isinstance(text, os.PathLike):
        content = Path(text).read_bytes()
        utf16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))  # what PowerShell's > writes
        text = content.decode("utf-16" if utf16 else "utf-8", errors="replace")
    if not isinstance(text, str):
        raise TypeError(f"text must be a log as str, or its path as pathlib.Path; got a {type(text).__name__}")
    return _COLORS.sub("", text)


def _matches(text: str, patterns: Iterable[re.Pattern[str]]) -> Iterator[dict[str, str | None]]:
    for line in text.splitlines():
        for pattern in patterns:
            match = pattern.search(line)
            if match:
                yield match.groupdict()


def _names(found: list[dict[str, str | None]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for match in found for name in _split(match.get("names") or "")))


def _count(found: list[dict[str, str | None]]) -> int:
    """The number of distinct names; without names, the largest number that was stated."""
    return len(_names(found)) or max(int(match.get("count") or 0) for match in found)


def _split(names: str) -> Iterator[str]:
    """Splits a list at its commas, but not at those within the brackets of a layer's name."""
    depth, current = 0, ""
    for character in names:
        depth += (character in _OPEN) - (character in _CLOSE)
        if character == "," and depth <= 0:
            yield from filter(None, [current.strip()])
            current = ""
        else:
            current += character
    yield from filter(None, [current.strip()])


def _parts(name: str) -> set[str]:
    """The nodes that a layer of the engine was fused from."""
    parts = {name}
    for part in _FUSED.split(name):
        parts.add(part)
        inner = re.fullmatch(r"(?:PWN|COPY|ForeignNode)\((.*)\)", part)
        if inner:
            parts.update(_split(inner.group(1)))
    return parts


def _merge(result: TensorRTSparsity, report: VerificationReport) -> TensorRTSparsity:
    named = bool(result.eligible) or result.eligible_count == 0
    if not named:
        note = f"{result.summary}; which ones, the log does not say: build with --verbose"
        return replace(result, report=replace(report, notes=(*report.notes, note)))
    picked = _all_parts(result.picked)
    eligible = _all_parts(result.eligible) | picked
    layers = tuple(
        replace(layer, eligible=eligible.issuperset(layer.ops), picked=picked.issuperset(layer.ops))
        for layer in report.layers
    )
    ops = {op for layer in report.layers for op in layer.ops}
    every = dict.fromkeys((*result.eligible, *result.picked))
    unmatched = tuple(name for name in every if not _parts(name) & ops)
    notes = [result.summary]
    if unmatched:
        notes.append(f"In the log, but not in this file: {', '.join(unmatched)}")
    merged = replace(report, layers=layers, notes=(*report.notes, *notes))
    return replace(result, report=merged, unmatched=unmatched)


def _all_parts(names: Iterable[str]) -> set[str]:
    return {part for name in names for part in _parts(name)}


def _why_missing(text: str, has_eligible: bool) -> str:
    if has_eligible:
        return (
            "the log ends before TensorRT says which layers use sparse kernels: the build has not finished, or was cut"
        )
    says = "the log has no line with TensorRT's '(Sparsity)'"
    disabled = re.search(r"Sparsity: Disabled", text)
    capability = re.search(r"Compute Capability: (\d+\.\d+)", text)
    if disabled:
        return f"{says}: it was built without --sparsity=enable; tfmot_asp.export.trtexec_command gives the command"
    if capability and float(capability.group(1)) < _FIRST_WITH_SPARSITY:
        return (
            f"{says}: the GPU's compute capability is {capability.group(1)}; sparse Tensor Cores come with 8.0 (Ampere)"
        )
    return (
        f"{says}. It needs --sparsity=enable (BuilderFlag.SPARSE_WEIGHTS), --verbose, precision fp16 or int8, and a "
        "GPU of compute capability 8.0 or later; tfmot_asp.export.trtexec_command gives the command"
    )
