"""The m by n mask along a kernel's reduction axis: one implementation for wrapper, optimizer, report and verification.

"m by n" is tfmot's order: m zeros in every n consecutive values; see ``pattern``. A mask is computed from a *score per
weight*, by default |w|; a calibration set or second-order information can supply a better one.

The rule, for every stripe of n consecutive positions along the flattened reduction axes:

- the n - m highest scores are kept, exactly that many, whatever the ties;
- equal scores are ranked by position, the lower index first;
- NaN ranks below every number;
- the stripe at the end may be shorter than n. It counts as padded with zeros that lose against every real position, so
  min(n - m, length) of its positions are kept.

Ranks come from comparing positions pairwise: for n = 4 that is 6 elementwise comparisons, with no sort and no gather,
the same in NumPy, eager TensorFlow, ``tf.function`` and XLA. TensorFlow is only imported if a tensor comes in.
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tfmot_asp.pattern import TWO_FOUR, Pattern, PatternLike

Axes = int | Sequence[int]


def m_by_n_mask(score: Any, reduction_axes: Axes, pattern: PatternLike = TWO_FOUR) -> Any:
    """Marks the weights that the m by n pattern keeps.

    Args:
        score: importance of each weight, same shape as the kernel, any rank and any real dtype. A NumPy array, or a
            TensorFlow tensor or variable of static shape (also while a ``tf.function`` is traced).
        reduction_axes: the axis, or axes flattened row-major, that the GEMM sums over.
        pattern: as in ``Pattern.of``, such as ``(2, 4)``.

    Returns:
        A bool array or tensor of the kernel's shape, True where the weight is kept.

    Raises:
        ValueError: for a pattern or reduction axes that make no sense, or a tensor whose shape is not static.

    Example:
        >>> m_by_n_mask(np.abs([[3.0], [-1.0], [2.0], [0.5]]), reduction_axes=0).ravel()
        array([ True, False,  True, False])
    """
    pattern = Pattern.of(pattern, "pattern")
    stripes = _Stripes(score, reduction_axes, pattern.block)
    return stripes.join([_kept(positions, pattern.kept) for positions in stripes.split(_ordered(stripes.array))])


def partial_m_by_n_mask(score: Any, reduction_axes: Axes, pattern: PatternLike, fraction: Any) -> Any:
    """An m by n mask on a fraction of the stripes only, those that lose the least score; the others are kept whole.

    This is how a pruning schedule approaches the pattern: at fraction 0 nothing is masked, at 1 everything is.

    Args:
        score: as in ``m_by_n_mask``; finite.
        reduction_axes: as in ``m_by_n_mask``.
        pattern: as in ``m_by_n_mask``.
        fraction: share of the stripes to mask, clipped to [0, 1]; a float, or a scalar tensor if ``score`` is one.
            The count is rounded half to even; equal losses are ranked by position.

    Returns:
        A bool array or tensor, as from ``m_by_n_mask``.
    """
    pattern = Pattern.of(pattern, "pattern")
    stripes = _Stripes(score, reduction_axes, pattern.block)
    split = stripes.split(_ordered(stripes.array))
    kept = [_kept(positions, pattern.kept) for positions in split]
    losses = []
    for positions, kept_positions in zip(split, kept, strict=True):
        lost = [_where(keep, 0, value) for value, keep in zip(positions, kept_positions, strict=True)]
        losses.append(sum(lost[1:], lost[0]))
    chosen = _smallest(losses, fraction)
    return stripes.join(
        [[keep | ~masked for keep in kept_positions] for kept_positions, masked in zip(kept, chosen, strict=True)]
    )


def apply_mask(weight: Any, mask: Any) -> Any:
    """The weight with zeros where the mask is False, whatever stood there (a product would keep NaN, inf and -0).

    Args:
        weight: NumPy array or TensorFlow tensor.
        mask: bool array or tensor of the same shape.

    Returns:
        Array or tensor of the weight's dtype.
    """
    return _where(mask, weight, 0)


@dataclass(frozen=True)
class Standing:
    """How a kernel stands to a pattern. Every report, and every check of a file, asks this and nothing else.

    Attributes:
        stripes: those in which the pattern asks for zeros, that is all that are longer than what it keeps of them.
        violations: those that hold more nonzero values than it keeps. NaN counts as nonzero.
    """

    stripes: int
    violations: int

    @property
    def asks(self) -> bool:
        """Whether the pattern asks for any zeros: not of a kernel of one or two inputs, nor of a depthwise one."""
        return self.stripes > 0

    @property
    def holds(self) -> bool:
        """Whether the pattern asks for zeros, and has them in every stripe."""
        return self.asks and not self.violations

    @property
    def broken(self) -> bool:
        """Whether it holds in half of the stripes or more, but not in all: more than chance makes of dense weights."""
        return 0 < 2 * self.violations <= self.stripes


def standing(weight: npt.ArrayLike, reduction_axes: Axes, pattern: PatternLike = TWO_FOUR) -> Standing:
    """Looks for a pattern in a kernel, stripe by stripe.

    Args:
        weight: kernel, any rank and dtype.
        reduction_axes: the axis, or axes flattened row-major, that the GEMM sums over; ``()`` for a depthwise kernel,
            which sums over none.
        pattern: as in ``Pattern.of``. The incomplete last stripe counts as padded with zeros.
    """
    if isinstance(reduction_axes, Sequence) and not reduction_axes:
        return Standing(0, 0)
    pattern = Pattern.of(pattern, "pattern")
    stripes = _Stripes(np.asarray(weight), reduction_axes, pattern.block)
    asking = violations = 0
    for positions in stripes.split(_nonzero(stripes.array).view(np.uint8)):
        if len(positions) > pattern.kept:
            asking += positions[0].size
            nonzeros = positions[0].astype(np.uint8 if pattern.block < 256 else np.int64)
            for position in positions[1:]:
                nonzeros += position
            violations += int(np.count_nonzero(nonzeros > pattern.kept))
    return Standing(asking, violations)


def violations(weight: npt.ArrayLike, reduction_axes: Axes, pattern: PatternLike = TWO_FOUR) -> int:
    """Counts the stripes that hold more nonzero values than the pattern keeps; see ``standing``."""
    return standing(weight, reduction_axes, pattern).violations


def magnitude(weight: npt.ArrayLike) -> np.ndarray:
    """|w|, the score of a weight by default; of half precision in single precision."""
    found: np.ndarray = np.abs(_comparable(np.asarray(weight)))
    return found


def retained_magnitude(
    weight: npt.ArrayLike,
    reduction_axes: Axes,
    pattern: PatternLike = TWO_FOUR,
    score: npt.ArrayLike | None = None,
) -> float:
    """Sum of the absolute values that the mask keeps.

    Args:
        weight: kernel, any rank and float dtype.
        reduction_axes: the axis, or axes flattened row-major, that the GEMM sums over.
        pattern: as in ``Pattern.of``, such as ``(2, 4)``.
        score: what to compute the mask from; |weight| if None.

    Returns:
        The sum, accumulated in float64.
    """
    magnitudes = magnitude(weight)
    mask = m_by_n_mask(magnitudes if score is None else score, reduction_axes, pattern)
    return float(np.sum(magnitudes, where=np.asarray(mask), dtype=np.float64))


class _Stripes:
    """A kernel seen as (outer, reduction, inner), cut into stripes along the reduction axis, and put back."""

    def __init__(self, array: Any, reduction_axes: Axes, n: int) -> None:
        self.tf = _tensorflow_of(array)
        array = np.asarray(array) if self.tf is None else self.tf.convert_to_tensor(array)
        if self.tf is not None and not array.shape.is_fully_defined():
            raise ValueError(f"an m by n mask needs a static shape, got a tensor of shape {array.shape}")
        self.shape = tuple(int(size) for size in array.shape)
        axes = _check_axes(reduction_axes, len(self.shape))
        rest = tuple(axis for axis in range(len(self.shape)) if axis not in axes)
        self.order: tuple[int, ...] | None = None
        before, after = tuple(axis for axis in rest if axis < axes[0]), tuple(axis for axis in rest if axis > axes[0])
        if axes != tuple(range(axes[0], axes[0] + len(axes))):  # scattered axes must be brought together first
            self.order = (*before, *axes, *after)
            array = array.transpose(self.order) if self.tf is None else self.tf.transpose(array, self.order)
        length = math.prod(self.shape[axis] for axis in axes)
        outer = math.prod(self.shape[axis] for axis in before)
        inner = math.prod(self.shape[axis] for axis in after)
        self.flat_shape = (outer, length, inner)
        self.n = n
        self.array = self._reshape(array, self.flat_shape)

    def split(self, array: Any) -> list[list[Any]]:
        """Cuts an (outer, reduction, inner) array into its whole stripes and its incomplete one.

        Each part is a list with one (outer, stripes, inner) array per position in the stripe; empty parts are left out.
        """
        outer, length, inner = self.flat_shape
        whole = length - length % self.n
        parts = []
        if whole:
            stacked = self._reshape(array[:, :whole], (outer, whole // self.n, self.n, inner))
            parts.append([stacked[:, :, i] for i in range(self.n)])
        if whole < length:
            parts.append([array[:, i : i + 1] for i in range(whole, length)])
        return parts

    def join(self, parts: list[list[Any]]) -> Any:
        """The inverse of ``split``, back in the kernel's own shape."""
        outer, _, inner = self.flat_shape
        stack = np.stack if self.tf is None else self.tf.stack
        pieces = [self._reshape(stack(part, axis=2), (outer, -1 if outer * inner else 0, inner)) for part in parts]
        if not pieces:
            return self._reshape(self.array == self.array, self.shape)  # nothing to mask in an empty kernel
        if len(pieces) == 1:
            joined = pieces[0]
        else:
            joined = np.concatenate(pieces, axis=1) if self.tf is None else self.tf.concat(pieces, axis=1)
        if self.order is None:
            return self._reshape(joined, self.shape)
        joined = self._reshape(joined, tuple(self.shape[axis] for axis in self.order))
        inverse = tuple(int(axis) for axis in np.argsort(self.order))
        return joined.transpose(inverse) if self.tf is None else self.tf.transpose(joined, inverse)

    def _reshape(self, array: Any, shape: tuple[int, ...]) -> Any:
        return array.reshape(shape) if self.tf is None else self.tf.reshape(array, shape)


