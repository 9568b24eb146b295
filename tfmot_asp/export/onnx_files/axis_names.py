"""Names for the open axes of a file's inputs: one for all that must be of one size, such as ``sequence``."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfmot_asp.export.lowering.frozen import Frozen
from tfmot_asp.export.lowering.invariants import open_groups
from tfmot_asp.export.onnx_files.onnx_graph import BATCH
from tfmot_asp.graph.inputs import has_open_batch
from tfmot_asp.graph.open_axes import Group, Place, places_of

_NAMES = {2: (BATCH, "sequence"), 3: (BATCH, "sequence", "features"), 4: (BATCH, "height", "width", "channels")}


def axis_names(
    graph_def: Any, inputs: Sequence[str], outputs: Sequence[str], specs: Sequence[tf.TensorSpec]
) -> dict[Place, str]:
    """What to call each open axis.

    What the graph takes at any size has a name of its own.

    Args:
        graph_def: a frozen graph.
        inputs: names of its input tensors.
        outputs: names of its output tensors.
        specs: of these; their names are the inputs' in the file.
    """
    batched = [(str(spec.name), 0) for spec in specs if spec.shape.rank] if has_open_batch(specs) else []
    names = dict.fromkeys(batched, BATCH)
    inputs_too = {str(spec.name) for spec in specs}
    for group in open_groups(_without_weights(graph_def, inputs, outputs, specs)) if places_of(specs) else ():
        names |= dict.fromkeys(group, _name(group, specs, {*names.values(), *inputs_too}))
    return names


def _without_weights(
    graph_def: Any, inputs: Sequence[str], outputs: Sequence[str], specs: Sequence[tf.TensorSpec]
) -> Frozen:
    frozen = Frozen(graph_def, specs, inputs, outputs)
    edit = frozen.edit()
    edit.store_large()
    return frozen.edited(edit)


def _name(group: Group, specs: Sequence[tf.TensorSpec], taken: set[str]) -> str:
    name, axis = group[0]
    rank = next(spec.shape.rank for spec in specs if spec.name == name)
    usual = _NAMES.get(rank, ())
    label = usual[axis] if axis < len(usual) else f"axis_{axis}"
    unique = label if label not in taken else f"{name}_{label}"
    count = itertools.count(1)
    while unique in taken:
        unique = f"{name}_{label}_{next(count)}"
    return unique
