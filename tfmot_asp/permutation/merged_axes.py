"""Weights of which several axes are one in their layer's eyes: (heads, channels of a head), as attention keeps them.

An EinsumDense kernel of shape (features, heads, channels) makes heads * channels channels. Analysed axis by axis, all
heads would share one order. Taken as one axis, as that of a Dense layer followed by a reshape is, each head has an
order of its own wherever the ops between treat heads as a batch. Here is which axes to take so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from tfmot_asp import einsum
from tfmot_asp.graph.flat_graph import Graph, Op, Tensor
from tfmot_asp.graph.ops import EINSUM, types_of
from tfmot_asp.permutation.axes import Runs
from tfmot_asp.permutation.rules.elementwise import BROADCASTING, UNARY
from tfmot_asp.permutation.rules.reshaping import runs

_Use = tuple[Op, int]
"""An op, and as which of its inputs it takes something."""

_EINSUM = frozenset(types_of(EINSUM))
_HANDS_ON = frozenset({"Identity", "Cast", "StopGradient", "PreventGradient"})
_ELEMENTWISE = frozenset({*UNARY, *BROADCASTING, "BiasAdd"}) - {"Softmax", "LogSoftmax"}


def merged_axes(graph: Graph) -> dict[int, Runs]:
    """The weights that have axes to take as one, by their position in the graph's variables.

    A kernel's are neighbours that everything that reads it (an einsum, a reshape before a matrix product) sums together
    or hands on together. A weight of shape (heads, channels) that is added to or multiplied with the result is taken as
    the result is. A weight with any other reader has none.
    """
    uses = _uses(graph)
    kernels: dict[int, set[int]] = {}
    for variable, found in uses.items():
        if all(op.type in _EINSUM or op.type == "Reshape" for op, _ in found):
            kernels[variable] = set.intersection(*(_together(op, place) for op, place in found))
    split = _split_at_the_end(graph, {use: kernels[v] for v, found in uses.items() if v in kernels for use in found})
    vectors = {
        variable: {0}
        for variable, found in uses.items()
        if len(graph.variables[variable].shape) == 2
        and all(op.type in _ELEMENTWISE and any(id(t) in split for t in op.inputs) for op, _ in found)
    }
    return {
        variable: _as_runs(len(graph.variables[variable].shape), firsts)
        for variable, firsts in {**kernels, **vectors}.items()
        if firsts
    }


def _uses(graph: Graph) -> dict[int, list[_Use]]:
    """For each variable the ops that compute with its value; none for a variable that the model returns."""
    readers: dict[int, list[_Use]] = {}
    for op in graph.ops:
        for place, tensor in enumerate(op.inputs):
            readers.setdefault(id(tensor), []).append((op, place))
    ends = {id(_source(tensor)) for tensor in graph.outputs}
    returned = set()
    found: dict[int, list[_Use]] = {}
    for op in graph.ops:
        for place, tensor in enumerate(op.inputs):
            if tensor.variable is not None:
                read = op.type == "ReadVariableOp"
                own = found.setdefault(tensor.variable, [])
                own += _followed(op.outputs[0], readers) if read else [(op, place)]
                if read and id(op.outputs[0]) in ends:
                    returned.add(tensor.variable)
    return {variable: own for variable, own in found.items() if own and variable not in returned}


def _followed(tensor: Tensor, readers: Mapping[int, list[_Use]]) -> Iterator[_Use]:
    for op, place in readers.get(id(tensor), ()):
        if op.type in _HANDS_ON:
            yield from _followed(op.outputs[0], readers)
        else:
            yield op, place


def _source(tensor: Tensor) -> Tensor:
    """What a tensor is but for its dtype."""
    while tensor.op is not None and tensor.op.type in _HANDS_ON:
        tensor = tensor.op.inputs[0]
    return tensor


def _together(op: Op, place: int) -> set[int]:
    """The axes of a weight that its reader allows to take as one with the next: both of more than one position."""
    shape = op.inputs[place].shape or ()
    if op.type in _EINSUM:
        equation = einsum.parse(op.attr("equation"))
        names = equation.axes(place, len(shape))
        sets = [] if len(set(names)) < len(names) else [set(role) for role in equation.roles(place, len(shape))]
    else:
        sets = (
            [set(ins) for ins, outs in runs(shape, op.outputs[0].shape or ()) if len(outs) == 1]
            if 0 not in shape
            else []
        )
    return {
        axis
        for axis in range(len(shape) - 1)
        if min(shape[axis : axis + 2]) > 1 and any({axis, axis + 1} <= both for both in sets)
    }


def _split_at_the_end(graph: Graph, kernels: Mapping[_Use, set[int]]) -> set[int]:
    """The tensors, by id, whose last two axes are one to what makes them: a reshape, or an einsum with such a kernel.

    Elementwise ops hand that on.
    """
    found: set[int] = set()
    by_op: dict[int, list[tuple[int, set[int]]]] = {}
    for (op, place), firsts in kernels.items():
        by_op.setdefault(id(op), []).append((place, firsts))
    for op in graph.ops:
        if op.type == "Reshape" and op.inputs[0].variable is None:
            shape = op.outputs[0].shape or ()
            last = [len(shape) - 2, len(shape) - 1]
            splits = 0 not in shape and (op.inputs[0].shape is not None)
            if splits and any(
                len(ins) == 1 and outs[-2:] == last for ins, outs in runs(op.inputs[0].shape or (), shape)
            ):
                found.add(id(op.outputs[0]))
        elif op.type == "IdentityN":
            found.update(id(out) for own, out in zip(op.inputs, op.outputs, strict=True) if id(own) in found)
        elif op.type in _ELEMENTWISE and len(op.outputs) == 1:
            ends = {(t.shape or ())[-2:] for t in op.inputs if id(t) in found}
            if (op.outputs[0].shape or ())[-2:] in ends:
                found.add(id(op.outputs[0]))
        elif any(_hands_on_at_the_end(op, place, firsts) for place, firsts in by_op.get(id(op), ())):
            found.add(id(op.outputs[0]))
    return found


def _hands_on_at_the_end(op: Op, place: int, firsts: Iterable[int]) -> bool:
    """Whether the last two axes of an einsum's result are axes of an operand that are taken as one."""
    if op.type not in _EINSUM:
        return False
    equation = einsum.parse(op.attr("equation"))
    names = equation.axes(place, len(op.inputs[place].shape or ()))
    return any(names[axis : axis + 2] == equation.output_axes(len(op.outputs[0].shape or ()))[-2:] for axis in firsts)


def _as_runs(rank: int, firsts: set[int]) -> Runs:
    """The axes as runs, from those that are taken as one with the next."""
    found: list[tuple[int, ...]] = []
    for axis in range(rank):
        if axis - 1 in firsts:
            found[-1] += (axis,)
        else:
            found.append((axis,))
    return tuple(found)