def _kept(positions: list[Any], keep: int) -> list[Any]:
    """Which positions of each stripe rank among the ``keep`` highest.

    A position's rank starts at its index, as if all scores were equal; each strictly higher score further right
    overtakes it. NumPy arrays and TensorFlow tensors share this code through their operators.
    """
    if keep >= len(positions):
        return [position == position for position in positions]
    ranks: list[Any] = list(range(len(positions)))
    for right in range(1, len(positions)):
        for left in range(right):
            overtaken = _count(positions[right] > positions[left], len(positions))
            ranks[left] = ranks[left] + overtaken
            ranks[right] = ranks[right] - overtaken
    return [rank < keep for rank in ranks]


def _count(condition: Any, largest: int) -> Any:
    """A bool array as numbers that can count to ``largest``."""
    tf = _tensorflow_of(condition)
    if tf is not None:
        return tf.cast(condition, tf.float32)  # GPUs add float32 everywhere; int32 would be sent to the host
    return condition.view(np.int8) if largest < 128 else condition.astype(np.int32)


def _ordered(score: Any) -> Any:
    """Scores that compare as the rule says: half precision widened exactly, NaN below everything."""
    tf = _tensorflow_of(score)
    if tf is None:
        score = _comparable(score)
        if score.dtype.kind == "f":
            absent = np.isnan(score)
            return np.where(absent, score.dtype.type(-np.inf), score) if absent.any() else score
        return score
    if score.dtype == tf.bool:
        return tf.cast(score, tf.float32)
    if not score.dtype.is_floating:
        return score
    if score.dtype.size < 4:
        score = tf.cast(score, tf.float32)
    return tf.where(tf.math.is_nan(score), tf.constant(-math.inf, score.dtype), score)


