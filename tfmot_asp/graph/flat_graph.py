"""The data of a flat graph: ops in execution order, tensors with static shapes, variables by identity."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfmot_asp.keras_models.variables import underlying_variable

_UNSET = object()

UNKNOWN = (-1,)


class ListShape(NamedTuple):
    """How many tensors a list holds, None if that is not known, and their shape.

    Attributes:
        length: number of tensors.
        element: their shape: None while there are none; (-1,) if it is not known or differs.
        declared: whether the list takes no others.
    """

    length: int | None = None
    element: tuple[int, ...] | None = UNKNOWN
    declared: bool = False

    def joined(self, other: ListShape) -> ListShape:
        """What can be said of a list that is either of two."""
        length = self.length if self.length == other.length else None
        if self.element == other.element:
            return ListShape(length, self.element, self.declared and other.declared)
        known = [element for element in (self.element, other.element) if element is not None]
        return ListShape(length, known[0] if len(known) == 1 else UNKNOWN)

    def holding(self, element: tuple[int, ...] | None) -> ListShape:
        """The same after a tensor was put in."""
        if self.declared or element in (None, self.element):
            return self
        return self._replace(element=element if self.element is None else UNKNOWN)


@dataclasses.dataclass(eq=False, repr=False)
class Tensor:
    """A tensor of the flat graph.

    Attributes:
        shape: static shape, or None where even inference leaves a dimension open.
        dtype: TensorFlow dtype.
        op: the op that makes it; None for a function input or a captured value.
        index: which of the op's outputs it is, or of the function's inputs.
        variable: for a resource, position of the variable in :attr:`Graph.variables`.
        value: the value, where it is a constant.
        used: whether an op or an output of the graph reads it.
        name: of a function input, as the caller spelled it.
        captured: of what is neither constant nor variable but comes from outside (a lookup table), the eager tensor.
        stacked: of a list of tensors that no op makes, what is known of them.
    """

    shape: tuple[int, ...] | None
    dtype: tf.DType
    op: Op | None = None
    index: int = 0
    variable: int | None = None
    value: np.ndarray | None = None
    used: bool = True
    name: str = ""
    captured: Any = None
    stacked: ListShape | None = None

    @property
    def is_resource(self) -> bool:
        return self.dtype in (tf.resource, tf.variant)

    def __repr__(self) -> str:  # not of its op, whose inputs have ops, ...
        return f"Tensor({self.name or self.op or 'constant'}, {self.shape}, {self.dtype.name})"


@dataclasses.dataclass(eq=False, repr=False)
class Op:
    """An op of the flat graph: type, scoped name, inputs and outputs, and the attributes of the original.

    `training` marks ops that only a training step runs: they are traced for the variables that inference leaves out.
    """

    index: int
    type: str
    name: str
    inputs: list[Tensor]
    outputs: list[Tensor]
    source: tf.Operation
    training: bool = False

    def attr(self, name: str, default: Any = _UNSET) -> Any:
        try:
            return self.source.get_attr(name)
        except ValueError:
            if default is _UNSET:
                raise
            return default

    def __repr__(self) -> str:
        return f"Op({self})"

    def __str__(self) -> str:
        return f"{self.type} {self.name!r}"


@dataclasses.dataclass(eq=False, repr=False)
class Graph:
    """A flat graph: ops in execution order, inputs, outputs, and the variables that the ops read, by identity.

    `step` is how many of the outputs are the model's in inference, the rest being those of a training step that was
    added; None if none was.
    """

    ops: list[Op]
    inputs: list[Tensor]
    outputs: list[Tensor]
    variables: list[tf.Variable]
    step: int | None = None
    _index: dict[Any, int] = dataclasses.field(default_factory=dict, init=False)
    _indexed: int = dataclasses.field(default=0, init=False)

    def __repr__(self) -> str:
        return f"Graph({len(self.ops)} ops, {len(self.variables)} variables)"

    def variable_index(self, variable: Any) -> int | None:
        """Position of `variable` in :attr:`variables`, or None if the function does not use it."""
        for i in range(self._indexed, len(self.variables)):
            self._index.setdefault(variable_key(self.variables[i]), i)
        self._indexed = len(self.variables)
        return self._index.get(variable_key(variable))


def variable_key(variable: Any) -> Any:
    """A hashable key of the storage behind a variable: equal for all Python wrappers of one resource."""
    return id(local_variable(variable).handle)


def local_variable(variable: Any) -> Any:
    """The plain `tf.Variable` that holds the numbers here: of a distributed one, the replica that a trace reads."""
    variable = underlying_variable(variable)
    return variable._primary if isinstance(variable, tf.distribute.DistributedValues) else variable
