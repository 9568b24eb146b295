"""Puts QuantizeLinear and DequantizeLinear into an ONNX model, the way TensorRT's explicit quantization wants them.

Symmetric int8 with zero point 0 throughout, so that zeros stay zeros and a 2:4 kernel stays 2:4:

- each product's weight, with a scale per output channel, as float32 behind a Q/DQ pair, which TensorRT 8, 10 and 11 all
  read (or stored in int8 behind a DQ: a quarter of the size, TensorRT 10 and later);
- each product's input, with a scale per tensor, calibrated;
- the output of each 2:4 product, behind the bias, shortcut and activation that its kernel computes: TensorRT chooses
  sparse int8 kernels where a product is int8 in and int8 out;
- the shortcut that such a kernel adds. Biases stay float32: TensorRT reads no int32 ones.

onnxruntime's ``quantize_static`` cannot place them so: it quantizes a product's output before its activation, or not at
all. The values are those that it and TensorRT's documentation ("Working with Quantized Types") define.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tfmot_asp.export.activation_ranges import Histogram
from tfmot_asp.export.onnx_files.epilogue import MOVING, Epilogues, shapes_of
from tfmot_asp.export.onnx_files.onnx_graph import Scope, attributes, import_onnx, node_name
from tfmot_asp.export.onnx_files.run import Watcher

if TYPE_CHECKING:
    import onnx

logger = logging.getLogger(__name__)

_LARGEST = 127  # of int8, symmetric: -128 is not used

# Ops that make no new values.
_SAME_VALUES = MOVING | {"MaxPool"}

# The products that are quantized.
_QUANTIZED = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})


@dataclass
class QuantizationPlan:
    """What is to be quantized in a model's main graph.

    Attributes:
        products: names of the products by node index.
        weights: for each product's node index: which input is its weight, the values, and the channel axis (None for
            one scale).
        inputs: activations that some readers are to get quantized, with these readers as (node index, input index).
        outputs: activations that all readers are to get quantized.
        left: names of products that stay float, with the reason.
    """

    products: dict[int, str] = field(default_factory=dict)
    weights: dict[int, tuple[int, np.ndarray, int | None]] = field(default_factory=dict)
    inputs: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    outputs: set[str] = field(default_factory=set)
    left: dict[str, str] = field(default_factory=dict)

    @property
    def names(self) -> set[str]:
        """Names of the products that are quantized."""
        return set(self.products.values())

    @property
    def activations(self) -> list[str]:
        """All activations that need a scale."""
        return sorted({*self.inputs, *self.outputs})


def plan_quantization(
    model: onnx.ModelProto, sparse: Collection[str], keep_float: Iterable[str] = ()
) -> QuantizationPlan:
    """Decides what is quantized.

    Args:
        model: a float32 model, with shapes.
        sparse: names of the nodes whose weights have the pattern: their outputs are quantized too.
        keep_float: names of nodes, or of weights, that are to stay float.

    Raises:
        ValueError: if ``keep_float`` names something that is no product of the model, or nothing is left to quantize.
    """
    scope = Scope(model, model.graph)
    epilogues = Epilogues(scope, shapes_of(model))
    kept, known = set([keep_float] if isinstance(keep_float, str) else keep_float), set()
    plan = QuantizationPlan()
    for index in reversed(range(len(model.graph.node))):
        node = model.graph.node[index]
        which = _weight_input(scope, node)
        if which is None:
            continue
        names = {node_name(node), scope.source(node.input[which]).removesuffix(":0")}
        known |= names
        if names & kept:
            plan.left[node_name(node)] = "keep_float asks for it"
            continue
        weight = scope.value(node.input[which])
        if weight.dtype != np.float32 or not weight.size:
            plan.left[node_name(node)] = f"its weight is {weight.dtype}"
            continue
        plan.products[index] = node_name(node)
        plan.weights[index] = (which, weight, _channel_axis(node, which, weight))
        plan.inputs.setdefault(node.input[1 - which], []).append((index, 1 - which))
        epilogue = epilogues.of(index)
        for position, operand in epilogue.shortcuts:
            plan.inputs.setdefault(model.graph.node[position].input[operand], []).append((position, operand))
        if node_name(node) in sparse:
            plan.outputs.add(epilogue.output)
    if kept - known:
        raise ValueError(
            f"keep_float names {sorted(kept - known)}, which is no matrix product; there are {sorted(known)}"
        )
    if not plan.weights:
        raise ValueError("precision='int8': the model has no matrix product with a float32 weight to quantize")
    return plan


def calibrate(
    model: onnx.ModelProto,
    plan: QuantizationPlan,
    batches: Iterable[dict[str, np.ndarray]],
    method: str,
    percentile: float,
) -> dict[str, float]:
    """Runs the float model on the calibration data, one batch in memory at a time.

    Returns:
        For each activation of the plan, the magnitude that becomes 127.
    """
    names = plan.activations
    watcher = Watcher(model, names)
    histograms = {name: Histogram() for name in names}
    for batch in batches:
        for name, value in watcher.values(batch).items():
            try:
                histograms[name].add(value)
            except ValueError as error:
                raise ValueError(f"{name!r}: {error}") from error
    ranges = {name: histogram.range(method, percentile) for name, histogram in histograms.items()}
    producers = {name: node for node in model.graph.node for name in node.output}
    return {name: ranges[_same_values(name, ranges, producers)] for name in ranges}


def _same_values(name: str, ranges: dict[str, float], producers: dict[str, Any]) -> str:
    """The first quantized tensor that a tensor takes its values from unchanged.

    With one scale on both sides TensorRT moves the quantizers through such ops, and they cancel.
    """
    found = name
    while name in producers and producers[name].op_type in _SAME_VALUES:
        name = producers[name].input[0]
        found = name if name in ranges else found
    return found


def insert_quantizers(
    model: onnx.ModelProto, plan: QuantizationPlan, ranges: dict[str, float], int8_weights: bool = False
) -> onnx.ModelProto:
    """A copy of the model with the quantizers of a plan.

    Args:
        model: the float32 model that the plan was made for.
        plan: what to quantize.
        ranges: from ``calibrate``.
        int8_weights: store weights in int8 behind a DequantizeLinear, instead of in float32 behind a pair.
    """
    onnx = import_onnx()
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    nodes = list(graph.node)
    editor = _Editor(graph)
    after: dict[str, list[Any]] = {}
    for name in plan.activations:
        scale, zero, _ = editor.scale(name, ranges[name])
        if name in plan.outputs:
            # All readers get the dequantized tensor under the old name.
            raw, dequantized = editor.fresh(f"{name}/float"), name
            _rename_output(nodes, name, raw)
        else:
            raw, dequantized = name, editor.fresh(f"{name}/dequantized")
            for index, operand in plan.inputs[name]:
                nodes[index].input[operand] = dequantized
        after[raw] = editor.pair(raw, scale, zero, None, name, dequantized)
    before: dict[int, list[Any]] = {}
    for index, (which, weight, axis) in plan.weights.items():
        name = nodes[index].input[which]
        before[index] = editor.weight(name, weight, axis, int8_weights)
        nodes[index].input[which] = before[index][-1].output[0]
    ordered = [quantizer for value in graph.input for quantizer in after.get(value.name, ())]
    for index, node in enumerate(nodes):
        ordered += [*before.get(index, ()), node]
        ordered += [quantizer for name in node.output for quantizer in after.get(name, ())]
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in ordered]
    del graph.node[:]
    graph.node.extend(kept)
    _drop_unused_initializers(result)
    del graph.value_info[:]
    result = onnx.shape_inference.infer_shapes(result, data_prop=True)
    onnx.checker.check_model(result, full_check=True)
    return result


class _Editor:
    """Makes quantizers with names that the graph does not have yet."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.names = {name for node in graph.node for name in (*node.input, *node.output, node.name)}
        self.names |= {value.name for value in (*graph.initializer, *graph.input, *graph.output)}

    def fresh(self, name: str) -> str:
        """The name, or with a number if it is taken."""
        candidates: Iterator[str] = (name if i == 1 else f"{name}_{i}" for i in range(1, len(self.names) + 2))
        chosen = next(candidate for candidate in candidates if candidate not in self.names)
        self.names.add(chosen)
        return chosen

    def constant(self, name: str, value: np.ndarray) -> str:
        """Adds an initializer."""
        name = self.fresh(name)
        self.graph.initializer.append(import_onnx().numpy_helper.from_array(np.asarray(value), name))
        return name

    def scale(self, name: str, largest: Any) -> tuple[str, str, np.ndarray]:
        """Adds scale and zero point for magnitudes up to ``largest``: their names, and the scale."""
        scales = np.asarray(largest, np.float32) / np.float32(_LARGEST)
        # A scale must be positive. What was always zero gets any; what would underflow, the least.
        scales = np.where(scales == 0, np.float32(1), np.maximum(scales, np.finfo(np.float32).tiny))
        scales = scales.astype(np.float32)
        zeros = np.zeros(scales.shape, np.int8)
        return self.constant(f"{name}/scale", scales), self.constant(f"{name}/zero_point", zeros), scales

    def pair(self, raw: str, scale: str, zero: str, axis: int | None, name: str, dequantized: str) -> list[Any]:
        """A QuantizeLinear and its DequantizeLinear."""
        make, given = import_onnx().helper.make_node, {} if axis is None else {"axis": axis}
        quantized = self.fresh(f"{name}/quantized")
        labels = [self.fresh(f"{name}/{op}") for op in ("QuantizeLinear", "DequantizeLinear")]
        return [
            make("QuantizeLinear", [raw, scale, zero], [quantized], name=labels[0], **given),
            make("DequantizeLinear", [quantized, scale, zero], [dequantized], name=labels[1], **given),
        ]

    def weight(self, name: str, weight: np.ndarray, axis: int | None, int8: bool) -> list[Any]:
        """The quantizers of a weight; products that share it each get their own."""
        others = tuple(i for i in range(weight.ndim) if i != axis)
        largest = np.max(np.abs(weight), axis=others if axis is not None else None)
        scale, zero, scales = self.scale(name, largest)
        dequantized = self.fresh(f"{name}/dequantized")
        if not int8:
            # From the array as the product reads it, whatever computed it.
            stored = {tensor.name for tensor in self.graph.initializer}
            raw = name if name in stored else self.constant(f"{name}/folded", weight)
            return self.pair(raw, scale, zero, axis, name, dequantized)
        shaped = scales if axis is None else scales.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
        levels = np.clip(np.rint(weight / shaped), -_LARGEST, _LARGEST).astype(np.int8)
        make, given = import_onnx().helper.make_node, {} if axis is None else {"axis": axis}
        label, raw = self.fresh(f"{name}/DequantizeLinear"), self.constant(name.removesuffix(":0"), levels)
        return [make("DequantizeLinear", [raw, scale, zero], [dequantized], name=label, **given)]


def _weight_input(scope: Scope, node: onnx.NodeProto) -> int | None:
    """Which input of a product is a constant weight; None if it is none."""
    if node.op_type not in _QUANTIZED or node.domain not in ("", "ai.onnx"):
        return None
    for which in (1, 0) if node.op_type in ("MatMul", "Gemm") else (1,):
        if not scope.varies(node.input[which]) and scope.varies(node.input[1 - which]):
            return which
    return None


def _channel_axis(node: onnx.NodeProto, which: int, weight: np.ndarray) -> int | None:
    """The axis of the output channels; None where TensorRT takes one scale only."""
    given = attributes(node)
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1 if given.get("group", 1) == 1 else None  # of (I, O / groups, ...): one position, several channels
    if weight.ndim != 2:
        return None
    transposed = bool(given.get("transB" if which else "transA", 0))
    return int(bool(which) != transposed)


def _rename_output(nodes: list[Any], name: str, new: str) -> None:
    for node in nodes:
        for i, output in enumerate(node.output):
            if output == name:
                node.output[i] = new


def _drop_unused_initializers(model: onnx.ModelProto) -> None:
    used = {name for scope, node in Scope(model, model.graph).walk() for name in node.input}
    used |= {value.name for value in model.graph.output}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
