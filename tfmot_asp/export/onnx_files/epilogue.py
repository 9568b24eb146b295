"""Where the output of a matrix product is quantized: after what TensorRT computes in the same kernel.

A convolution or matrix product is fused with the bias, the shortcut and the activation that follow it. The output of
that kernel is int8 only if the quantizer stands behind all of them; one in between splits the kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tfmot_asp.export.onnx_files.onnx_graph import Scope

if TYPE_CHECKING:
    import onnx

# Ops that work on each element alone, and those that only move or rename elements.
_POINTWISE = frozenset(
    ("Abs", "Add", "BatchNormalization", "Celu", "Clip", "Div", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish")
    + ("LeakyRelu", "Log", "Max", "Min", "Mish", "Mul", "Neg", "PRelu", "Pow", "Reciprocal", "Relu", "Selu", "Sigmoid")
    + ("Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tanh", "ThresholdedRelu")
)
MOVING = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
_SHORTCUT = frozenset({"Add", "Sum"})

_ELSEWHERE = -1  # among the positions of a tensor's readers


@dataclass(frozen=True)
class Epilogue:
    """What belongs to a product's kernel.

    Attributes:
        output: the tensor that the kernel writes.
        shortcuts: the tensors of other branches that are added on the way, as (node index, input index).
        nodes: indices of the nodes behind the product.
    """

    output: str
    shortcuts: tuple[tuple[int, int], ...] = ()
    nodes: tuple[int, ...] = ()


class _Kernel:
    """A kernel that grows node by node.

    Attributes:
        epilogue: all that has joined so far.
        tensors: what it computes.
        unread: readers outside of it, of each tensor that has any.
    """

    def __init__(self, start: str, readers: Mapping[str, set[int]]) -> None:
        self._readers = readers
        self.epilogue, self.tensors, self.unread = Epilogue(start), {start}, {start: set(readers.get(start, ()))}

    def join(self, position: int, node: onnx.NodeProto, shortcuts: Iterable[int]) -> None:
        """Adds a node that reads the kernel's tensors and, at the inputs ``shortcuts``, other branches."""
        output, before = node.output[0], self.epilogue
        added = tuple((position, operand) for operand in shortcuts)
        self.epilogue = Epilogue(output, before.shortcuts + added, (*before.nodes, position))
        self.unread = {name: left for name, all_ in self.unread.items() if (left := all_ - {position})}
        self.unread[output] = set(self._readers.get(output, ()))
        self.tensors.add(output)

    @property
    def has_one_output(self) -> bool:
        """Whether everything passes through the last tensor, so that the kernel may end there."""
        return len(self.unread) == 1


class Epilogues:
    """The kernels of one graph, found from the last product to the first: of two added branches, TensorRT fuses the
    addition with the one that is computed last."""

    def __init__(self, scope: Scope, shapes: Mapping[str, tuple[int | None, ...]]) -> None:
        """Indexes the readers of each tensor.

        Args:
            scope: the model's main graph.
            shapes: what is known of the tensors' shapes.
        """
        self.scope, self.shapes = scope, shapes
        self.nodes = list(scope.graph.node)
        self.readers: dict[str, set[int]] = {}
        for index, node in enumerate(self.nodes):
            for name in node.input:
                self.readers.setdefault(name, set()).add(index)
        leaving = [value.name for value in scope.graph.output]
        leaving += [name for inner, node in scope.walk() if inner is not scope for name in node.input]  # into a body
        for name in leaving:
            self.readers.setdefault(name, set()).add(_ELSEWHERE)
        self._taken: set[int] = set()

    def of(self, index: int) -> Epilogue:
        """The kernel of the product at a position; call it for the last product first.

        A node joins if it is pointwise and reads the kernel's tensors and constants (or, once, adds a shortcut of the
        same shape). The kernel ends at the last tensor that is computed and through which everything passes.
        """
        kernel = _Kernel(self.nodes[index].output[0], self.readers)
        found = kernel.epilogue
        for position in range(index + 1, len(self.nodes)):
            if any(_ELSEWHERE in readers for readers in kernel.unread.values()):
                break
            node = self.nodes[position]
            if kernel.tensors.isdisjoint(node.input):
                continue
            shortcuts = self._shortcut(node, kernel.tensors)
            if shortcuts is None or (shortcuts and (kernel.epilogue.shortcuts or position in self._taken)):
                break
            kernel.join(position, node, shortcuts)
            if kernel.has_one_output and node.op_type not in MOVING:
                found = kernel.epilogue
        self._taken.update(found.nodes)
        return found

    def _shortcut(self, node: onnx.NodeProto, inside: set[str]) -> list[int] | None:
        """Which inputs of a node come from other branches; None if it cannot be part of the kernel."""
        varying = [i for i, name in enumerate(node.input) if name and self.scope.varies(name)]
        others = [i for i in varying if node.input[i] not in inside]
        if node.op_type in MOVING and not others:
            return []
        if node.op_type not in _POINTWISE or len([name for name in node.output if name]) != 1:
            return None
        if not others:
            return []
        same = node.op_type in _SHORTCUT and len(others) == 1 and len(varying) == 2
        shapes = [self.shapes.get(node.input[i]) for i in varying]
        return others if same and shapes[0] is not None and shapes[0] == shapes[1] else None


def shapes_of(model: onnx.ModelProto) -> dict[str, tuple[int | None, ...]]:
    """The shapes that a model states for its tensors; None for an open size."""
    graph = model.graph
    return {
        value.name: tuple(
            dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim
        )
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }
