"""Makes sure that what is 2:4 in a model is 2:4 in the file that was written of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfmot_asp.graph.flatten import trace_function
from tfmot_asp.graph.gemms import Gemm, find_gemms
from tfmot_asp.masks import standing
from tfmot_asp.pattern import Pattern
from tfmot_asp.reports.verification import VerificationReport


def has_pattern(gemm: Gemm, pattern: Pattern) -> bool:
    """Whether the weight of a product has the pattern, so that a file must have it too; not one that is all zeros."""
    weight = gemm.weight
    return weight is not None and bool(np.any(weight)) and standing(weight, gemm.reduction_axes, pattern).holds


def check_nothing_lost(function: Any, report: VerificationReport, what: str) -> None:
    """Raises RuntimeError unless each kernel that has the pattern in a function has a counterpart in a file.

    Kernels are counted by their sizes: a converter may transpose and rename them, and write twice what is called twice.

    Args:
        function: of the Keras model as it is.
        report: of the file.
        what: the file, for the error, such as ``"the ONNX file"``.
    """
    pattern = report.sparsity_m_by_n
    sparse = {
        (gemm.op, gemm.weight_name): _sizes(gemm.weight.shape, gemm.reduction_axes)
        for gemm in find_gemms(trace_function(function))
        if gemm.weight is not None and has_pattern(gemm, pattern)
    }
    needed = Counter(sparse.values())
    found = Counter(_sizes(layer.shape, layer.reduction_axes) for layer in report.layers if layer.holds)
    lost = [name for (_, name), size in sparse.items() if needed[size] > found[size]]
    if lost:
        raise RuntimeError(
            f"{what} lost the pattern {pattern} of {', '.join(lost[:3])}{', ...' * (len(lost) > 3)}; it says:\n{report}"
        )


def _sizes(shape: Sequence[int], reduction_axes: Sequence[int]) -> tuple[int, int]:
    """Length of the reduction axes, and number of weights."""
    return math.prod(shape[axis] for axis in reduction_axes), math.prod(shape)
