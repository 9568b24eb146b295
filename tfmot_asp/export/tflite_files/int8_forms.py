"""Gives a function the forms that int8 can hold, where TFLite's converter quantizes what it cannot.

- Masks of attention: scores that are masked become -1e9 before their softmax, and the scale that spans this rounds all
  others to zero. What is below every score by some is as good, since its exponential is nothing beside theirs.
- Root mean squares: int8 rounds a small root to zero, by which TFLite's ``DIV`` does not divide. The reciprocal root
  times the values is the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_asp.export.lowering.frozen import CannotFreezeError, Frozen, freeze
from tfmot_asp.export.lowering.graph_edit import GraphEdit, node_of
from tfmot_asp.export.tflite_files.file_checks import Samples

# A bias below this is a mask, not a value.
_MASKING = -1e4
# How far below every score a masked one is: its weight is e⁻¹⁰ of the smallest.
_MARGIN = 10.0


@dataclass(frozen=True)
class _Mask:
    """Where a constant masks scores.

    Attributes:
        node: that joins scores and mask.
        scores: the tensor with the scores.
        reader: node that reads the constant.
        index: which of its inputs that is.
        is_added: whether the constant is added to the scores; else it takes their place.
    """

    node: str
    scores: str
    reader: str
    index: int
    is_added: bool


def suit_int8(function: Any, name: str, samples: Samples) -> Any:
    """The same function in these forms; itself, if there is nothing to change.

    Args:
        function: a ``ConcreteFunction`` that returns a dict.
        name: of its model.
        samples: typical inputs, from which the range of scores is taken.
    """
    try:
        frozen = freeze(function, name)
    except CannotFreezeError:
        return function
    edit = frozen.edit()
    masks = list(_masks(edit))
    if masks:
        for mask, (low, high) in zip(masks, _ranges(frozen, [mask.scores for mask in masks], samples), strict=True):
            _narrow(edit, mask, low, high)
    roots = list(_divisions_by_roots(edit))
    for division, root in roots:
        _multiply(edit, division, root)
    return frozen.edited(edit).function(sorted(function.structured_outputs)) if masks or roots else function


def _masks(edit: GraphEdit) -> Iterator[_Mask]:
    """The masks in front of each softmax."""
    for node in list(edit.nodes.values()):
        if node.op != "Softmax":
            continue
        above = _source(edit, node.input[0], ("Identity", "Reshape", "Transpose", "ExpandDims", "Squeeze"))
        if above.op in ("SelectV2", "Select"):
            for index in (1, 2):
                if _is_masking(edit, above.input[index]):
                    yield _Mask(above.name, above.input[3 - index], above.name, index, is_added=False)
        elif above.op in ("Add", "AddV2"):
            for index in (0, 1):
                product = _source(edit, above.input[index], ("Identity", "Cast", "Reshape", "ExpandDims"))
                if _is_masking(edit, above.input[index]):
                    yield _Mask(above.name, above.input[1 - index], above.name, index, is_added=True)
                elif product.op == "Mul":
                    found = [i for i in (0, 1) if _is_masking(edit, product.input[i])]
                    if found:
                        yield _Mask(above.name, above.input[1 - index], product.name, found[0], is_added=True)


def _source(edit: GraphEdit, tensor: str, through: tuple[str, ...]) -> Any:
    node = edit.nodes[node_of(tensor)]
    while node.op in through:
        node = edit.nodes[node_of(node.input[0])]
    return node


def _constant(edit: GraphEdit, tensor: str) -> np.ndarray | None:
    node = _source(edit, tensor, ("Identity",))
    if node.name in edit.stored:
        return edit.stored[node.name]
    return tf.make_ndarray(node.attr["value"].tensor) if node.op == "Const" else None


def _is_masking(edit: GraphEdit, tensor: str) -> bool:
    value = _constant(edit, tensor)
    return value is not None and value.dtype.kind == "f" and value.size > 0 and float(value.min()) < _MASKING


def _ranges(frozen: Frozen, tensors: list[str], samples: Samples) -> list[tuple[float, float]]:
    """The smallest and the largest value of each tensor on the samples."""
    keys = [str(index) for index in range(len(tensors))]
    outputs = [tensor if ":" in tensor else f"{tensor}:0" for tensor in tensors]
    function = Frozen(frozen.graph_def, frozen.specs, frozen.inputs, outputs, frozen.stored).function(keys)
    found = [(np.inf, -np.inf)] * len(tensors)
    for sample in samples:
        values = function(**{name: tf.constant(value) for name, value in sample.items()})
        for index, key in enumerate(keys):
            low, high = found[index]
            found[index] = min(low, float(np.min(values[key]))), max(high, float(np.max(values[key])))
    return found


def _narrow(edit: GraphEdit, mask: _Mask, low: float, high: float) -> None:
    value = _constant(edit, edit.nodes[mask.reader].input[mask.index])
    assert value is not None
    least = low - high - _MARGIN if mask.is_added else low - _MARGIN
    narrow = np.where(value < _MASKING, np.maximum(value, least), value).astype(value.dtype)
    constant = edit.constant(f"{mask.node}/mask", narrow, tf.as_dtype(value.dtype))
    edit.set_input(mask.reader, mask.index, constant)


def _divisions_by_roots(edit: GraphEdit) -> Iterator[tuple[str, str]]:
    for node in list(edit.nodes.values()):
        if node.op in ("RealDiv", "Reciprocal", "Inv"):
            root = _source(edit, node.input[-1], ("Identity",))
            if root.op == "Sqrt":
                yield node.name, root.name


def _multiply(edit: GraphEdit, division: str, root: str) -> None:
    dtype = tf.as_dtype(edit.nodes[division].attr["T"].type)
    squared, divided = edit.nodes[root].input[:1], edit.nodes[division].input[:-1]
    if not divided:  # one
        edit.replace(division, "Rsqrt", squared, T=dtype)
    else:
        edit.replace(division, "Mul", [*divided, edit.add("Rsqrt", f"{division}/Rsqrt", squared, T=dtype)], T=dtype)
