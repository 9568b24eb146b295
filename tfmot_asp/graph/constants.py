"""Walking back from a tensor to the constants that it is computed from: one walk for TensorFlow, ONNX and TFLite.

What a product reads may be a weight behind casts, transposes, masks and quantization. A graph of any format says what
each tensor is made of; the order of the computation, and which constant a tensor is named after, follow here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import numpy as np

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
