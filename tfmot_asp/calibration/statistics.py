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

from tfmot_asp.calibration.linear_algebra import full_precision, product

DEFAULT_MEMORY = 1 << 30
"""Bytes that the moments of one tensor and what is computed from them may take, before blocks are used."""

SAMPLE_ROWS = 1024
"""Rows that are kept as they are, at most."""

_BYTES_PER_MOMENT = 40  # gram and drift, with and without the sample, factors, temporaries: float32 and float64


@dataclass(frozen=True)
class Moments:
    """Second moments of a kernel's inputs.

    Attributes:
        gram: H, as its diagonal blocks, normally one of (K, K). float32.
        drift: D, blocks like those of ``gram``; None where the inputs are the dense model's own.
        rows: how many rows were seen; rows of weight zero do not count.
        sample: some of the rows as seen in the pruned model, (S, K), each times the root of its weight over their mean
            weight. Runs of neighbours, so that what is chosen on held-out rows is not chosen on their neighbours;
            errors are measured on them.
        dense_sample: the same rows in the dense model; ``sample`` itself where the inputs are the dense model's own.
        sample_share: which part of all the rows' weight the sample is.
        note: what was approximated for want of memory, in one line, or None.
    """

    gram: tuple[np.ndarray, ...]
    drift: tuple[np.ndarray, ...] | None
    rows: int
    sample: np.ndarray
    dense_sample: np.ndarray
    sample_share: float
    note: str | None = None

    @property
    def size(self) -> int:
        """K, the number of inputs."""
        return sum(len(block) for block in self.gram)

    def without_sample(self) -> tuple[list[np.ndarray], list[np.ndarray]] | None:
        """H and D, as blocks, of the rows that are not in the sample; None if there are no others or no drift."""
        if self.drift is None or self.sample_share >= 1:
            return None
        difference = self.dense_sample - self.sample
        own = np.float32(self.sample_share / len(self.sample))
        rest = np.float32(1 / (1 - self.sample_share))
        grams, drifts, first = [], [], 0
        for gram, drift in zip(self.gram, self.drift, strict=True):
            rows = self.sample[:, first : first + len(gram)]
            shifted = difference[:, first : first + len(gram)]
            grams.append(rest * (gram - own * product(rows, rows, transpose_left=True)))
            drifts.append(rest * (drift - own * product(rows, shifted, transpose_left=True)))
            first += len(gram)
        return grams, drifts


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
        if size < 1 or segments < 1 or size % segments:
            raise ValueError(f"{size} inputs cannot be {segments} segments of equal length")
        self._size = size
        self._blocks, self._note = _blocks(size, segments, stripe, memory)
        self._gram = [np.zeros((len(block), len(block)), np.float32) for block in self._blocks]
        self._drift: list[np.ndarray] | None = None
        self._total = 0.0
        self._rows = 0
        self._sample = _Sample(max(1, min(SAMPLE_ROWS, memory // (64 * size))))

    @full_precision()
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
        pruned = self._checked(pruned_rows, "pruned_rows")
        dense = None if dense_rows is None else self._checked(dense_rows, "dense_rows")
        if dense is not None and dense.shape != pruned.shape:
            raise ValueError(f"dense_rows must be the same rows as pruned_rows, {pruned.shape}; got {dense.shape}")
        count = np.ones(len(pruned), np.float32) if weights is None else np.asarray(weights, np.float32)
        if count.shape != (len(pruned),) or not np.all((count >= 0) & (count < np.inf)):
            raise ValueError(f"weights must be {len(pruned)} finite numbers of at least 0, one a row")
        if not count.all():
            counted = count > 0
            pruned, count = pruned[counted], count[counted]
            dense = None if dense is None else dense[counted]
        # The padding's rows are gone: a mask may hide NaN.
        for rows, name in ((pruned, "pruned_rows"), (dense, "dense_rows")):
            if rows is not None and not np.isfinite(rows).all():
                raise ValueError(f"{name} has NaN or infinite values")
        if weights is not None:  # a row of weight w is one of weight 1, times sqrt(w), in all that is squared
            root = np.sqrt(count)[:, None]
            pruned = pruned * root
            dense = None if dense is None else dense * root
        self._rows += len(pruned)
        self._total += float(count.sum(dtype=np.float64))
        self._sample.add(pruned, dense, count)
        if dense is not None and self._drift is None:
            self._drift = [np.zeros_like(block) for block in self._gram]
        for index, block in enumerate(self._blocks):
            columns = pruned[:, block.start : block.stop]
            self._gram[index] += product(columns, columns, transpose_left=True)
            if dense is not None and self._drift is not None:
                difference = dense[:, block.start : block.stop] - columns
                self._drift[index] += product(columns, difference, transpose_left=True)

    def result(self) -> Moments:
        """The moments of all rows added.

        Raises:
            ValueError: if no row that counts was added.
        """
        if not self._rows:
            raise ValueError("no rows to take statistics of: the data is empty, or masked throughout")
        scale = np.float32(1 / self._total)
        drift = None if self._drift is None else tuple(block * scale for block in self._drift)
        sample, dense_sample, sample_total = self._sample.rows()
        return Moments(
            gram=tuple(block * scale for block in self._gram),
            drift=drift,
            rows=self._rows,
            sample=sample,
            dense_sample=sample if dense_sample is None else dense_sample,
            sample_share=sample_total / self._total,
            note=self._note,
        )

    def _checked(self, rows: npt.ArrayLike, name: str) -> np.ndarray:
        array = np.asarray(rows)
        if array.ndim != 2 or array.shape[1] != self._size:
            raise ValueError(f"{name} must be of shape (rows, {self._size}), got {array.shape}")
        return array.astype(np.float32, copy=False)


class _Sample:
    """Runs of neighbouring rows from all over the data: an eighth of each batch, of fewer batches as they add up."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._every = 1
        self._batches = 0
        self._kept: list[tuple[int, np.ndarray, np.ndarray | None, float]] = []

    def add(self, pruned: np.ndarray, dense: np.ndarray | None, weights: np.ndarray) -> None:
        number, self._batches = self._batches, self._batches + 1
        if number % self._every or not len(pruned):
            return
        last = slice(len(pruned) - min(self._limit, -(-len(pruned) // 8)), None)
        total = float(weights[last].sum(dtype=np.float64))
        self._kept.append((number, pruned[last].copy(), None if dense is None else dense[last].copy(), total))
        while sum(len(kept[1]) for kept in self._kept) > self._limit and len(self._kept) > 1:
            self._every *= 2
            self._kept = [kept for kept in self._kept if kept[0] % self._every == 0]

    def rows(self) -> tuple[np.ndarray, np.ndarray | None, float]:
        """The pruned rows, the dense ones, both of mean weight one, and the sum of the weights they had."""
        pruned = np.concatenate([kept[1] for kept in self._kept])
        total = sum(kept[3] for kept in self._kept)
        scale = np.float32(np.sqrt(len(pruned) / total))
        if all(kept[2] is None for kept in self._kept):
            return pruned * scale, None, total
        dense = np.concatenate([kept[1] if kept[2] is None else kept[2] for kept in self._kept])
        return pruned * scale, dense * scale, total


def _blocks(size: int, segments: int, stripe: int, memory: int) -> tuple[list[range], str | None]:
    """The runs of inputs whose moments with each other are kept, and a note if they are not all one."""
    longest = memory // (_BYTES_PER_MOMENT * size)
    if longest >= size:
        return [range(size)], None
    segment = size // segments
    if longest >= segment and segments > 1:
        each = _balanced(segments, longest // segment) * segment
        starts = list(range(0, size, each))
    else:
        each = _balanced(-(-segment // stripe), max(1, longest // stripe)) * stripe
        starts = [first + within for first in range(0, size, segment) for within in range(0, segment, each)]
    blocks = [range(start, stop) for start, stop in zip(starts, [*starts[1:], size], strict=True)]
    return blocks, f"{len(blocks)} blocks of at most {each} inputs, one after the other, for want of memory"


def _balanced(count: int, most: int) -> int:
    """How many of ``count`` things to take together so that the groups hold at most ``most`` and are about equal."""
    return -(-count // -(-count // most))
