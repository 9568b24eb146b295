"""Batch normalization statistics that follow what pruning did to the layers in front of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_asp.graph.execute import Interpreter
from tfmot_asp.graph.flat_graph import Graph, Tensor
from tfmot_asp.graph.ops import channels_last
from tfmot_asp.keras_models.batch_norm import BatchNorm

MODES = ("relative", "absolute")
_TINY = 1e-6
_RANGE = (0.01, 100.0)


class ChannelMoments:
    """Mean and variance of channels over batches, accumulated in double precision."""

    def __init__(self) -> None:
        self.count = 0.0
        self.mean: Any = 0.0
        self._squares: Any = 0.0

    def add(self, values: np.ndarray, weights: np.ndarray | None = None) -> None:
        """Adds (rows, channels), each row counted by its weight."""
        count = float(len(values) if weights is None else weights.sum())
        if not count:
            return
        if weights is None:
            mean, variance = values.mean(0, dtype=np.float64), values.var(0, dtype=np.float64)
        else:
            share = weights.astype(np.float64) / count
            mean = share @ values
            variance = share @ (values - mean) ** 2
        total = self.count + count
        change = mean - self.mean
        self._squares = self._squares + variance * count + change**2 * (self.count * count / total)
        self.mean = self.mean + change * (count / total)
        self.count = total

    @property
    def variance(self) -> np.ndarray:
        """Of each channel, over all rows."""
        return self._squares / self.count


@dataclass(frozen=True, eq=False)
class NormSite:
    """Where a batch normalization meets its input.

    Attributes:
        data: the input.
        axes: those axes of it that have statistics of their own.
    """

    data: Tensor
    axes: tuple[int, ...]

    def rows(self, value: tf.Tensor) -> np.ndarray:
        """The input as (positions, channels), floating."""
        rank = value.shape.rank
        own = tuple(axis % rank for axis in self.axes)
        order = (*(axis for axis in range(rank) if axis not in own), *own)
        value = tf.cast(value, tf.float32) if value.dtype.size < 4 else value
        value = value if order == tuple(range(rank)) else tf.transpose(value, order)
        channels = int(np.prod([value.shape[axis] for axis in range(rank - len(own), rank)]))
        return tf.reshape(value, [-1, channels]).numpy()

    def leading(self, value: tf.Tensor) -> tuple[int, ...]:
        """Sizes of the axes that number the positions."""
        rank = value.shape.rank
        own = [axis % rank for axis in self.axes]
        return tuple(int(size) for axis, size in enumerate(value.shape) if axis not in own)


def norm_sites(graph: Graph, interpreter: Interpreter, norm: BatchNorm) -> list[NormSite]:
    """Where a graph uses a batch normalization: the ops at which its variance meets what varies."""
    variable = graph.variable_index(norm.variance)
    if variable is None:
        return []
    derived: set[Tensor] = set()
    sites = []
    for op in graph.ops:
        if not any(t in derived or t.variable == variable for t in op.inputs):
            continue
        data = [t for t in op.inputs if t in interpreter.varying]
        if not data:
            derived.update(op.outputs)
        elif op.type.startswith("FusedBatchNorm"):
            sites.append(NormSite(op.inputs[0], (-1,) if channels_last(op.attr("data_format", "NHWC")) else (1,)))
        elif len(data) == 1 and op.type == "Mul":
            sites.append(NormSite(data[0], norm.axes))
    return sites


def moved(
    mean: np.ndarray, variance: np.ndarray, dense: ChannelMoments, pruned: ChannelMoments, mode: str
) -> tuple[np.ndarray, np.ndarray]:
    """New statistics of a batch normalization.

    Args:
        mean, variance: as the dense model has them, any one shape.
        dense, pruned: of its input in both models, on the same data.
        mode: "relative" moves the statistics by what pruning changed on the data, so that data of another distribution
            than training's does no harm and an unpruned model keeps its own to the bit; "absolute" takes the data's.

    Returns:
        Mean and variance, of the dtype and shape that came in.
    """

    def shaped(values: np.ndarray) -> np.ndarray:
        return np.asarray(values, np.float64).reshape(mean.shape)

    if mode == "absolute":
        new_mean, new_variance = shaped(pruned.mean), shaped(pruned.variance)
    else:
        new_mean = mean + shaped(pruned.mean - dense.mean)
        ratio = np.clip((pruned.variance + _TINY) / (dense.variance + _TINY), *_RANGE)
        new_variance = variance * shaped(ratio)
    return new_mean.astype(mean.dtype), new_variance.astype(variance.dtype)
