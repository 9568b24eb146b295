"""A rewrite for tf2onnx: layer normalization, however it is written, becomes ONNX's ``LayerNormalization``.

Keras writes it in many ways: tf_keras as a batch norm over a batch of one, or op by op if epsilon is small, Keras 3 op
by op, and models of one's own as they please, with the variance as E[x²] - E[x]² or as a mean of squares. All of them
overflow in float16, as soon as a square does; the one op accumulates in float32.

So what is looked for is no sequence of ops but a result: from each tensor that a mean is taken of, the ops that depend
on it alone are run on random numbers in float64. An output that equals the normalized input, times a scale and plus an
offset of the size of the normalized axes, is replaced.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfmot_asp.graph.ops import BATCH_NORMS, channels_last

# The first opset with an op LayerNormalization.
LAYER_NORM_OPSET = 17

_ANCHORS = ("Mean", "Sum", *BATCH_NORMS)
_PASSING = frozenset({"Cast", "Identity", "StopGradient"})

# Layer norm takes about ten ops, twenty if it is a batch norm of reshaped inputs; several may read one tensor.
_MOST_OPS = 200
_LARGEST_SAMPLE = 1 << 21
_LARGEST_EPSILON = 0.5
_EXACT = 1e-6  # in float64, with constants such as 1 / 12 in float32

Values = dict[str, np.ndarray]


def rewrite_layer_norm(graph: Any, nodes: list[Any]) -> list[Any]:
    """Replaces what computes a layer norm over trailing axes by one op, with its scale, offset and epsilon."""
    if graph.opset < LAYER_NORM_OPSET:
        return nodes
    for anchor in [node for node in nodes if node.type in _ANCHORS]:
        while graph.get_node_by_name(anchor.name) is not None:  # several may share a mean
            sources = reversed(list(_sources(anchor)))  # before a reshape rather than behind it
            found = next(filter(None, (_found(graph, source) for source in sources)), None)
            if found is None:
                break
            _replace(graph, found)
            graph.delete_unused_nodes(graph.outputs)
    return graph.get_nodes()


@dataclass(frozen=True)
class _Norm:
    """A layer norm: of which tensor, which node computes it, and its parameters."""

    source: str
    node: Any
    epsilon: float
    scale: np.ndarray
    offset: np.ndarray


def _sources(anchor: Any) -> Iterator[str]:
    """The tensors that a mean may be the mean of, or of the squares of, the nearest first."""
    name, node = anchor.input[0], anchor.inputs[0]
    yield name
    while node is not None and (node.type in _PASSING or node.type in ("Reshape", "Square")):
        name, node = node.input[0], node.inputs[0]
        yield name


def _found(graph: Any, source: str) -> _Norm | None:
    shape = graph.get_shape(source)
    if shape is None or len(shape) < 2:
        return None
    region = _region(graph, source)
    candidates = [
        node for node in region if node.type not in _PASSING and _may_be(graph.get_shape(node.output[0]), shape)
    ]
    if not candidates:
        return None
    epsilons = list(dict.fromkeys(itertools.chain.from_iterable(map(_epsilons, region))))
    for axes in range(1, len(shape)):
        if min(shape[-axes:]) < 1:
            break
        for leading in _leading_sizes(shape[:-axes]):
            sample = (*leading, *shape[-axes:])
            if np.prod(sample, dtype=np.int64) > _LARGEST_SAMPLE:
                continue
            found = list(_matches(source, region, candidates, epsilons, sample, axes))
            if found:
                return _outermost(graph, region, found)
    return None


def _region(graph: Any, source: str) -> list[Any]:
    """The nodes that depend on one tensor and on constants alone, each behind those that it reads."""
    known, open_names = {source}, [source]
    region: list[Any] = []
    while open_names and len(region) < _MOST_OPS:
        for node in graph.find_output_consumers(open_names.pop()):
            read = zip(node.input, node.inputs, strict=True)
            if node.type not in _COMPUTE or node.output[0] in known or node.graph is not graph:
                continue
            if all(name in known or (producer is not None and producer.is_const()) for name, producer in read):
                known.add(node.output[0])
                region.append(node)
                open_names.append(node.output[0])
    return region


def _may_be(shape: Sequence[int] | None, wanted: Sequence[int]) -> bool:
    """Whether a tensor may have a shape, where some sizes are not known."""
    if shape is None:
        return True
    return len(shape) == len(wanted) and all(a == b or min(a, b) < 0 for a, b in zip(shape, wanted, strict=True))


def _leading_sizes(shape: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Sizes of the axes in front to try with: small ones, and the true ones, as a reshape may state them."""
    small = tuple(1 if size == 1 else 2 for size in shape)
    true = tuple(3 if size < 1 else size for size in shape)
    yield from dict.fromkeys([small, true])


