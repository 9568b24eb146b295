"""One kernel pruned with data: its mask chosen, its kept weights refitted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tfmot_asp.calibration.factors import Factors
from tfmot_asp.masks import DEFAULT_M_BY_N

METHODS = ("magnitude", "activation", "reconstruction")
EFFORTS = ("fast", "balanced", "thorough")


@dataclass(frozen=True)
class Reconstruction:
    """A kernel pruned with data.

    Attributes:
        weight: V, (K, O), the pruned kernel, in the given kernel's dtype; exactly zero where the mask is False.
        mask: (K, O) bool, True where a weight is kept.
        error_before: relative error of the product's outputs with the kernel pruned by magnitude alone.
        error_after: relative error ‖X̂V - XW‖ / ‖XW‖ of the product's outputs with V, on the moments' sample of rows.
        alpha: how much of the earlier layers' errors the target corrects, from 0 to 1.
        note: what was approximated, in one line, or None.
    """

    weight: np.ndarray
    mask: np.ndarray
    error_before: float
    error_after: float
    alpha: float
    note: str | None = None


def reconstruct(
    weight: npt.ArrayLike,
    inputs: Factors,
    *,
    m_by_n: tuple[int, int] = DEFAULT_M_BY_N,
    segments: int = 1,
    method: str = "reconstruction",
    effort: str = "balanced",
    scores: npt.ArrayLike | None = None,
    alpha: float | None = None,
) -> Reconstruction:
    """Prunes a kernel so that its outputs on the data change as little as possible.

    Deterministic: the same arguments give the same weights on the same machine.

    Args:
        weight: W, (K, O), of the dense model, K in the order of the inputs' rows; float32, float64, float16 or
            bfloat16.
        inputs: of the tensor that the kernel reads.
        m_by_n: m zeros in every n consecutive values along K.
        segments: kernel positions of a convolution; stripes lie within each of the ``segments`` runs of K // segments
            inputs, the last one of a run possibly incomplete.
        method: "magnitude" and "activation" only choose a mask, by |w| or by |w| times the norm of the weight's
            input (Wanda), and leave the kept weights; "reconstruction" refits them as well.
        effort: how masks are chosen for a reconstruction; "fast" in one sweep that spreads errors (SparseGPT),
            "balanced" and "thorough" iteratively (ALPS).
        scores: (K, O), a score per weight to choose the mask from instead; the kept weights are refitted all the same
            if the method is "reconstruction".
        alpha: how much of the earlier layers' errors the target corrects; None chooses it on held-out rows.

    Returns:
        The pruned kernel, its mask, and its errors.

    Raises:
        ValueError: for shapes or names that make no sense, and for a kernel that is not finite.
    """
    raise NotImplementedError
