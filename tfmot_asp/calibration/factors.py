"""The linear algebra on a tensor's moments that all kernels reading it share.

Everything here and in what builds on it is in *scaled* coordinates: with s = diag(H_λ)^-½, the matrix is s·H_λ·s, which
has a diagonal of ones, and a kernel W is W / s. Losses, the order of weights' scores, and the best weights for a mask
are the same in both; conjugate gradients on the scaled matrix are those with Jacobi's preconditioner, and float32
suffices.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_asp.calibration.linear_algebra import inverse, inverse_root
from tfmot_asp.calibration.statistics import Moments

DAMPING = 0.01


class Factors:
    """Damped moments and their factorizations, each computed when first needed and then kept.

    Build one per tensor and give it to ``reconstruct`` for each of the kernels that read the tensor (q, k and v of an
    attention).

    Args:
        moments: of the tensor that the kernels read.
        damping: what is added to H's diagonal, as a share of its mean. Where all inputs are zero the matrix is I.
    """

    def __init__(self, moments: Moments, damping: float = DAMPING) -> None:
        self.moments = moments
        self.damping = damping
        bounds = np.cumsum([0, *(len(gram) for gram in moments.gram)])
        self.blocks = tuple(
            GramBlock(slice(int(start), int(stop)), *damped(gram, damping))
            for start, stop, gram in zip(bounds, bounds[1:], moments.gram, strict=False)
        )

    def input_norms(self) -> np.ndarray:
        """Root mean square of each input in the pruned model, (K,)."""
        return np.sqrt(np.concatenate([np.diag(gram) for gram in self.moments.gram]))

    @cached_property
    def without_sample(self) -> tuple[list[tuple[np.ndarray, Any]], list[np.ndarray]] | None:
        """Scale and matrix, and D, of each block without the moments' sample, to choose on it what to do."""
        rest = self.moments.without_sample()
        return None if rest is None else ([damped(gram, self.damping) for gram in rest[0]], rest[1])


@dataclass(frozen=True)
class GramBlock:
    """One diagonal block of the moments, damped and scaled.

    Attributes:
        inputs: which inputs it is of.
        scale: s, (k,): weights are divided by it in scaled coordinates.
        matrix: s·H_λ·s, (k, k) float32 tensor, its diagonal 1.
    """

    inputs: slice
    scale: np.ndarray
    matrix: Any
    _explained: dict[float, tuple[float, np.ndarray]] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def inverse_root(self) -> np.ndarray:
        """U, upper triangular with the inverse of ``matrix`` = UᵀU; float32, computed in float64."""
        return inverse_root(tf.cast(self.matrix, tf.float64)).numpy().astype(np.float32)

    def inverse_plus(self, ridge: float) -> Any:
        """The inverse of ``matrix`` + ridge·I."""
        return inverse(self.matrix + ridge * tf.eye(self.matrix.shape[0]))

    def half_explained(self, share: float) -> tuple[float, np.ndarray]:
        """The ridge μ that leaves as many degrees of freedom as weights are kept, and the inverse of ``matrix`` + μI.

        Degrees of freedom are tr(matrix · inverse). Such a ridge does to the inputs what dropping all but that share of
        them at random does; it is the scale on which the penalties of mask selection matter.

        Args:
            share: of the inputs that a mask keeps, between 0 and 1.
        """
        if share not in self._explained:
            size = self.matrix.shape[0]
            low, high = 0.0, np.inf
            ridge = 0.3 * (1 / share - 1)  # independent inputs need 1 / share - 1, correlated ones less
            while True:
                found = self.inverse_plus(ridge).numpy()
                freedom = 1 - ridge * np.trace(found) / size
                if abs(freedom - share) < 0.03 or high - low < 1e-3 * high:
                    break
                low, high = (ridge, high) if freedom > share else (low, ridge)
                # Freedom falls about as the logarithm of the ridge: a step of that, kept within what is known.
                ridge *= float(np.exp(5 * (freedom - share)))
                if not low < ridge < high:
                    ridge = float(np.sqrt(low * high)) if 0 < low < high < np.inf else high / 4 if low == 0 else 4 * low
            self._explained[share] = ridge, found
        return self._explained[share]


def damped(gram: np.ndarray, damping: float) -> tuple[np.ndarray, Any]:
    """H_λ = H + damping·mean(diag H)·I, scaled so that its diagonal is one.

    Args:
        gram: H, (k, k).
        damping: see ``Factors``.

    Returns:
        The scale s, (k,), and the tensor s·H_λ·s, both float32.
    """
    diagonal = np.diag(gram).astype(np.float64)
    ridge = damping * diagonal.mean()
    scale = 1 / np.sqrt(diagonal + ridge) if ridge > 0 else np.ones_like(diagonal)
    scale = scale.astype(np.float32)
    matrix = gram * scale[:, None]
    matrix *= scale
    np.fill_diagonal(matrix, 1)
    return scale, tf.constant(matrix)
