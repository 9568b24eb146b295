"""Comparison of outputs: how far apart they are, and how far they may be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

Outputs = Mapping[str, np.ndarray]

# What was done to a function -> in which type it computes -> how far an output may be off, relative to its largest
# value. Whatever is not listed is as bad as bfloat16, which has 8 bits.
TOLERANCES: dict[str, dict[str, float]] = {
    # Sums in another order.
    "permuted": {"float64": 1e-9, "float32": 1e-4, "float16": 5e-2, "bfloat16": 2e-1},
    # Another graph of the same function, in the same types or with weights stored in these.
    "rewritten": {"float64": 1e-4, "float32": 1e-4, "float16": 1e-2, "bfloat16": 1e-2},
    # A float32 file of a function that computes in these types, or a file in these types.
    "converted": {"float64": 1e-4, "float32": 1e-4, "float16": 1e-2, "bfloat16": 8e-2},
    # A TFLite file of this precision. Weights are rounded to 11 bits, layer after layer. The noise of int8 adds up to a
    # part of the signal, and is measured against its spread: outputs that have nothing to do with each other differ by
    # 1.4 times that. A model that was trained quantization-aware rounds as the file does, but for ties.
    "tflite": {"fp32": 1e-4, "fp16": 20 * 2.0**-11, "int8": 0.5, "trained int8": 0.2},
}


def tolerance(done: str, dtypes: Iterable[str]) -> float:
    """The largest difference that counts as rounding in a function that computes in these types.

    Args:
        done: to the function; a key of ``TOLERANCES``.
        dtypes: names of TensorFlow types; those that are not floating count for nothing.
    """
    allowed = TOLERANCES[done]
    floats = (name for name in dtypes if "float" in name)
    return max((allowed.get(name, allowed["bfloat16"]) for name in floats), default=allowed["float32"])


def difference(expected: np.ndarray, got: np.ndarray | None) -> float:
    """The largest difference of an output, relative to its largest finite value (or to 1, if that is 0).

    One that is missing, misshapen, or not finite where it should be is infinitely far off.
    """
    if got is None or got.shape != expected.shape:
        return float("inf")
    wide = np.complex128 if expected.dtype.kind == "c" else np.float64
    a, b = expected.astype(wide), got.astype(wide)
    scale = float(np.max(np.abs(a[np.isfinite(a)]), initial=0.0)) or 1.0
    same = np.isclose(a, b, rtol=0, atol=0, equal_nan=True)
    with np.errstate(invalid="ignore"):
        gaps = np.abs(a - b)[~same]
    return float(np.max(gaps, initial=0.0)) / scale if np.isfinite(gaps).all() else float("inf")


def largest_difference(expected: Outputs, got: Outputs) -> tuple[float, str]:
    """The largest difference of any output, and which output it is.

    Outputs of integers are left out: an argmax may flip on a tie.
    """
    found = [(difference(value, got.get(name)), name) for name, value in expected.items() if is_compared(value)]
    return max(found, default=(0.0, ""))


@dataclass(frozen=True)
class SpreadError:
    """How far outputs are off, in the Euclidean norm, relative to how much they vary. ``str()`` names the channel.

    Attributes:
        worst: of the channel that is furthest off.
        output: which output that channel is of.
        channel: its number, along the last axis.
        channels: how many that output has.
        overall: of all channels of the output that is furthest off as a whole.
    """

    worst: float
    output: str
    channel: int
    channels: int
    overall: float

    def __str__(self) -> str:
        if self.channels == 1:
            return f"by {_percent(self.worst)} of the spread (RMS) of {self.output!r}"
        place = f"{self.output!r}[..., {self.channel}] of {self.channels}"
        share = f"{_percent(self.worst)} of its spread (RMS) in the worst channel"
        return f"by {share}, {place}, and {_percent(self.overall)} over all"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.995 else f"{100 * share:.0f} %"  # no 1.1e+02


class SpreadErrors:
    """Gathers the errors of outputs over batches, channel by channel (the last axis): each by its own spread.

    A channel that hardly varies, by less than half precision can tell of its size or than ``least`` beside the others,
    is measured against its size and theirs: it would hide the others' errors if it were counted in, and has no spread
    to be measured by.
    """

    _CONSTANT = 2.0**-11

    def __init__(self, least: float) -> None:
        """Begins without batches; ``least`` is the part of the largest spread from which on a channel has its own."""
        self._moments: dict[str, _Moments] = {}
        self._least = least

    def add(self, expected: Outputs, got: Outputs) -> None:
        """Adds one batch; outputs of integers are left out."""
        for name, before in expected.items():
            if is_compared(before):
                self._moments.setdefault(name, _Moments(before)).add(before, got.get(name))

    def worst(self) -> SpreadError:
        """The largest error; one that is missing, misshapen or not finite where it should be is infinite."""
        found = []
        for name, moments in self._moments.items():
            gaps, sizes, spreads = moments.roots()
            largest = float(np.max(spreads, initial=0.0))
            varies = spreads > np.maximum(self._CONSTANT * sizes, self._least * largest)
            scales = np.where(varies, spreads, np.maximum(sizes, largest))
            errors = gaps / np.where(scales > 0, scales, 1.0)
            counted = varies if varies.any() else np.ones_like(varies)
            whole = float(np.sqrt(np.mean(gaps[counted] ** 2) / (np.mean(scales[counted] ** 2) or 1.0)))
            errors, whole = (errors, whole) if moments.fits else (errors + np.inf, np.inf)
            channel = int(np.argmax(errors))
            found.append(SpreadError(float(errors[channel]), name, channel, len(errors), whole))
        if not found:
            return SpreadError(0.0, "", 0, 1, 0.0)
        return replace(max(found, key=lambda error: error.worst), overall=max(error.overall for error in found))


class _Moments:
    """Sums over the positions of one output, for each channel."""

    def __init__(self, first: np.ndarray) -> None:
        self.channels = first.shape[-1] if first.ndim > 1 and first.shape[-1] else 1
        self.fits, self.count = True, 0
        self.gaps, self.squares, self.sums, self.centered = np.zeros((4, self.channels))
        self.least, self.most = np.zeros((2, self.channels))
        self.center: np.ndarray | None = None

    def add(self, before: np.ndarray, after: np.ndarray | None) -> None:
        if after is None or after.shape != before.shape:
            self.fits = False
            return
        a, b = self._rows(before), self._rows(after)
        if not np.array_equal(np.isfinite(a), np.isfinite(b)):
            self.fits = False
            return
        a, b = (np.where(np.isfinite(a), value, 0.0) for value in (a, b))
        self.center = np.mean(a, 0) if self.center is None and len(a) else self.center
        self.count += len(a)
        self.gaps += np.sum((a - b) ** 2, 0)
        self.squares += np.sum(a**2, 0)
        if len(a):
            self.sums += np.sum(a - self.center, 0)
            self.centered += np.sum((a - self.center) ** 2, 0)
            self.least, self.most = np.minimum(self.least, a.min(0)), np.maximum(self.most, a.max(0))

    def roots(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each channel the root mean squares of error and value, and the spread."""
        count = max(self.count, 1)
        deviation = np.sqrt(np.maximum(self.centered / count - (self.sums / count) ** 2, 0.0))
        spreads = deviation if self.count >= FEW else self.most - self.least
        return np.sqrt(self.gaps / count), np.sqrt(self.squares / count), spreads

    def _rows(self, value: np.ndarray) -> np.ndarray:
        if value.dtype.kind == "c":
            value = np.abs(value)
        if value.ndim < 2 or value.shape[-1] != self.channels:
            value = value.reshape(-1, 1) if self.channels == 1 else np.full((1, self.channels), np.nan)
        return value.reshape(-1, self.channels).astype(np.float64)


# Few values say little about their spread: then it is taken to be their range, with zero in it.
FEW = 8


def spread(values: np.ndarray) -> float:
    """How much values vary: their standard deviation, or their range, zero included, if they are few."""
    return float(values.std()) if values.size >= FEW else reach(values)


def reach(values: np.ndarray) -> float:
    """The range of values, with zero in it."""
    return float(max(values.max(), 0.0) - min(values.min(), 0.0))


def is_compared(array: np.ndarray) -> bool:
    """Whether an output holds floats, whatever their size."""
    return array.dtype.kind in "fcV"  # V: bfloat16
