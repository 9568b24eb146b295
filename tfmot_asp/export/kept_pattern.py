"""Makes sure that what is 2:4 in a model is 2:4 in the file that was written of it."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from tfmot_asp.graph.flatten import trace_function
from tfmot_asp.graph.gemm import Gemm
from tfmot_asp.graph.gemms import find_gemms
from tfmot_asp.masks import standing
from tfmot_asp.pattern import Pattern
from tfmot_asp.reports.verification import VerificationReport


def has_pattern(gemm: Gemm, pattern: Pattern) -> bool:
    """Whether the weight of a product has the pattern, so that a file must have it too; not one that is all zeros."""
    weight = gemm.weight
    return weight is not None and bool(np.any(weight)) and standing(weight, gemm.reduction_axes, pattern).holds


def lost_kernels(function: Any, report: VerificationReport, tables: Iterable[int] = ()) -> list[str]:
    """The kernels that have the pattern in a function, and of whose size not as many have it in a file.

    Only the number of weights is compared: a converter may transpose and rename kernels, cut them in another way, write
    twice what is called twice, and once what is equal.

    Args:
        function: of the Keras model as it is.
        report: of the file.
        tables: sizes of kernels that the file multiplies with no longer, since it looks up their rows.

    Returns:
        Their names.
    """
    sparse: dict[tuple[int, bytes], str] = {}
    for gemm in find_gemms(trace_function(function)):
        if gemm.weight is not None and has_pattern(gemm, report.sparsity_m_by_n):
            sparse[gemm.weight.size, hashlib.sha256(gemm.weight.tobytes()).digest()] = gemm.weight_name
    needed = Counter(size for size, _ in sparse)
    found = Counter([*tables, *(math.prod(layer.shape) for layer in report.layers if layer.holds)])
    return [name for (size, _), name in sparse.items() if needed[size] > found[size]]


def check_nothing_lost(function: Any, report: VerificationReport, what: str, tables: Iterable[int] = ()) -> None:
    """Raises RuntimeError if a file lost the pattern of a kernel.

    Args:
        function: of the Keras model as it is.
        report: of the file.
        what: the file, for the error, such as ``"the ONNX file"``.
        tables: as in ``lost_kernels``.
    """
    if lost := lost_kernels(function, report, tables):
        names = f"{', '.join(lost[:3])}{', ...' * (len(lost) > 3)}"
        raise RuntimeError(f"{what} lost the pattern {report.sparsity_m_by_n} of {names}; it says:\n{report}")
