"""Comparison of outputs: how far apart they are, and how far they may be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

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


def relative_error(pairs: Iterable[tuple[Outputs, Outputs]]) -> tuple[float, str]:
    """The error of several batches in the Euclidean norm, relative to the expected outputs: of the worst output."""
    gaps: dict[str, float] = {}
    norms: dict[str, float] = {}
    for expected, got in pairs:
        for name, before in expected.items():
            if is_compared(before):
                a, b = before.astype(np.float64), got[name].astype(np.float64)
                gaps[name] = gaps.get(name, 0.0) + float(np.sum((a - b) ** 2))
                norms[name] = norms.get(name, 0.0) + float(np.sum(a**2))
    errors = [(np.sqrt(gaps[name] / norms[name]) if norms[name] else np.sqrt(gaps[name]), name) for name in gaps]
    value, name = max(((e if np.isfinite(e) else np.inf, n) for e, n in errors), default=(0.0, ""))
    return float(value), name


def is_compared(array: np.ndarray) -> bool:
    """Whether an output holds floats, whatever their size."""
    return array.dtype.kind in "fcV"  # V: bfloat16
