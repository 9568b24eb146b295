"""Runs a float16 model as a GPU does: with every result rounded to float16.

onnxruntime cannot: on a CPU it computes float16 in float32 and drops the casts between its kernels, so that what
overflows on a GPU does not overflow there. So the model is run in float32 with a cast to float16 and back behind each
node: products and reductions accumulate in float32, as Tensor Cores do, and what they give is rounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tfmot_asp.export.onnx_files.onnx_graph import import_onnx, node_name
from tfmot_asp.export.onnx_files.run import session
from tfmot_asp.graph.probes import NamedArrays

if TYPE_CHECKING:
    import onnx

LARGEST = float(np.finfo(np.float16).max)

# What these give are values that they were given.
_MOVING = frozenset(
    {
        *("Abs", "Clip", "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND"),
        *("Identity", "Max", "MaxPool", "Min", "Neg", "Pad", "ReduceMax", "ReduceMin", "Relu", "Reshape", "Slice"),
        *("SpaceToDepth", "Split", "Squeeze", "Tile", "TopK", "Transpose", "Unsqueeze", "Where", "If", "Loop", "Scan"),
    }
)


class HalfRunner:
    """An onnxruntime session of a float16 model that rounds as a GPU does, and notices what overflows.

    Attributes:
        overflows: the nodes that computed finite numbers beyond float16 from finite ones, with the largest, as text.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        """Takes a model with shapes inferred; it stays as it is."""
        rounded = import_onnx().ModelProto()
        rounded.CopyFrom(model)
        self._nodes = {name: (node_name(node), node.op_type) for name, node in _round(rounded.graph)}
        self.overflows: dict[str, str] = {}
        # Whether or not onnxruntime may fuse nodes, it must not drop the casts.
        self._session = session(rounded, optimize=False)

    def get_inputs(self) -> Any:
        """As of a session; what is float16 in the model is float32."""
        return self._session.get_inputs()

    def get_outputs(self) -> Any:
        """As of a session, without the magnitudes of inner tensors."""
        return [value for value in self._session.get_outputs() if value.name not in self._nodes]

    def run(self, names: list[str], feeds: NamedArrays) -> list[np.ndarray]:
        """As of a session; inputs in half precision are taken as well."""
        floats = {value.name for value in self._session.get_inputs() if value.type == "tensor(float)"}
        feeds = {name: value.astype(np.float32) if name in floats else value for name, value in feeds.items()}
        found = self._session.run([*names, *self._nodes], feeds)
        for magnitude, (node, kind) in zip(found[len(names) :], self._nodes.values(), strict=True):
            # From half way to the next step on, float16 rounds to infinity.
            if np.isfinite(magnitude) and magnitude >= LARGEST + 16:
                self.overflows.setdefault(node, f"{node!r} ({kind}) computes {float(magnitude):.3g}")
        return list(found[: len(names)])


def _round(graph: onnx.GraphProto, inner: bool = False) -> Iterator[tuple[str, onnx.NodeProto]]:
    """Makes a graph float32 and rounds what nodes give; yields the magnitude of each, an output now, and the node."""
    onnx = import_onnx()
    half, single, helper = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT, onnx.helper
    values = [*graph.input, *graph.output, *graph.value_info]
    halves = {value.name for value in values if value.type.tensor_type.elem_type == half}
    for value in values:
        if value.name in halves:
            value.type.tensor_type.elem_type = single
    for tensor in graph.initializer:
        _widen(tensor)
    nodes: list[Any] = []

    def cast(name: str, result: str) -> None:
        nodes.append(helper.make_node("Cast", [name], [f"{result}/half"], to=half))
        nodes.append(helper.make_node("Cast", [f"{result}/half"], [result], to=single))

    given = {} if inner else {value.name: f"{value.name}/rounded" for value in graph.input if value.name in halves}
    for name, result in given.items():
        cast(name, result)
    for node in graph.node:
        node.input[:] = [given.get(name, name) for name in node.input]
        for attribute in node.attribute:
            _widen(attribute.t)
            if attribute.HasField("g"):
                list(_round(attribute.g, inner=True))
            elif attribute.name in ("to", "dtype") and attribute.i == half:
                attribute.i = single
        nodes.append(node)
        for index, name in enumerate(node.output):
            if name in halves and node.op_type not in _MOVING:
                exact, magnitude = f"{name}/exact", f"{name}/magnitude"
                node.output[index] = exact
                cast(exact, name)
                if not inner:
                    nodes.append(helper.make_node("Abs", [exact], [f"{exact}/abs"]))
                    nodes.append(helper.make_node("ReduceMax", [f"{exact}/abs"], [magnitude], keepdims=0))
                    graph.output.append(helper.make_tensor_value_info(magnitude, single, ()))
                    yield magnitude, node
    del graph.node[:]
    graph.node.extend(nodes)


def _widen(tensor: onnx.TensorProto) -> None:
    onnx = import_onnx()
    if tensor.data_type == onnx.TensorProto.FLOAT16:
        values = onnx.numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
