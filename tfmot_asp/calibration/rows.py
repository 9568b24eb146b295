"""The rows that a product multiplies with its kernel, taken out of the tensor that it reads.

A product is ``rows (N, K) @ kernel (K, O)``: for a Dense layer a row is the last axis at one position, for a
convolution the window at one position of the output, in the column order of ``tf.image.extract_patches``. Grouped
convolutions and einsums with a letter that both operands and the result share are several products of one size:
*blocks*.

Only rows that are asked for are ever made, so a convolution's windows take no more memory than the rows that count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf


@dataclass(frozen=True)
class ContractedRows:
    """The rows of a matrix product or einsum.

    Attributes:
        blocks: axes of the data that number the blocks.
        kept: axes of the data whose positions are rows.
        summed: axes of the data that are summed over, in the kernel's order.
    """

    blocks: tuple[int, ...]
    kept: tuple[int, ...]
    summed: tuple[int, ...]

    def count(self, shape: Sequence[int]) -> int:
        """How many rows there are in data of a shape."""
        return math.prod(shape[axis] for axis in self.kept)

    def leading(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The axes that number the rows, as sizes: their product is the count."""
        return tuple(shape[axis] for axis in self.kept)

    def take(self, data: tf.Tensor, positions: np.ndarray | None) -> tf.Tensor:
        """The rows at ``positions`` (all if None) of every block: (blocks, positions, K), float32 or float64."""
        shape = tuple(int(size) for size in data.shape)
        blocks = math.prod(shape[axis] for axis in self.blocks)
        order = (*self.blocks, *self.kept, *self.summed)
        if order != tuple(range(len(order))):
            data = tf.transpose(data, order)
        rows = tf.reshape(data, [blocks, self.count(shape), -1])
        if positions is not None:
            rows = tf.gather(rows, positions, axis=1)
        return _wide(rows)


@dataclass(frozen=True)
class ConvolutionRows:
    """The rows of a convolution, of any number of spatial axes.

    Attributes:
        kernel: the kernel's spatial sizes.
        strides, dilations: for each spatial axis.
        padding: "SAME", "VALID", or pairs of what is added before and after each spatial axis.
        channels_last: whether channels are the data's last axis; else they are its second.
        groups: of a grouped convolution, each a block.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    padding: str | tuple[tuple[int, int], ...]
    channels_last: bool
    groups: int = 1

    def count(self, shape: Sequence[int]) -> int:
        """How many rows there are in data of a shape."""
        return math.prod(self.leading(shape))

    def leading(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Samples and output positions, as sizes."""
        spatial = shape[1:-1] if self.channels_last else shape[2:]
        sizes = []
        for axis, size in enumerate(spatial):
            before, after = self._padding(axis, size)
            reach = self.dilations[axis] * (self.kernel[axis] - 1) + 1
            sizes.append(max(0, (size + before + after - reach) // self.strides[axis] + 1))
        return (shape[0], *sizes)

    def take(self, data: tf.Tensor, positions: np.ndarray | None) -> tf.Tensor:
        """The rows at ``positions`` (all if None) of every group: (groups, positions, K), float32 or float64."""
        if not self.channels_last:
            data = tf.transpose(data, [0, *range(2, data.shape.rank), 1])
        shape = tuple(int(size) for size in data.shape)
        leading = self.leading(shape if self.channels_last else (shape[0], shape[-1], *shape[1:-1]))
        count = math.prod(leading)
        chosen = np.arange(count) if positions is None else positions
        sample, *output = np.unravel_index(chosen, leading)
        channels = shape[-1]
        # One row of zeros at the end stands for all that padding adds.
        pixels = tf.concat([tf.reshape(data, [-1, channels]), tf.zeros([1, channels], data.dtype)], axis=0)
        outside = math.prod(shape[:-1])
        windows = []
        for offset in np.ndindex(*self.kernel):
            index, inside = sample, np.ones(len(chosen), bool)
            for axis, (place, step) in enumerate(zip(output, offset, strict=True)):
                size = shape[1 + axis]
                at = place * self.strides[axis] + step * self.dilations[axis] - self._padding(axis, size)[0]
                inside &= (at >= 0) & (at < size)
                index = index * size + at
            windows.append(tf.gather(pixels, np.where(inside, index, outside)))
        rows = tf.stack(windows, axis=1)  # (positions, windows, channels)
        rows = tf.reshape(rows, [len(chosen), len(windows), self.groups, channels // self.groups])
        return _wide(tf.reshape(tf.transpose(rows, [2, 0, 1, 3]), [self.groups, len(chosen), -1]))

    def _padding(self, axis: int, size: int) -> tuple[int, int]:
        if isinstance(self.padding, tuple):
            return self.padding[axis]
        if self.padding == "VALID":
            return 0, 0
        reach = self.dilations[axis] * (self.kernel[axis] - 1) + 1
        total = max(0, (-(-size // self.strides[axis]) - 1) * self.strides[axis] + reach - size)
        return total // 2, total - total // 2


Rows = ContractedRows | ConvolutionRows


def spread(count: int, wanted: int, rng: np.random.Generator) -> np.ndarray | None:
    """At most ``wanted`` of ``count`` positions, evenly spread, each drawn at random from its share; None for all.

    Not every n-th: where n divides an image's width that would be a few of its columns.
    """
    if wanted >= count:
        return None
    edges = np.arange(wanted + 1) * count / wanted
    return np.minimum((edges[:-1] + rng.random(wanted) * (edges[1:] - edges[:-1])).astype(np.int64), count - 1)


def _wide(rows: tf.Tensor) -> tf.Tensor:
    return rows if rows.dtype == tf.float64 else tf.cast(rows, tf.float32)