def _comparable(array: np.ndarray) -> np.ndarray:
    """Half precision and narrower floats (ml_dtypes' bfloat16 included) as float32, which holds them exactly."""
    if array.dtype.kind == "c":
        raise ValueError(f"complex values have no order; got dtype {array.dtype}")
    if array.dtype.kind == "V" or (array.dtype.kind == "f" and array.dtype.itemsize < 4):
        return array.astype(np.float32)
    return array.astype(np.uint8) if array.dtype.kind == "b" else array


def _nonzero(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(_comparable(array) != 0)


def _where(mask: Any, yes: Any, no: Any) -> Any:
    tf = _tensorflow_of(mask)
    array = yes if np.isscalar(no) else no
    if tf is None:
        array = np.asarray(array)
        return np.where(mask, np.asarray(yes, array.dtype), np.asarray(no, array.dtype))
    array = tf.convert_to_tensor(array)
    return tf.where(mask, tf.cast(yes, array.dtype), tf.cast(no, array.dtype))


def _smallest(losses: list[Any], fraction: Any) -> list[Any]:
    """Marks the given fraction of all stripes, those with the smallest losses, in arrays like ``losses``."""
    if not losses:
        return []
    tf = _tensorflow_of(losses[0])
    sizes = [math.prod(loss.shape) for loss in losses]
    if tf is None:
        flat = np.concatenate([loss.reshape(-1) for loss in losses])
        count = round(min(max(float(fraction), 0.0), 1.0) * flat.size)
        chosen = np.zeros(flat.size, bool)
        chosen[np.argsort(flat, kind="stable")[:count]] = True
        pieces = np.split(chosen, np.cumsum(sizes)[:-1])
        return [piece.reshape(loss.shape) for piece, loss in zip(pieces, losses, strict=True)]
    flat = tf.concat([tf.reshape(loss, [-1]) for loss in losses], axis=0)
    share = tf.clip_by_value(tf.cast(fraction, tf.float64), 0.0, 1.0)
    count = tf.cast(tf.round(share * sum(sizes)), tf.int32)
    # The rank of each stripe: the sorting permutation, inverted.
    ranks = tf.math.invert_permutation(tf.argsort(flat, stable=True))
    pieces = tf.split(ranks < count, sizes)
    return [tf.reshape(piece, loss.shape) for piece, loss in zip(pieces, losses, strict=True)]


def _check_axes(reduction_axes: Axes, rank: int) -> tuple[int, ...]:
    sequence = reduction_axes if isinstance(reduction_axes, Sequence) else (reduction_axes,)
    axes = tuple(operator.index(axis) for axis in sequence)
    positive = tuple(axis + rank if axis < 0 else axis for axis in axes)
    if not positive or len(set(positive)) < len(positive) or any(not 0 <= axis < rank for axis in positive):
        raise ValueError(f"reduction_axes must be distinct axes of a kernel of rank {rank}, got {reduction_axes!r}")
    return positive


def _tensorflow_of(array: Any) -> Any:
    """The tensorflow module if ``array`` is one of its tensors or variables, else None."""
    tf = sys.modules.get("tensorflow")
    if tf is None or isinstance(array, np.ndarray) or not hasattr(tf, "is_tensor"):
        return None
    return tf if tf.is_tensor(array) or isinstance(array, tf.Variable) else None
