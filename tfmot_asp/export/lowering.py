"""Makes a frozen graph plain for what reads it: constants as constants, one matrix product per layer.

Four steps, each exact in real arithmetic:

1. whatever is the same for every input becomes a constant: reads, casts, transposes and masks between a weight and its
   product, batch norm's scale and shift, shape arithmetic;
2. a ``Reshape`` to a computed shape becomes one to a constant shape with at most one open axis;
3. an ``Einsum`` with a constant kernel becomes ``Reshape``, 2-D ``MatMul``, ``Reshape``
   (``tfmot_asp.export.einsum``): TensorRT has sparse kernels for the matrix product and none for the einsum;
4. batch norm, and any other scale and shift per channel, is folded into the kernel before it
   (``tfmot_asp.export.folding``).

What is "the same for every input" is found by tracing the graph with two different sizes for each open axis: what
agrees does not depend on them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import graph_pb2

from tfmot_asp.export.gemms import EITHER_OPERAND, PRODUCTS, ConstantReader
from tfmot_asp.export.graph_edit import GraphEdit, constant_node, node_of
from tfmot_asp.permutation.trace import Graph, Op, Tensor, trace_function
from tfmot_asp.products import depends_on

logger = logging.getLogger(__name__)

# Sizes for an open batch axis, and for every other open axis: large enough for image models, else small.
_TRIALS = (((2, 128), (3, 160)), ((2, 16), (3, 24)))
_LARGEST = 1 << 16  # elements of a constant that step 1 makes of what is no weight: no tables that ops can make anew


@dataclass(frozen=True)
class Frozen:
    """A frozen graph with the names of its inputs and outputs.

    Attributes:
        graph_def: without variables.
        specs: of the inputs; axes may be open.
        inputs: tensor names, in the order of ``specs``.
        outputs: tensor names.
        stored: values of the large constants, which are placeholders in the graph.
    """

    graph_def: Any
    specs: Sequence[tf.TensorSpec]
    inputs: Sequence[str]
    outputs: Sequence[str]
    stored: Mapping[str, np.ndarray] = field(default_factory=dict)

    def edit(self) -> GraphEdit:
        """A copy of the graph to change; it shares the large constants."""
        return GraphEdit(graph_pb2.GraphDef.FromString(self.graph_def.SerializeToString()), self.stored)

    def edited(self, edit: GraphEdit) -> Frozen:
        """What became of the graph, with the same inputs and outputs."""
        return Frozen(edit.finish(self.outputs), self.specs, self.inputs, self.outputs, edit.stored)

    def function(self, keys: Sequence[str] | None = None, *, embed: bool = True) -> Any:
        """A ``ConcreteFunction`` of the graph, which returns a dict if given its keys.

        Args:
            keys: names of the outputs.
            embed: whether the large constants are part of it, or captured.
        """
        return self._function(self.specs, keys, self.stored, embed)

    def outline(self, specs: Sequence[tf.TensorSpec]) -> Any:
        """A ``ConcreteFunction`` for other specs, to look at: without the large constants it cannot run."""
        return self._function(specs, None, {}, True)

    def _function(
        self, specs: Sequence[tf.TensorSpec], keys: Sequence[str] | None, stored: Mapping[str, np.ndarray], embed: bool
    ) -> Any:
        own = {node_of(name) for name in self.inputs}  # the function has placeholders of its own
        inner = graph_pb2.GraphDef(versions=self.graph_def.versions, library=self.graph_def.library)
        for node in self.graph_def.node:
            if node.name in stored and embed:
                inner.node.append(constant_node(node.name, stored[node.name], tf.as_dtype(node.attr["dtype"].type)))
            elif node.name not in own and node.name not in stored:
                inner.node.append(node)
        read = {f"{node_of(tensor)}:0" for node in inner.node for tensor in node.input}
        captured = {} if embed else {f"{name}:0": tf.constant(value) for name, value in stored.items()}

        @tf.function(input_signature=list(specs), autograph=False)
        def run(*tensors: Any) -> Any:
            feeds = {name: value for name, value in zip(self.inputs, tensors, strict=True) if name in read}
            feeds |= {name: tf.identity(value) for name, value in captured.items()}
            found = tf.import_graph_def(inner, feeds, list(self.outputs), name="")
            return found if keys is None else dict(zip(keys, found, strict=True))

        return run.get_concrete_function()


class Analysis:
    """A frozen graph at two sizes of its open axes: what agrees in both holds for all."""

    def __init__(self, frozen: Frozen) -> None:
        """Traces the graph.

        Raises:
            ValueError: if the graph takes none of the sizes that are tried.
        """
        first, second = _at_two_sizes(frozen)
        self.graph: Graph = first
        self._twins = {id(a): b for a, b in _pairs(first, second)}
        self.varying = depends_on(first, first.inputs)
        self.reader = ConstantReader(first, frozen.stored)
        self.quantized = _behind_fake_quantization(first)
        self.uses: dict[int, list[tuple[Op, int]]] = {}
        for op in first.ops:
            for index, tensor in enumerate(op.inputs):
                self.uses.setdefault(id(tensor), []).append((op, index))
        self.outputs = {id(tensor) for tensor in first.outputs}

    def shape(self, tensor: Tensor) -> tuple[int, ...] | None:
        """Static shape with -1 for what varies; None if not even the rank is known."""
        twin = self._twins.get(id(tensor))
        if tensor.shape is None or twin is None or twin.shape is None or len(twin.shape) != len(tensor.shape):
            return None
        return tuple(a if a == b else -1 for a, b in zip(tensor.shape, twin.shape, strict=True))

    def value(self, tensor: Tensor) -> np.ndarray | None:
        """The value of a constant; None for what varies, and for what fake quantization has touched."""
        twin = self._twins.get(id(tensor))
        if id(tensor) in self.quantized or tensor.value is None or twin is None or twin.value is None:
            return None
        same = tensor.value.shape == twin.value.shape and tensor.value.tobytes() == twin.value.tobytes()
        return tensor.value if same else None

    def weight(self, op: Op, operand: int = 1) -> np.ndarray | None:
        """The value of a product's constant operand, however large; None as for ``value``."""
        tensor = op.inputs[operand]
        if tensor in self.varying or id(tensor) in self.quantized:
            return None
        value = self.value(tensor)
        return self.reader.read(tensor)[0] if value is None and tensor.value is None else value


