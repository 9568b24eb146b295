"""The matrix products of a TFLite file, and the constant weight that each of them multiplies with.

TFLite stores weights in layouts of its own: ``[O, I]`` for FULLY_CONNECTED, ``[O, H, W, I]`` for CONV_2D. What is
returned is the array in that layout, scaled back to real numbers if it is quantized.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tfmot_asp.export.tflite_files.tflite_file import (
    Subgraph,
    TfliteFile,
    TfliteOp,
    TfliteTensor,
    Unreadable,
    damage_reported,
    requantized,
)
from tfmot_asp.graph.budget import GRAPH_NODE, spend
from tfmot_asp.graph.constants import Constants
from tfmot_asp.graph.gemm import Gemm
from tfmot_asp.graph.ops import PRODUCTS

_Roles = tuple[tuple[int, ...], tuple[int, ...]]  # reduction axes, output axes

# Products whose operands have fixed roles: operand number -> the weight's reduction axes and output axes.
_ROWS: _Roles = ((1,), (0,))  # [O, I]
_FIXED: dict[str, dict[int, _Roles]] = {
    "CONV_2D": {1: ((3,), (0,))},
    "DEPTHWISE_CONV_2D": {1: ((), (3,))},
    "CONV_3D": {1: ((3,), (4,))},
    "TRANSPOSE_CONV": {1: ((3,), (0,))},
    "CONV_3D_TRANSPOSE": {1: ((4,), (3,))},
    "SVDF": {1: _ROWS},
    "RNN": {1: _ROWS, 2: _ROWS},
    "UNIDIRECTIONAL_SEQUENCE_RNN": {1: _ROWS, 2: _ROWS},
    "BIDIRECTIONAL_SEQUENCE_RNN": {1: _ROWS, 2: _ROWS, 5: _ROWS, 6: _ROWS},
    # Of the gates: from the input, from the last step; then the projection.
    "LSTM": dict.fromkeys((*range(1, 9), 16), _ROWS),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": dict.fromkeys((*range(1, 9), 16), _ROWS),
    "BIDIRECTIONAL_SEQUENCE_LSTM": dict.fromkeys((*range(1, 9), 16, *range(18, 26), 33), _ROWS),
}
# Products that are recognised, but whose attributes are stored in a way that is not read here.
_OPAQUE = frozenset({"STABLEHLO_DOT_GENERAL", "STABLEHLO_CONVOLUTION"}) | {
    f"Flex{name}" for name in (*PRODUCTS, "XlaDot", "XlaDotV2", "XlaConv", "XlaConvV2")
}
_SAME_VALUES = frozenset({"DEQUANTIZE", "DENSIFY"})
_RESHAPES = frozenset({"RESHAPE", "EXPAND_DIMS", "SQUEEZE"})
_VARIES = ("RANDOM_", "MULTINOMIAL", "WHILE", "IF", "CALL", "STABLEHLO_COMPOSITE", "STABLEHLO_RNG")
_MAX_CALLS = 10_000


def read_tflite(path: str | Path) -> list[Gemm]:
    """Finds every matrix product with a constant weight in a TFLite file.

    Covers all subgraphs: FULLY_CONNECTED, CONV_2D, CONV_3D, DEPTHWISE_CONV_2D, TRANSPOSE_CONV, CONV_3D_TRANSPOSE,
    BATCH_MATMUL, and the gates of LSTM, RNN and SVDF ops. Weights are followed through DEQUANTIZE, QUANTIZE, DENSIFY,
    CAST, TRANSPOSE and RESHAPE ops, and into the bodies of loops, branches and composites. Nothing in the file is run.

    Args:
        path: of the file.

    Returns:
        One ``Gemm`` per weight, in the order of the ops; a weight that several ops read is listed once. ``type`` is the
        TFLite op. Weights are float32 as they act, so 0 where a quantized weight equals its zero point; axes are those
        of TFLite's layout. A weight that cannot be told (``problem`` says why: quantized in blocks, held in a variable,
        read by a TensorFlow op) has ``weight=None``.

    Raises:
        ValueError: if it is no TFLite file, or a truncated or damaged one.

    Example:
        >>> [(gemm.op, gemm.weight.shape, gemm.reduction_axes) for gemm in read_tflite("model.tflite")]
        [('model/conv/Conv2D', (16, 3, 3, 16), (3,)), ('model/fc/MatMul', (8, 256), (1,))]
    """
    path = Path(path)
    file = TfliteFile(path)
    with damage_reported(path):
        return _Walk(file).run()


@dataclass(frozen=True)
class _TensorPlace:
    """A tensor of a subgraph."""

    graph: int
    tensor: int


class _Walk:
    """Walks the subgraphs from those that nothing calls, each once per set of constants that it is called with."""

    def __init__(self, file: TfliteFile) -> None:
        self.file = file
        self.found: list[Gemm] = []
        self.seen: set[object] = set()

    def run(self) -> list[Gemm]:
        graphs = self.file.subgraphs
        calls = {called for graph in graphs for op in graph.ops for called, _ in _calls(op, graphs)}
        entries = [i for i in range(len(graphs)) if i not in calls or i == 0]
        pending: list[tuple[int, dict[int, _TensorPlace]]] = [(i, {}) for i in entries]
        visited: set[object] = set()
        while pending:
            index, passed = pending.pop(0)
            key = (index, tuple(sorted((tensor, place.graph, place.tensor) for tensor, place in passed.items())))
            if key in visited:
                continue
            visited.add(key)
            if len(visited) > _MAX_CALLS:
                raise ValueError(f"its subgraphs call each other more than {_MAX_CALLS} times")
            spend(len(graphs[index].ops) * GRAPH_NODE, "the ops of its subgraphs, once for each call")
            reader = _Reader(self.file, index, passed)
            for op in graphs[index].ops:
                self._look_at(reader, op)
                pending += [(called, reader.constants_of(operands)) for called, operands in _calls(op, graphs)]
        return self.found

    def _look_at(self, reader: _Reader, op: TfliteOp) -> None:
        for operand, roles in _operands(op, reader):
            tensor = op.inputs[operand]
            source = reader.tensor(reader.source(tensor))
            shape = reader.graph.tensors[tensor].shape
            key = (source.buffer, source.name, roles, shape)
            if key in self.seen:
                continue
            self.seen.add(key)
            weight, problem = None, None
            try:
                if roles is None:
                    raise Unreadable(f"the attributes of {op.type} are not read")
                options = op.options("FullyConnectedOptions") if op.type == "FULLY_CONNECTED" else None
                if options is not None and options.WeightsFormat():
                    raise Unreadable("its weights are stored shuffled")
                weight = reader.value(tensor)
                if any(axis >= weight.ndim for axes in roles for axis in axes):
                    raise Unreadable(f"its weight of shape {weight.shape} has too few axes for {op.type}")
            except Unreadable as error:
                weight, problem = None, str(error)
            reduction, output = roles if roles is not None else ((), ())
            groups = _groups(op, reader.graph, weight)
            name = reader.graph.tensors[op.outputs[0]].name if op.outputs else op.type
            # What the converter made itself has a name that says nothing; of fused ops the first is enough.
            nameless = not source.name or source.name.startswith(("tfl.", "arith."))
            weight_name = (name if nameless else source.name).split(";")[0]
            self.found.append(Gemm(name, op.type, weight_name, weight, reduction, output, groups, problem))


class _Reader(Constants[int]):
    """The constants of one subgraph, and what is computed from constants alone."""

    def __init__(self, file: TfliteFile, index: int, passed: Mapping[int, _TensorPlace]) -> None:
        super().__init__()
        self.file, self.index, self.passed = file, index, passed
        self.graph: Subgraph = file.subgraphs[index]
        self.producer = {tensor: op for op in self.graph.ops for tensor in op.outputs if tensor >= 0}
        self.constant = {i for i, tensor in enumerate(self.graph.tensors) if tensor.constant and i not in self.producer}
        self.constant -= set(self.graph.inputs)
        self.constant |= set(passed)
        for op in self.graph.ops:  # in execution order
            inputs = [tensor for tensor in op.inputs if tensor >= 0]
            stored = op.type in ("VAR_HANDLE", "READ_VARIABLE")
            if stored or (inputs and not op.type.startswith(_VARIES) and self.constant.issuperset(inputs)):
                self.constant.update(tensor for tensor in op.outputs if tensor >= 0)

    def constants_of(self, operands: Mapping[int, int]) -> dict[int, _TensorPlace]:
        """Where the stored constants are that a called subgraph gets, by the number of its input tensor."""
        return {
            inner: self.passed.get(outer, _TensorPlace(self.index, outer))
            for inner, outer in operands.items()
            if outer in self.passed or (outer in self.constant and outer not in self.producer)
        }

    def tensor(self, number: int) -> TfliteTensor:
        """A tensor, or the one that the caller of the subgraph passes for it."""
        place = self.passed.get(number, _TensorPlace(self.index, number))
        return self.file.subgraphs[place.graph].tensors[place.tensor]

    def inputs(self, tensor: int) -> list[int]:
        return [i for i in self.producer[tensor].inputs if i >= 0] if tensor in self.producer else []

    def stored(self, tensor: int) -> np.ndarray | None:
        if tensor not in self.producer:
            return self.file.value(self.tensor(tensor))
        if self.producer[tensor].type in ("VAR_HANDLE", "READ_VARIABLE"):
            raise Unreadable("it is held in a variable, which gets its value when the model runs")
        return None

    def rank(self, tensor: int) -> tuple[int] | None:
        held = self.tensor(tensor)
        return (int(np.prod(held.shape)),) if tensor not in self.producer and held.constant else None

    def run(self, tensor: int) -> dict[int, np.ndarray]:
        return {tensor: self._computed(self.producer[tensor], self.graph.tensors[tensor])}

    def _computed(self, op: TfliteOp, output: TfliteTensor) -> np.ndarray:
        values = [self.known[i] for i in op.inputs if i >= 0]
        if op.type in _SAME_VALUES:
            return values[0]
        if op.type in _RESHAPES:
            if -1 in output.shape or np.prod(output.shape) != values[0].size:
                raise Unreadable(f"{op.type} between the weight and the product has no fixed shape")
            return values[0].reshape(output.shape)
        if op.type == "TRANSPOSE":
            return values[0].transpose([int(axis) for axis in values[1]])
        if op.type == "CAST":
            with np.errstate(all="ignore"):
                return values[0] if "FLOAT" in output.type else values[0].astype(output.type.lower())
        if op.type == "QUANTIZE":
            return requantized(values[0], output)
        raise Unreadable(f"op {op.type} between the weight and the product is not understood")


def _operands(op: TfliteOp, reader: _Reader) -> Sequence[tuple[int, _Roles | None]]:
    """The constant weights of a product: operand number and roles of its axes; empty if it is no product."""

    def constant(operand: int) -> bool:
        return operand < len(op.inputs) and op.inputs[operand] in reader.constant

    if op.type in _FIXED:
        return [(operand, roles) for operand, roles in _FIXED[op.type].items() if constant(operand)]
    if op.type in ("FULLY_CONNECTED", "BATCH_MATMUL"):
        roles_of: Callable[[TfliteOp, int, int], _Roles] = _ROLES[op.type]
        # The weight is on the right, or on the left; with both constant the product itself is one, counted once.
        for operand in (1, 0):
            if constant(operand):
                return [(operand, roles_of(op, operand, len(reader.graph.tensors[op.inputs[operand]].shape)))]
    if op.type in _OPAQUE:
        tensors = reader.graph.tensors
        for operand, tensor in enumerate(op.inputs):
            if constant(operand) and len(tensors[tensor].shape) > 1:
                return [(operand, None)]
    return []


def _fully_connected(op: TfliteOp, operand: int, rank: int) -> _Roles:
    return _ROWS if operand == 1 else ((rank - 1,), (rank - 2,) if rank > 1 else ())


def _batch_matmul(op: TfliteOp, operand: int, rank: int) -> _Roles:
    options = op.options("BatchMatMulOptions")
    turned = options is not None and bool(options.AdjY() if operand == 1 else options.AdjX())
    rows, columns = (rank - 2,), (rank - 1,)
    return (rows, columns) if (operand == 1) != turned else (columns, rows)


_ROLES = {"FULLY_CONNECTED": _fully_connected, "BATCH_MATMUL": _batch_matmul}


def _groups(op: TfliteOp, graph: Subgraph, weight: np.ndarray | None) -> int:
    """Number of groups: a convolution whose filter takes fewer channels than its input has."""
    if op.type not in ("CONV_2D", "CONV_3D") or weight is None or not weight.shape[3]:
        return 1
    shape = graph.tensors[op.inputs[0]].shape
    return max(1, shape[-1] // weight.shape[3]) if shape else 1


def _calls(op: TfliteOp, graphs: tuple[Subgraph, ...]) -> list[tuple[int, dict[int, int]]]:
    """The subgraphs that an op runs, each with which of its inputs get which of the op's operands unchanged."""

    def inputs_of(called: int, operands: tuple[int, ...]) -> dict[int, int]:
        if not 0 <= called < len(graphs):
            raise ValueError(f"{op.type} calls subgraph {called}, which the file does not have")
        return dict(zip(graphs[called].inputs, operands, strict=False))

    if op.type == "WHILE" and (options := op.options("WhileOptions")) is not None:
        condition, body = options.CondSubgraphIndex(), options.BodySubgraphIndex()
        kept = inputs_of(body, op.inputs)
        passed_on = dict(zip(graphs[body].inputs, graphs[body].outputs, strict=False))
        unchanged = [outer for inner, outer in kept.items() if passed_on.get(inner) == inner]
        return [
            (called, {inner: outer for inner, outer in inputs_of(called, op.inputs).items() if outer in unchanged})
            for called in (condition, body)
        ]
    if op.type == "IF" and (options := op.options("IfOptions")) is not None:
        branches = (options.ThenSubgraphIndex(), options.ElseSubgraphIndex())
        return [(called, inputs_of(called, op.inputs[1:])) for called in branches]
    if op.type == "CALL" and (options := op.options("CallOptions")) is not None:
        return [(options.Subgraph(), inputs_of(options.Subgraph(), op.inputs))]
    if op.type == "CALL_ONCE" and (options := op.options("CallOnceOptions")) is not None:
        return [(options.InitSubgraphIndex(), {})]
    if op.type == "STABLEHLO_COMPOSITE" and (options := op.options("StableHLOCompositeOptions")) is not None:
        called = options.DecompositionSubgraphIndex()
        return [(called, inputs_of(called, op.inputs))]
    return []
