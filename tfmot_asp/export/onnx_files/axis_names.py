"""Names for the open axes of a file's inputs: one for all that must be of one size, such as ``sequence``."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from tfmot_asp.export.lowering.graph_edit import GraphEdit, node_of
from tfmot_asp.export.onnx_files.onnx_graph import BATCH
from tfmot_asp.graph.inputs import has_open_batch

Place = tuple[str, int]  # an input and one of its axes

_NAMES = {2: (BATCH, "sequence"), 3: (BATCH, "sequence", "features"), 4: (BATCH, "height", "width", "channels")}
_SIZES = ((16, 24), (64, 96), (224, 256))
_MOST = 8  # axes, of which all subsets would be tried
_BATCH_SIZE = 2


def axis_names(graph_def: Any, inputs: Sequence[str], specs: Sequence[tf.TensorSpec]) -> dict[Place, str]:
    """What to call each open axis.

    Axes are of one size if the graph's shapes fit together only when they change together: it is looked at with some of
    them of another size than the rest. What it takes at any sizes has a name of its own.

    Args:
        graph_def: a frozen graph.
        inputs: names of its input tensors.
        specs: of these; their names are the inputs' in the file.
    """
    batched = [(str(spec.name), 0) for spec in specs if spec.shape.rank] if has_open_batch(specs) else []
    names = dict.fromkeys(batched, BATCH)
    inputs_too = {str(spec.name) for spec in specs}
    places = [
        (str(spec.name), axis)
        for spec in specs
        for axis, size in enumerate(spec.shape)
        if size is None and (str(spec.name), axis) not in names
    ]
    for group in _groups(graph_def, inputs, specs, places) if places else ():
        names |= dict.fromkeys(group, _name(group, specs, {*names.values(), *inputs_too}))
    return names


def _groups(
    graph_def: Any, inputs: Sequence[str], specs: Sequence[tf.TensorSpec], places: list[Place]
) -> Iterator[tuple[Place, ...]]:
    """The axes in groups that change together."""
    fits = _Fitting(graph_def, inputs, specs)
    pair = next((pair for pair in _SIZES if all(fits({}, size) for size in pair)), None)
    left = places
    while left:
        group = (left[0],) if pair is None or len(places) > _MOST else _together(fits, pair, left)
        yield group
        left = [place for place in left if place not in group]


def _together(fits: _Fitting, pair: tuple[int, int], places: list[Place]) -> tuple[Place, ...]:
    """The smallest group of the first place that may be of another size than the rest."""
    first, rest = places[0], places[1:]
    for count in range(len(rest) + 1):
        for others in itertools.combinations(rest, count):
            if fits(dict.fromkeys((first, *others), pair[1]), pair[0]):
                return (first, *others)
    return (first,)


class _Fitting:
    """Whether a graph's shapes fit together at given sizes of its open axes."""

    def __init__(self, graph_def: Any, inputs: Sequence[str], specs: Sequence[tf.TensorSpec]) -> None:
        edit = GraphEdit(type(graph_def).FromString(graph_def.SerializeToString()))
        edit.store_large()
        own = {node_of(name) for name in inputs}
        self._graph_def = type(graph_def)(versions=graph_def.versions, library=graph_def.library)
        self._graph_def.node.extend(node for name, node in edit.nodes.items() if name not in own)
        self._inputs, self._specs = inputs, specs
        read = {tensor.removeprefix("^") for node in self._graph_def.node for tensor in node.input}
        self._read = [name in read or node_of(name) in read for name in inputs]

    def __call__(self, sizes: dict[Place, int], otherwise: int) -> bool:
        with tf.Graph().as_default():
            tensors = {}
            for name, spec, is_read in zip(self._inputs, self._specs, self._read, strict=True):
                opened = [sizes.get((str(spec.name), axis), otherwise) for axis in range(len(spec.shape))]
                opened[:1] = [_BATCH_SIZE] * len(opened[:1])
                shape = [given if size is None else size for given, size in zip(opened, spec.shape, strict=True)]
                if is_read:
                    tensors[name] = tf.compat.v1.placeholder(spec.dtype, shape)
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
