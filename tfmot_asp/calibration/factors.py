"""The linear algebra on a tensor's moments that all kernels reading it share."""

from __future__ import annotations

from tfmot_asp.calibration.statistics import Moments


class Factors:
    """Damped moments and their factorizations, each computed when first needed and then kept.

    Build one per tensor and give it to ``reconstruct`` for each of the kernels that read the tensor (q, k and v of an
    attention).

    Args:
        moments: of the tensor that the kernels read.
        damping: what is added to H's diagonal, as a share of its mean.
    """

    def __init__(self, moments: Moments, damping: float = 0.01) -> None:
        raise NotImplementedError