def _epsilons(node: Any) -> Iterator[float]:
    """What a node may add to the variance."""
    if node.type in BATCH_NORMS:
        yield float(node.get_attr_value("epsilon"))
        return
    for given in node.inputs:
        if given is not None and given.is_const():
            value = given.get_tensor_value(as_list=False)
            if value.dtype.kind == "f" and value.size and 0 < value.min() == value.max() < _LARGEST_EPSILON:
                yield float(value.reshape(-1)[0])


def _matches(
    source: str, region: list[Any], candidates: list[Any], epsilons: list[float], sample: tuple[int, ...], axes: int
) -> Iterator[_Norm]:
    """The layer norms over the last axes among the nodes of a region, as far as samples of a shape can tell."""
    generator = np.random.default_rng(0)
    # The variance has to be of the size of epsilon for that to be told from others.
    scales = (0.0, 1.0, 30.0, *(epsilon**0.5 for epsilon in epsilons))
    samples = [scale * (generator.standard_normal(sample) + generator.standard_normal()) for scale in scales]
    computed = [_run(region, {source: value}) for value in samples]
    for node, epsilon in itertools.product(candidates, epsilons):
        outputs = [values[node.output[0]] for values in computed if node.output[0] in values]
        if len(outputs) < len(samples) or any(output.shape != sample for output in outputs):
            continue
        if not np.isfinite(outputs).all():
            continue
        parameters = _parameters([_normalized(value, epsilon, axes) for value in samples], outputs, sample[-axes:])
        if parameters is not None:
            yield _Norm(source, node, epsilon, *parameters)


def _normalized(value: np.ndarray, epsilon: float, axes: int) -> np.ndarray:
    last = tuple(range(-axes, 0))
    centered = value - value.mean(last, keepdims=True)
    return np.asarray(centered / np.sqrt(np.mean(centered**2, last, keepdims=True) + epsilon))


def _parameters(
    normalized: list[np.ndarray], outputs: list[np.ndarray], shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray] | None:
    """The scale and offset that make normalized values into outputs, if there are such."""
    given = np.concatenate([value.reshape(-1, *shape) for value in normalized])
    wanted = np.concatenate([value.reshape(-1, *shape) for value in outputs])
    offset = wanted[0]  # of the input zero
    largest = np.abs(given).argmax(0)[None]
    strongest = np.take_along_axis(given, largest, 0)[0]
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = (np.take_along_axis(wanted, largest, 0)[0] - offset) / strongest
    if not np.isfinite(scale).all() or not np.any(scale):
        return None
    size = np.abs(scale).max() + np.abs(offset).max()
    return (scale, offset) if np.abs(given * scale + offset - wanted).max() <= _EXACT * size else None


def _outermost(graph: Any, region: list[Any], found: list[_Norm]) -> _Norm:
    """The last of them that holds no other whose output is read elsewhere: that would be computed twice."""
    producers = {node.output[0]: node for node in region}
    for norm in reversed(found):
        inner, rest = set(), [norm.node]
        while rest:
            node = rest.pop()
            if node.name not in inner:
                inner.add(node.name)
                rest += [producers[name] for name in node.input if name in producers]
        others = [other.node for other in found if other.node.name in inner - {norm.node.name}]
        readers = {reader.name for node in others for reader in graph.find_output_consumers(node.output[0])}
        if readers <= inner:
            return norm
    return found[0]


def _replace(graph: Any, norm: _Norm) -> None:
    from tf2onnx.utils import map_onnx_to_numpy_type

    node = norm.node
    name, outputs = node.name, list(node.output)
    shape, onnx_dtype = graph.get_shape(outputs[0]), graph.get_dtype(outputs[0])
    dtype = map_onnx_to_numpy_type(onnx_dtype)
    inputs = [norm.source, graph.make_const(f"{name}/scale", norm.scale.astype(dtype)).output[0]]
    offset = norm.offset.astype(dtype)
    if np.any(offset):
        inputs.append(graph.make_const(f"{name}/offset", offset).output[0])
    graph.remove_node(name)
    graph.make_node(
        "LayerNormalization",
        inputs,
        attr={"axis": -norm.scale.ndim, "epsilon": norm.epsilon},
        outputs=outputs[:1],
        name=name,
        shapes=[shape],
        dtypes=[onnx_dtype],
    )