def lower(
    frozen: Frozen, *, fold_batch_norm: bool, names: dict[str, str], weights_dtype: tf.DType | None = None
) -> Frozen:
    """Applies the four steps.

    Args:
        frozen: what to lower; it stays as it is.
        fold_batch_norm: whether to do the fourth.
        names: op name of a product → what to call its constant weight.
        weights_dtype: a narrower type to store float32 and float64 weights in, each followed by a ``Cast`` back.

    Returns:
        A graph of the same inputs and outputs that computes the same.

    Raises:
        ValueError: if the graph's open axes cannot be given any of the sizes that are tried.
        OverflowError: if a weight is too large for ``weights_dtype``.
    """
    from tfmot_asp.export.einsum import lower_einsums
    from tfmot_asp.export.folding import fold_scales

    steps: list[Callable[[Analysis, GraphEdit], None]] = [partial(_constants, names=names)]
    if any(node.op == "Einsum" for node in frozen.graph_def.node):
        steps.append(lower_einsums)
    if fold_batch_norm:
        steps.append(fold_scales)
    if weights_dtype is not None:
        steps.append(partial(_narrow, dtype=weights_dtype))
    for step in steps:
        edit = frozen.edit()
        step(Analysis(frozen), edit)
        frozen = frozen.edited(edit)
    return frozen


def _constants(analysis: Analysis, edit: GraphEdit, names: dict[str, str]) -> None:
    made: dict[int, str] = {}
    weights: dict[tuple[str, tuple[int, ...]], list[tuple[np.ndarray, str]]] = {}

    def weight_constant(op: Op, tensor: Tensor, value: np.ndarray) -> str:
        """One constant for all layers that read the same variable, with the variable's name."""
        name = names.get(op.name, op.name)
        same = weights.setdefault((name, value.shape), [])
        found = next((constant for other, constant in same if np.array_equal(other, value)), None)
        if found is None:
            found = edit.constant(name, value, tensor.dtype)
            same.append((value, found))
        return found

    for op in analysis.graph.ops:
        operands = _weight_operands(op)
        inside = op.name not in edit.nodes  # a function that is called
        for index, tensor in enumerate(op.inputs):
            is_weight = index in operands
            if tensor.op is None or (tensor.op.type == "Const" and not is_weight) or (inside and not is_weight):
                continue
            value = analysis.weight(op, index) if is_weight else analysis.value(tensor)
            if value is None or (value.size > _LARGEST and not is_weight):
                continue
            if id(tensor) not in made:
                name = weight_constant(op, tensor, value) if is_weight else f"{tensor.op.name}/value"
                made[id(tensor)] = name if is_weight else edit.constant(name, value, tensor.dtype)
            if not inside:
                edit.set_input(op.name, index, made[id(tensor)])
            elif tensor.op.name in edit.nodes:
                edit.redirect(tensor.op.name, made[id(tensor)])
        if op.type == "Reshape" and not inside and analysis.value(op.inputs[1]) is None:
            shape = analysis.shape(op.outputs[0])
            if shape is not None and shape.count(-1) <= 1 and 0 not in shape:
                edit.set_input(op.name, 1, edit.constant(f"{op.name}/shape", np.array(shape, np.int32), tf.int32))
                edit.nodes[op.name].attr["Tshape"].type = tf.int32.as_datatype_enum


