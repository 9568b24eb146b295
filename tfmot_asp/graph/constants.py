"""Walking back from a tensor to the constants that it is computed from: one walk for TensorFlow, ONNX and TFLite.

What a product reads may be a weight behind casts, transposes, masks and quantization. A graph of any format says what
each tensor is made of; the order of the computation, and which constant a tensor is named after, follow here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import numpy as np
import tensorflow as tf

from tfmot_asp.graph.budget import spend
from tfmot_asp.graph.evaluate import is_costly, run_op, size_of_outputs
from tfmot_asp.graph.flat_graph import Graph, Tensor

Key = TypeVar("Key")


def behind(target: Key, inputs: Callable[[Key], Iterable[Key]]) -> Iterator[Key]:
    """A tensor and all that it is computed from, each once."""
    stack, seen = [target], {target}
    while stack:  # no recursion: chains of ops can be long
        current = stack.pop()
        yield current
        for source in inputs(current):
            if source not in seen:
                seen.add(source)
                stack.append(source)


class Constants(ABC, Generic[Key]):
    """The constant tensors of a graph, each computed once.

    Tensors are known by keys that can be hashed, whatever the format calls them.
    """

    def __init__(self) -> None:
        self.known: dict[Key, np.ndarray] = {}

    @abstractmethod
    def inputs(self, tensor: Key) -> Iterable[Key]:
        """What the op that makes a tensor reads; nothing for one that no op makes."""

    @abstractmethod
    def stored(self, tensor: Key) -> np.ndarray | None:
        """The value of a tensor that the graph holds; None for one to be computed.

        Raises:
            ValueError: for one that can be neither.
        """

    @abstractmethod
    def run(self, tensor: Key) -> Mapping[Key, np.ndarray]:
        """The outputs of the op that makes a tensor, all inputs of which are in ``known``.

        Raises:
            ValueError: if the op is not understood.
        """

    @abstractmethod
    def rank(self, tensor: Key) -> tuple[Any, ...] | None:
        """How much speaks for a stored constant as the one to name a weight by, its size first; None for others."""

    def value(self, target: Key) -> np.ndarray:
        """Computes a tensor.

        Raises:
            ValueError: if a tensor on the way has no value, or an op is not understood.
        """
        path, on_path = [target], {target}
        while path:  # no recursion: chains of ops can be long
            tensor = path[-1]
            value = None if tensor in self.known else self.stored(tensor)
            if tensor not in self.known and value is None:
                missing = next((source for source in self.inputs(tensor) if source not in self.known), None)
                if missing is None:
                    self.known.update(self.run(tensor))
                elif missing in on_path:
                    raise ValueError("its ops depend on each other in a circle")
                else:
                    path.append(missing)
                    on_path.add(missing)
                    continue
            elif value is not None:
                self.known[tensor] = value
            path.pop()
            on_path.discard(tensor)
        return self.known[target]

    def source(self, target: Key) -> Key:
        """The largest stored constant that a tensor is computed from: the kernel, among scales and shapes."""
        best, most = target, None
        for tensor in behind(target, self.inputs):
            rank = self.rank(tensor)
            if rank is not None and (most is None or rank > most):
                best, most = tensor, rank
        return best


class GraphConstants(Constants[Tensor]):
    """The constants of a traced graph.

    Args:
        graph: in which they are.
        held: values of ops that stand for constants, by name.
    """

    def __init__(self, graph: Graph, held: Mapping[str, np.ndarray] | None = None) -> None:
        super().__init__()
        self.graph = graph
        self.held = held or {}

    def read(self, tensor: Tensor) -> tuple[np.ndarray | None, str | None]:
        """The value of a tensor, or why it has none."""
        try:
            return self.value(tensor), None
        except (ValueError, TypeError, NotImplementedError, AttributeError, tf.errors.OpError) as error:
            return None, str(error)

    def name(self, tensor: Tensor) -> tuple[str, int]:
        """Name and identity of the constant that a tensor is computed from."""
        rank = self.rank(self.source(tensor))
        return (rank[1], rank[2]) if rank is not None else ("?", id(tensor))

    def inputs(self, tensor: Tensor) -> Iterable[Tensor]:
        return tensor.op.inputs if tensor.op is not None else ()

    def stored(self, tensor: Tensor) -> np.ndarray | None:
        op = tensor.op
        if tensor.value is not None:
            return tensor.value
        if op is None:
            raise ValueError("its value is captured from outside the graph")
        if op.name in self.held:
            return self.held[op.name]
        if op.type in ("ReadVariableOp", "Identity") and op.inputs[0].variable is not None:
            return self.graph.variables[op.inputs[0].variable].numpy()
        return None

    def run(self, tensor: Tensor) -> Mapping[Tensor, np.ndarray]:
        op = tensor.op
        if op is None or op.source.op_def.is_stateful:
            raise ValueError(f"op {op} between the weight and the product is not understood")
        if is_costly(op.source):
            raise ValueError(f"op {op} between the weight and the product may take for ever")
        if any(t.dtype == tf.string for t in (*op.inputs, *op.outputs)):
            raise ValueError(f"op {op} between the weight and the product handles text")
        values = [self.known[source] for source in op.inputs]
        width = max((output.dtype.size for output in op.outputs), default=1)
        spend(size_of_outputs(op.source, values) * width, f"what {op.name!r} computes from constants")
        with tf.init_scope(), tf.device("cpu"):
            results = run_op(op.source, [tf.constant(v, t.dtype) for v, t in zip(values, op.inputs, strict=True)])
        return {output: result.numpy() for output, result in zip(op.outputs, results, strict=True)}

    def rank(self, tensor: Tensor) -> tuple[Any, ...] | None:
        if tensor.variable is not None:
            variable = self.graph.variables[tensor.variable]
            return int(np.prod(variable.shape)), variable.name.partition(":")[0], id(variable)
        if tensor.value is not None and (tensor.op is None or tensor.op.type == "Const"):
            # Without the scope of the call that it was found in.
            return tensor.value.size, tensor.op.source.name if tensor.op else "constant", id(tensor)
        return None
