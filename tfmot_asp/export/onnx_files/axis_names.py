"""Names for the open axes of a file's inputs: one for all that must be of one size, such as ``sequence``."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfmot_asp.export.lowering.graph_edit import GraphEdit, node_of
from tfmot_asp.export.onnx_files.onnx_graph import BATCH
from tfmot_asp.graph.inputs import has_open_batch
from tfmot_asp.graph.open_axes import Place, groups_of, places_of

_NAMES = {2: (BATCH, "sequence"), 3: (BATCH, "sequence", "features"), 4: (BATCH, "height", "width", "channels")}


def axis_names(graph_def: Any, inputs: Sequence[str], specs: Sequence[tf.TensorSpec]) -> dict[Place, str]:
    """What to call each open axis.

    What the graph takes at any size has a name of its own.

    Args:
        graph_def: a frozen graph.
        inputs: names of its input tensors.
        specs: of these; their names are the inputs' in the file.
    """
    batched = [(str(spec.name), 0) for spec in specs if spec.shape.rank] if has_open_batch(specs) else []
    names = dict.fromkeys(batched, BATCH)
    inputs_too = {str(spec.name) for spec in specs}
    for group in groups_of(specs, _Fitting(graph_def, inputs)) if places_of(specs) else ():
        names |= dict.fromkeys(group, _name(group, specs, {*names.values(), *inputs_too}))
    return names


class _Fitting:
    """Whether a graph's shapes fit together at given sizes of its open axes."""

    def __init__(self, graph_def: Any, inputs: Sequence[str]) -> None:
        edit = GraphEdit(type(graph_def).FromString(graph_def.SerializeToString()))
        edit.store_large()
        own = {node_of(name) for name in inputs}
        self._graph_def = type(graph_def)(versions=graph_def.versions, library=graph_def.library)
        self._graph_def.node.extend(node for name, node in edit.nodes.items() if name not in own)
        self._inputs = inputs
        read = {tensor.removeprefix("^") for node in self._graph_def.node for tensor in node.input}
        self._read = [name in read or node_of(name) in read for name in inputs]

    def __call__(self, sized: list[tf.TensorSpec]) -> bool:
        with tf.Graph().as_default():
            tensors = {
                name: tf.compat.v1.placeholder(spec.dtype, spec.shape)
                for name, spec, is_read in zip(self._inputs, sized, self._read, strict=True)
                if is_read
            }
            try:
                tf.import_graph_def(self._graph_def, tensors, name="")
            except ValueError:
                return False
        return True


def _name(group: Sequence[Place], specs: Sequence[tf.TensorSpec], taken: set[str]) -> str:
    name, axis = group[0]
    rank = next(spec.shape.rank for spec in specs if spec.name == name)
    usual = _NAMES.get(rank, ())
    label = usual[axis] if axis < len(usual) else f"axis_{axis}"
    unique = label if label not in taken else f"{name}_{label}"
    count = itertools.count(1)
    while unique in taken:
        unique = f"{name}_{label}_{next(count)}"
    return unique
