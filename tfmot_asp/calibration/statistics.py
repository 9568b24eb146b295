"""What the inputs of a kernel look like: second moments of the rows that its product multiplies.

A row is one position that the product is computed at: a sample of a Dense layer, a token, a pixel of a convolution in
the column order of ``tf.image.extract_patches``. With X̂ the rows in the model as pruned so far and X the same rows in
the dense model, the moments are the Gram matrix H = X̂ᵀX̂ / N and the drift D = X̂ᵀ(X - X̂) / N. D, not X̂ᵀX, because it
is exactly zero where nothing has been pruned yet, and loses no digits to cancellation where little has.

H is K². Where that is more than the memory allowed, only diagonal blocks of it are kept: one per kernel position of a
convolution, or one per run of inputs; ``Moments.note`` says so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

DEFAULT_MEMORY = 1 << 30
"""Bytes that the moments of one tensor and their factors may take, before blocks are used."""


@dataclass(frozen=True)
class Moments:
    """Second moments of a kernel's inputs.

    Attributes:
        gram: H, as its diagonal blocks, normally one of (K, K). float32.
        drift: D, blocks like those of ``gram``; None where the inputs are the dense model's own.
        rows: how many rows were seen; rows of weight zero do not count.
        sample: some of the rows as seen in the pruned model, (S, K), runs of neighbours so that whole samples are held
            out of the choice of alpha; errors are measured on them.
        dense_sample: the same rows in the dense model; ``sample`` itself where the inputs are the dense model's own.
        note: what was approximated for want of memory, in one line, or None.
    """

    gram: tuple[np.ndarray, ...]
    drift: tuple[np.ndarray, ...] | None
    rows: int
    sample: np.ndarray
    dense_sample: np.ndarray
    note: str | None = None

    @property
    def size(self) -> int:
        """K, the number of inputs."""
        return sum(len(block) for block in self.gram)


class MomentsAccumulator:
    """Gathers ``Moments`` from batches of rows.

    Args:
        size: K, the inputs of the product.
        segments: kernel positions of a convolution, of ``size // segments`` inputs each; 1 otherwise.
        stripe: n of the m by n pattern; blocks do not cut stripes.
        memory: bytes that H, D and what is computed from them may take.

    Example:
        >>> accumulator = MomentsAccumulator(8)
        >>> accumulator.add(np.eye(8))
        >>> accumulator.result().rows
        8
    """

    def __init__(self, size: int, *, segments: int = 1, stripe: int = 4, memory: int = DEFAULT_MEMORY) -> None:
        raise NotImplementedError

    def add(
        self, pruned_rows: npt.ArrayLike, dense_rows: npt.ArrayLike | None = None, weights: npt.ArrayLike | None = None
    ) -> None:
        """Adds a batch of rows, those of one sample next to each other.

        Args:
            pruned_rows: X̂, (r, K), any float dtype.
            dense_rows: X, (r, K), the same rows in the dense model; None where they are the same numbers.
            weights: (r,), at least 0: how much each row counts; padding has 0.

        Raises:
            ValueError: for shapes that do not fit, and for NaN or infinite values in a row that counts.
        """
        raise NotImplementedError

    def result(self) -> Moments:
        """The moments of all rows added.

        Raises:
            ValueError: if no row that counts was added.
        """
        raise NotImplementedError