def _narrow(analysis: Analysis, edit: GraphEdit, dtype: tf.DType) -> None:
    """Stores the weights of products and the tables of embeddings in a narrower type than float32 or float64."""
    for op in analysis.graph.ops:
        operands = (0,) if op.type in ("GatherV2", "Gather") else _weight_operands(op)
        for index in operands:
            name = node_of(edit.nodes[op.name].input[index]) if op.name in edit.nodes else ""
            wide = op.inputs[index].dtype
            if wide not in (tf.float32, tf.float64) or not name or not edit.is_constant(name):
                continue
            value = analysis.weight(op, index)
            if value is None or value.ndim < 2:
                continue
            with np.errstate(over="ignore"):
                narrow = value.astype(dtype.as_numpy_dtype)
            if not np.array_equal(np.isfinite(narrow), np.isfinite(value)):
                largest = float(np.nanmax(np.abs(value)))
                raise OverflowError(f"{name} has weights up to {largest:.3g}, too large for {dtype.name}")
            stored = edit.constant(f"{name}/{dtype.name}", narrow, dtype)
            edit.replace(name, "Cast", [stored], SrcT=dtype, DstT=wide, Truncate=False)


def _weight_operands(op: Op) -> tuple[int, ...]:
    if op.type not in PRODUCTS:
        return ()
    return (0, 1) if op.type in EITHER_OPERAND else (1,)


def _at_two_sizes(frozen: Frozen) -> tuple[Graph, Graph]:
    if all(size is not None for spec in frozen.specs for size in spec.shape):
        graph = trace_function(frozen.outline(frozen.specs))
        return graph, graph
    problem: Exception | None = None
    for trial in _TRIALS:
        try:
            first, second = (trace_function(frozen.outline(_sized(frozen.specs, *sizes))) for sizes in trial)
        except (ValueError, tf.errors.OpError) as error:
            problem = error
            continue
        if [str(op) for op in first.ops] == [str(op) for op in second.ops]:
            return first, second
        problem = ValueError("its ops depend on the sizes of its inputs")
    raise ValueError(f"the graph cannot be analysed: {problem}")


def _sized(specs: Sequence[tf.TensorSpec], batch: int, other: int) -> list[tf.TensorSpec]:
    sized = []
    for spec in specs:
        sizes = [(batch if axis == 0 else other) if size is None else size for axis, size in enumerate(spec.shape)]
        sized.append(tf.TensorSpec(sizes, spec.dtype, spec.name))
    return sized


def _pairs(first: Graph, second: Graph) -> list[tuple[Tensor, Tensor]]:
    """Tensors of two traces of one graph that correspond."""
    pairs = list(zip((*first.inputs, *first.outputs), (*second.inputs, *second.outputs), strict=True))
    for a, b in zip(first.ops, second.ops, strict=True):
        pairs += [*zip(a.inputs, b.inputs, strict=True), *zip(a.outputs, b.outputs, strict=True)]
    return pairs


def _behind_fake_quantization(graph: Graph) -> set[int]:
    """Ids of constants that fake quantization made: the op is what the converters look for, so it stays."""
    found: set[int] = set()
    seen: set[int] = set()

    def visit(tensor: Tensor) -> bool:
        stack = [tensor]
        while stack:
            current = stack[-1]
            missing = [] if current.op is None else [t for t in current.op.inputs if id(t) not in seen]
            if missing:
                stack.extend(missing)
                continue
            stack.pop()
            seen.add(id(current))
            if current.op is not None and (
                current.op.type.startswith(("FakeQuant", "QuantizeAndDequantize"))
                or any(id(t) in found for t in current.op.inputs)
            ):
                found.add(id(current))
        return id(tensor) in found

    for op in graph.ops:
        for tensor in op.inputs:
            visit(tensor)
    return found
