"""A model traced for the batches of its calibration data: one graph with open shapes, or one for each shape."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_asp.calibration.data import CalibrationBatch
from tfmot_asp.graph.flat_graph import Graph, Tensor
from tfmot_asp.graph.flatten import trace_function
from tfmot_asp.graph.inputs import required_arguments
from tfmot_asp.graph.trace import concrete_function, variables_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class TracedModel:
    """A graph of a model, with the batches that it runs on.

    Attributes:
        graph: its outputs are the model's alone, without losses.
        batches: those whose shapes it fits.
        masks: for tensors that Keras masks, the mask: (samples, positions), bool.
        function: the concrete function; it also returns losses, masks, and what follows.
        sums: which of its flat outputs are sums of two branches of one shape, as residual blocks end in.
    """

    graph: Graph
    batches: tuple[CalibrationBatch, ...]
    masks: dict[Tensor, Tensor]
    function: Any
    sums: tuple[int, ...] = ()


def trace_for(model: Any, batches: Sequence[CalibrationBatch]) -> list[TracedModel]:
    """Traces a model as it is called on batches.

    The batch axis stays open, and so does each axis in which batches differ. A model that needs to know its shapes is
    traced for each of them.

    Raises:
        ValueError: if the model cannot be called on them.
    """
    groups: dict[Any, list[CalibrationBatch]] = {}
    for batch in batches:
        key = tuple((t.dtype, t.shape.rank) for t in batch.leaves), str(_structure(batch))
        groups.setdefault(key, []).append(batch)
    traced = []
    for group in groups.values():
        shapes = [[t.shape.as_list() for t in batch.leaves] for batch in group]
        relaxed = [[None, *_common([each[i][1:] for each in shapes])] for i in range(len(shapes[0]))]
        try:
            traced.append(_trace(model, group, relaxed))
        except ValueError as error:
            logger.info("traced for each shape of the data, since it does not work with open ones: %s", error)
            by_shape: dict[str, list[CalibrationBatch]] = {}
            for batch, each in zip(group, shapes, strict=True):
                by_shape.setdefault(str(each), []).append(batch)
            traced += [_trace(model, same, [t.shape.as_list() for t in same[0].leaves]) for same in by_shape.values()]
    return traced


def _structure(batch: CalibrationBatch) -> Any:
    return tf.nest.map_structure(lambda _: 0, batch.inputs)


def _common(shapes: Sequence[Sequence[int]]) -> list[int | None]:
    return [sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*shapes, strict=True)]


def _trace(model: Any, batches: Sequence[CalibrationBatch], shapes: Sequence[Sequence[int | None]]) -> TracedModel:
    first = batches[0]
    specs = [tf.TensorSpec(shape, t.dtype) for shape, t in zip(shapes, first.leaves, strict=True)]
    inputs = tf.nest.pack_sequence_as(first.inputs, specs)
    several = isinstance(inputs, list) and required_arguments(model) > 1
    arguments = tuple(inputs) if several else (inputs,)
    function = concrete_function(model, (arguments, {}), collect=_collected)
    outputs, _, (masks, sums) = function.structured_outputs
    graph = trace_function(function, variables=variables_of(model))
    count = sum(tf.is_tensor(t) for t in tf.nest.flatten(outputs))
    end = len(graph.outputs) - len(sums)
    collected = graph.outputs[end - len(masks) : end]
    pairs = {_source(t): _source(m) for t, m in zip(collected[::2], collected[1::2], strict=True)}
    return TracedModel(
        Graph(graph.ops, graph.inputs, graph.outputs[:count], graph.variables),
        tuple(batches),
        pairs,
        function,
        tuple(range(end, len(graph.outputs))),
    )


def _collected() -> tuple[list[Any], list[Any]]:
    """What else the graph being traced is to return: tensors that Keras masks with their masks, and residual sums."""
    graph = tf.compat.v1.get_default_graph()
    return _masked_tensors(graph), _residual_sums(graph)


def _residual_sums(graph: Any) -> list[Any]:
    """Sums of two floating tensors of one shape that both depend on the inputs."""
    varying: set[int] = set()
    found = []
    for op in graph.get_operations():
        given = op.type == "Placeholder" and op.outputs[0].dtype != tf.resource
        if given or any(id(t) in varying for t in op.inputs):
            varying.update(id(t) for t in op.outputs)
        if op.type in ("AddV2", "Add") and all(id(t) in varying for t in op.inputs):
            one, other = (t.shape for t in op.inputs)
            if op.outputs[0].dtype.is_floating and one.rank and one.rank > 1 and one.as_list() == other.as_list():
                found.append(op.outputs[0])
    return found


def _masked_tensors(graph: Any) -> list[Any]:
    """The tensors that Keras has given a mask, each followed by its mask."""
    found = []
    for op in graph.get_operations():
        for tensor in op.outputs:
            mask = getattr(tensor, "_keras_mask", None)
            # One of more axes says which positions may look at which, not which are padding.
            if mask is not None and getattr(mask, "graph", None) is graph and mask.shape.rank == 2:
                found += [tensor, mask]
    return found


def _source(tensor: Tensor) -> Tensor:
    while tensor.op is not None and tensor.op.type == "Identity":
        tensor = tensor.op.inputs[0]
    return tensor


def nearest_mask(tensor: Tensor, masks: dict[Tensor, Tensor]) -> Tensor | None:
    """The mask of the nearest tensor that Keras masks, among a tensor and what it is computed from.

    Where there is none, but the model has one mask only, that one: Keras 3's attention takes its inputs' masks off.
    """
    level, seen = [tensor], {tensor}
    while masks and level:
        for found in level:
            if found in masks:
                return masks[found]
        above = [source for t in level if t.op is not None for source in t.op.inputs]
        level = [t for t in dict.fromkeys(above) if t not in seen]
        seen.update(level)
    only = set(masks.values())
    return only.pop() if len(only) == 1 else None


def row_weights(weights: np.ndarray, leading: Sequence[int]) -> np.ndarray | None:
    """How much each row of a tensor counts.

    Args:
        weights: of samples, or of samples and their positions.
        leading: sizes of the axes that number the rows.

    Returns:
        One weight for each row; None where the axes have nothing to do with samples.
    """
    rows = int(np.prod(leading))
    if weights.ndim > 1 and len(leading) > 1 and tuple(leading[: weights.ndim]) != weights.shape:
        if weights.ndim != 2 or len(leading) != 2 or leading[0] != len(weights) or leading[1] > weights.shape[1]:
            return None
        # Strided along the positions: the nearest one counts.
        weights = weights[:, np.arange(leading[1]) * weights.shape[1] // leading[1]]
    if len(leading) == 1 and weights.ndim > 1 and leading[0] == len(weights) != weights.size:
        weights = weights.reshape(len(weights), -1).max(axis=1)  # pooled over its positions
    if not weights.size or rows % weights.size or (len(leading) > 1 and leading[0] != len(weights)):
        return None
    if len(leading) == 1 and weights.ndim > 1 and rows != weights.size:
        return None
    return np.repeat(weights.reshape(-1), rows // weights.size)