def _run(region: list[Any], values: Values) -> Values:
    """Computes the nodes of a region in float64, but for those that do not take a sample's size."""
    values = dict(values)
    with np.errstate(all="ignore"):
        for node in region:
            try:
                read = []
                for name, producer in zip(node.input, node.inputs, strict=True):
                    value = producer.get_tensor_value(as_list=False) if producer.is_const() else values[name]
                    read.append(value.astype(np.float64) if value.dtype.kind == "f" else value)
                values[node.output[0]] = np.asarray(_COMPUTE[node.type](node, *read))
            except (ValueError, IndexError, TypeError, KeyError, ZeroDivisionError):
                continue
    return values


def _reduced(how: Callable[..., Any]) -> Callable[..., Any]:
    def compute(node: Any, value: np.ndarray, axes: np.ndarray) -> Any:
        along = tuple(int(axis) for axis in axes.reshape(-1))
        return how(value, axis=along, keepdims=bool(node.get_attr_value("keep_dims", False)))

    return compute


def _plain(how: Callable[..., Any]) -> Callable[..., Any]:
    return lambda node, *values: how(*values)


def _sliced(node: Any, value: np.ndarray, begin: Any, end: Any, strides: Any) -> Any:
    if node.get_attr_value("ellipsis_mask", 0) or node.get_attr_value("new_axis_mask", 0):
        raise ValueError("a slice of a kind that no layer norm needs")
    index: list[Any] = []
    for axis, (first, last, step) in enumerate(zip(begin, end, strides, strict=True)):
        open_first, open_last, single = (
            bool(node.get_attr_value(f"{name}_mask", 0) >> axis & 1) for name in ("begin", "end", "shrink_axis")
        )
        index.append(
            int(first) if single else slice(None if open_first else first, None if open_last else last, int(step))
        )
    return value[tuple(index)]


def _fused(node: Any, value: np.ndarray, scale: np.ndarray, offset: np.ndarray, *_: np.ndarray) -> Any:
    if not node.get_attr_value("is_training", True):
        raise ValueError("a batch norm with stored moments")
    axis = value.ndim - 1 if channels_last(node.get_attr_value("data_format", "NHWC")) else 1
    others = tuple(i for i in range(value.ndim) if i != axis)
    shape = [-1 if i == axis else 1 for i in range(value.ndim)]
    centered = value - value.mean(others, keepdims=True)
    deviation = np.sqrt(np.mean(centered**2, others, keepdims=True) + node.get_attr_value("epsilon"))
    return centered / deviation * scale.reshape(shape) + offset.reshape(shape)


def _cast(node: Any, value: np.ndarray) -> np.ndarray:
    """As it is: all floats are float64 here, and sizes whatever integers they are."""
    return value


def _squeezed(node: Any, value: np.ndarray) -> np.ndarray:
    axes = node.get_attr_value("squeeze_dims", None) or node.get_attr_value("axes", None)
    return np.squeeze(value, tuple(axes) if axes else None)


# What runs on sizes rather than values.
_SHAPES: dict[str, Callable[..., Any]] = {
    "Shape": _plain(lambda value: np.array(value.shape, np.int64)),
    "StridedSlice": _sliced,
    "Prod": _reduced(np.prod),
    "Pack": lambda node, *values: np.stack(values, node.get_attr_value("axis", 0)),
    "ConcatV2": _plain(lambda *values: np.concatenate(values[:-1], int(values[-1]))),
    "Fill": _plain(lambda shape, value: np.full(tuple(int(size) for size in shape), value)),
}
_COMPUTE: dict[str, Callable[..., Any]] = {
    **_SHAPES,
    **dict.fromkeys(BATCH_NORMS, _fused),
    **dict.fromkeys(("Identity", "StopGradient", "Cast"), _cast),
    **dict.fromkeys(("Add", "AddV2"), _plain(np.add)),
    **dict.fromkeys(("RealDiv", "Div"), _plain(np.divide)),
    **dict.fromkeys(("Inv", "Reciprocal"), _plain(np.reciprocal)),
    "Sub": _plain(np.subtract),
    "Mul": _plain(np.multiply),
    "Neg": _plain(np.negative),
    "Square": _plain(np.square),
    "SquaredDifference": _plain(lambda a, b: (a - b) ** 2),
    "Sqrt": _plain(np.sqrt),
    "Rsqrt": _plain(lambda value: 1 / np.sqrt(value)),
    "Pow": _plain(np.power),
    "Maximum": _plain(np.maximum),
    "Relu": _plain(lambda value: np.maximum(value, 0)),
    "Mean": _reduced(np.mean),
    "Sum": _reduced(np.sum),
    "Reshape": _plain(lambda value, shape: value.reshape([int(size) for size in shape])),
    "ExpandDims": _plain(lambda value, axis: np.expand_dims(value, int(axis))),
    "Squeeze": _squeezed,
}
