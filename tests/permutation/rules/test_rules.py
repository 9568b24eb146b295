"""Every rule against the op itself: reorder its inputs as the rule allows, and its outputs must follow as it says.

The oracle knows no ops. A rule sees a function whose inputs may move freely; what it leaves free is moved at random,
and TensorFlow computes what comes out. A rule that ties or pins too little fails here, one that ties too much has less
freedom than the case demands.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.private_ops import fused_conv2d, fused_matmul, xla_einsum
from tfmot_asp.graph.flat_graph import Tensor
from tfmot_asp.graph.flatten import trace_function
from tfmot_asp.permutation import rules
from tfmot_asp.permutation.analysis import analyse
from tfmot_asp.permutation.axes import Axes, Nested
from tfmot_asp.permutation.exchange import exchangeable

raw = tf.raw_ops


@dataclasses.dataclass
class Case:
    """A function, the shapes (or arrays) of its inputs, and how many channels of each input must be free to move.

    Attributes:
      function: of tensors.
      inputs: per input a shape, for which floats are drawn, or an array.
      free: per input the number of positions, summed over its axes, that the rule must leave movable.
    """

    function: Callable[..., Any]
    inputs: list[Any]
    free: list[int]


def arrays_of(case: Case, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [
        value if isinstance(value, np.ndarray) else rng.uniform(0.1, 0.9, value).astype(np.float32)
        for value in case.inputs
    ]


def checked(axes: Axes) -> Axes:
    assert not [r for r in axes.reasons if "failed" in r.why]
    return axes


def traced(case: Case, arrays: list[np.ndarray]) -> tuple[Any, Any, Axes]:
    specs = [tf.TensorSpec(a.shape, a.dtype) for a in arrays]
    function = tf.function(case.function, autograph=False).get_concrete_function(*specs)
    graph = trace_function(function)
    return function, graph, checked(analyse(graph, pin_ends=False))


def movable_tables(axes: Axes, level: int = 0) -> list[np.ndarray]:
    classes = axes.classes(level)
    movable = ~classes.pinned & ~axes.held(classes)
    return exchangeable(axes, classes, np.flatnonzero(movable[classes.of]))


def random_exchange(axes: Axes, rng: np.random.Generator) -> np.ndarray:
    """For every element the element whose content it takes: a random exchange within every group of classes.

    First single channels move, then the blocks that hold them, from the smallest to the largest.
    """
    taken = np.arange(axes.count)
    for level in axes.levels():
        now = np.arange(axes.count)
        for table in movable_tables(axes, level):
            order = rng.permutation(table.shape[1])
            now[table] = table[:, order]
        taken = taken[now]
    return taken


def moved(value: np.ndarray, tensor_axes: Any, taken: np.ndarray) -> np.ndarray:
    """`value` reordered along each axis as its elements are; a uniform axis must be uniform."""
    source = list(np.indices(value.shape))
    for i, axis in enumerate(tensor_axes):
        if axis is None:
            first = value.take([0], i)
            assert np.array_equal(np.broadcast_to(first, value.shape), value), f"axis {i} is not uniform"
            continue
        over, ids = (axis.over, axis.ids) if isinstance(axis, Nested) else ((), axis)
        places: dict[int, list[tuple[int, ...]]] = {}
        for place in np.ndindex(ids.shape):
            places.setdefault(int(ids[place]), []).append(place)
        where = np.zeros(ids.shape, np.int64)
        for place in np.ndindex(ids.shape):
            where[place] = places[int(taken[ids[place]])][0][-1]
        here = np.indices(value.shape)
        source[i] = where[tuple(here[j] for j in (*over, i))]
    return value[tuple(source)]


def free_positions(axes: Axes, tensor: Tensor) -> int:
    free = np.zeros(axes.count, bool)
    for level in axes.levels():
        for table in movable_tables(axes, level):
            free[table] = True
    found = [a.ids if isinstance(a, Nested) else a for a in axes.nested(tensor) if a is not None]
    return sum(int(free[np.unique(ids)].sum()) for ids in found)


C, D = 6, 4  # channels; any other extent differs from both where that matters
IMAGE = (2, 5, 5, C)
SEQ = (2, 3, C)


def variable(*shape: int, seed: int = 3) -> tf.Variable:
    return tf.Variable(np.random.default_rng(seed).uniform(0.1, 0.9, shape).astype(np.float32))


def ints(*shape: int, high: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, high, shape).astype(np.int32)


def unary(op: str, **attrs: Any) -> Case:
    name = (
        next(iter(getattr(raw, op).__wrapped__.__code__.co_varnames))
        if hasattr(getattr(raw, op), "__wrapped__")
        else "x"
    )
    return Case(lambda x: getattr(raw, op)(**{name: x}, **attrs), [SEQ], [sum(SEQ)])


def binary(op: str, **attrs: Any) -> Case:
    function = getattr(raw, op)
    names = list(function.__wrapped__.__code__.co_varnames)[:2]
    return Case(lambda a, b: function(**dict(zip(names, (a, b), strict=True)), **attrs), [SEQ, (C,)], [sum(SEQ), C])


FLOAT_UNARY = """
    Abs Acos Acosh Asin Asinh Atan Atanh BesselI0e BesselI1e Ceil Cos Cosh Digamma Elu Erf Erfc Erfinv Exp Expm1 Floor
    Identity Inv IsFinite IsInf IsNan LeakyRelu Lgamma Log Log1p LogSoftmax Ndtri Neg OnesLike Reciprocal Relu
    Relu6 Rint Round Rsqrt Selu Sigmoid Sign Sin Sinh Snapshot Softmax Softplus Softsign Sqrt Square StopGradient Tan
    Tanh ZerosLike
"""
FLOAT_BINARY = """
    Add AddV2 Atan2 Div DivNoNan Equal FloorDiv FloorMod Greater GreaterEqual Igamma Igammac Less LessEqual
    Maximum Minimum Mul MulNoNan NextAfter NotEqual Pow RealDiv SquaredDifference Sub Xdivy Xlog1py Xlogy Zeta
"""
GRADIENTS = "EluGrad LeakyReluGrad Relu6Grad ReluGrad RsqrtGrad SigmoidGrad SqrtGrad TanhGrad"

CASES: dict[str, Case] = {}
for _op in FLOAT_UNARY.split():
    CASES[_op] = unary(_op)
for _op in FLOAT_BINARY.split():
    CASES[_op] = binary(_op)
for _op in GRADIENTS.split():
    _names = list(getattr(raw, _op).__wrapped__.__code__.co_varnames)[:2]
    CASES[_op] = Case(
        lambda a, b, op=_op, names=tuple(_names): getattr(raw, op)(**dict(zip(names, (a, b), strict=True))),
        [SEQ, SEQ],
        [sum(SEQ)] * 2,
    )


def case(name: str, function: Callable[..., Any], inputs: list[Any], free: list[int]) -> None:
    assert name not in CASES
    CASES[name] = Case(function, inputs, free)


# A group of one worker: the sum over workers is the input.
_GROUP = {"group_size": 1, "merge_op": "Add", "final_op": "Id"}
case(
    "CollectiveReduce",
    lambda x: raw.CollectiveReduce(input=x, group_key=801, instance_key=1, subdiv_offsets=[0], **_GROUP),
    [SEQ],
    [sum(SEQ)],
)
case(
    "CollectiveReduceV2",
    lambda x: raw.CollectiveReduceV2(input=x, group_key=802, instance_key=2, ordering_token=[], **_GROUP),
    [SEQ],
    [sum(SEQ)],
)


# Element by element
case("Bitcast", lambda x: tf.bitcast(x, tf.int32), [SEQ], [sum(SEQ)])
case("Bitcast to bytes", lambda x: tf.bitcast(x, tf.uint8), [SEQ], [sum(SEQ)])
case("Bitcast from bytes", lambda x: tf.bitcast(x, tf.float32), [np.ones((2, 3, 4), np.uint8)], [5])
case("Cast", lambda x: tf.cast(x * 9, tf.int32), [SEQ], [sum(SEQ)])
case("CheckNumerics", lambda x: tf.debugging.check_numerics(x, "x"), [SEQ], [sum(SEQ)])
case("EnsureShape", lambda x: tf.ensure_shape(x, SEQ), [SEQ], [sum(SEQ)])
case("Invert", lambda x: raw.Invert(x=x), [ints(*SEQ)], [sum(SEQ)])
case("LogicalNot", lambda x: tf.logical_not(x > 0.5), [SEQ], [sum(SEQ)])
case("PlaceholderWithDefault", lambda x: tf.compat.v1.placeholder_with_default(x, SEQ), [SEQ], [sum(SEQ)])
case("PreventGradient", lambda x: raw.PreventGradient(input=x), [SEQ], [sum(SEQ)])
case("FakeQuantWithMinMaxArgs", lambda x: tf.quantization.fake_quant_with_min_max_args(x, 0, 1), [SEQ], [sum(SEQ)])
case("FakeQuantWithMinMaxVars", lambda x: tf.quantization.fake_quant_with_min_max_vars(x, 0.0, 1.0), [SEQ], [sum(SEQ)])
case(
    "FakeQuantWithMinMaxVarsPerChannel",
    lambda x, a: tf.quantization.fake_quant_with_min_max_vars_per_channel(x, a - 1, a),
    [SEQ, (C,)],
    [sum(SEQ), C],
)
for _version in "234":
    _extra = {"num_bits": 8} if _version == "3" else {}
    CASES[f"QuantizeAndDequantizeV{_version}"] = Case(
        lambda x, a, op=f"QuantizeAndDequantizeV{_version}", extra=_extra: getattr(raw, op)(
            input=x, input_min=-a, input_max=a, range_given=True, **extra
        ),
        [SEQ, ()],
        [sum(SEQ), 0],
    )
# The other two accept such ranges and fail when they run on a CPU.
CASES["QuantizeAndDequantizeV3 along an axis"] = Case(
    lambda x, a: raw.QuantizeAndDequantizeV3(input=x, input_min=-a, input_max=a, num_bits=8, range_given=True, axis=1),
    [SEQ, (3,)],
    [sum(SEQ), 3],
)
CASES["QuantizeAndDequantizeV4 own range per slice"] = Case(
    lambda x: raw.QuantizeAndDequantizeV4(
        input=x, input_min=tf.zeros(C), input_max=tf.zeros(C), range_given=False, axis=2
    ),
    [SEQ],
    [sum(SEQ)],
)
case("ApproximateEqual", lambda a, b: raw.ApproximateEqual(x=a, y=b, tolerance=0.2), [SEQ, SEQ], [sum(SEQ)] * 2)
for _op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor", "LeftShift", "RightShift", "TruncateDiv", "TruncateMod", "Mod"):
    CASES[_op] = Case(lambda a, b, op=_op: getattr(raw, op)(x=a, y=b + 1), [ints(*SEQ), ints(C)], [sum(SEQ), C])
for _op in ("LogicalAnd", "LogicalOr"):
    CASES[_op] = Case(lambda a, b, op=_op: getattr(raw, op)(x=a > 0.5, y=b > 0.5), [SEQ, (C,)], [sum(SEQ), C])
case("Polygamma", lambda a, b: tf.math.polygamma(tf.floor(a * 3) + 1, b), [SEQ, SEQ], [sum(SEQ)] * 2)
case("Complex", lambda a, b: tf.math.real(tf.complex(a, b)), [SEQ, SEQ], [sum(SEQ)] * 2)
case("complex parts", lambda a, b: tf.math.angle(tf.math.conj(tf.complex(a, b))), [SEQ, SEQ], [sum(SEQ)] * 2)
case("complex size", lambda a, b: tf.abs(tf.complex(a, b)) + tf.math.imag(tf.complex(a, b)), [SEQ, SEQ], [sum(SEQ)] * 2)
case(
    "ClipByValue",
    lambda x, a: raw.ClipByValue(t=x, clip_value_min=a * 0.5, clip_value_max=a),
    [SEQ, SEQ],
    [sum(SEQ)] * 2,
)
case("Betainc", lambda a, b, x: tf.math.betainc(a, b, x), [SEQ, SEQ, SEQ], [sum(SEQ)] * 3)
case("SelectV2", lambda c, a, b: tf.where(c > 0.5, a, b), [(C,), SEQ, (3, 1)], [C, sum(SEQ), 3])
case("Select", lambda c, a, b: raw.Select(condition=c > 0.5, x=a, y=b), [(2,), SEQ, SEQ], [2, sum(SEQ), sum(SEQ)])
case("Select whole", lambda c, a, b: raw.Select(condition=c > 0.5, x=a, y=b), [SEQ, SEQ, SEQ], [sum(SEQ)] * 3)
case("AddN", lambda a, b, c: tf.add_n([a, b, c]), [SEQ] * 3, [sum(SEQ)] * 3)
case("AccumulateNV2", lambda a, b: raw.AccumulateNV2(inputs=[a, b], shape=SEQ), [SEQ] * 2, [sum(SEQ)] * 2)
case("BiasAdd", lambda x, b: tf.nn.bias_add(x, b), [IMAGE, (C,)], [sum(IMAGE), C])
case("BiasAdd NCHW", lambda x, b: tf.nn.bias_add(x, b, "NCHW"), [(2, C, 5, 5), (C,)], [sum(IMAGE), C])
case("BiasAddV1", lambda x, b: raw.BiasAddV1(value=x, bias=b), [SEQ, (C,)], [sum(SEQ), C])
case("IdentityN", lambda a, b: raw.IdentityN(input=[a, b]), [SEQ, (C,)], [sum(SEQ), C])
case("L2Loss", lambda x: tf.nn.l2_loss(x), [SEQ], [sum(SEQ)])
case("clip by global norm", lambda x: tf.clip_by_norm(x, 1.0, axes=[-1]), [SEQ], [sum(SEQ)])
case("x plus its own transpose", lambda x: x + tf.transpose(x), [(4, 4)], [8])
case("x plus its own flip", lambda x: x + tf.reverse(x, [0]), [(6,)], [6])

# Normalization
for _version in ("", "V2", "V3"):
    CASES[f"FusedBatchNorm{_version}"] = Case(
        lambda x, s, o, m, v, op=f"FusedBatchNorm{_version}": getattr(raw, op)(
            x=x, scale=s, offset=o, mean=m, variance=v, is_training=False
        )[0],
        [IMAGE] + [(C,)] * 4,
        [sum(IMAGE)] + [C] * 4,
    )
CASES["FusedBatchNormV3 training"] = Case(
    lambda x, s, o: raw.FusedBatchNormV3(x=x, scale=s, offset=o, mean=[], variance=[], is_training=True)[:3],
    [IMAGE] + [(C,)] * 2,
    [sum(IMAGE)] + [C] * 2,
)
case("LRN", lambda x: tf.nn.lrn(x, 1), [IMAGE], [2 + 5 + 5])
case("L2Normalize", lambda x: tf.math.l2_normalize(x, -1), [SEQ], [sum(SEQ)])

# Reductions
for _op in ("Sum", "Mean", "Max", "Min", "Prod", "EuclideanNorm"):
    for _keep in (False, True):
        CASES[f"{_op} keep {_keep}"] = Case(
            lambda x, op=_op, keep=_keep: getattr(raw, op)(input=x, axis=[1, -1], keep_dims=keep), [IMAGE], [sum(IMAGE)]
        )
for _op in ("All", "Any"):
    CASES[_op] = Case(lambda x, op=_op: getattr(raw, op)(input=x > 0.5, axis=-1), [SEQ], [sum(SEQ)])
for _op in ("Cumsum", "Cumprod", "CumulativeLogsumexp"):
    CASES[_op] = Case(lambda x, op=_op: getattr(raw, op)(x=x, axis=1), [SEQ], [2 + C])
for _op in ("ArgMax", "ArgMin"):
    CASES[_op] = Case(lambda x, op=_op: getattr(raw, op)(input=x, dimension=1), [SEQ], [2 + C])
case("cumulative sum of equal slices", lambda x: tf.cumsum(tf.tile(x, (1, 3)), 1), [(4, 1)], [4])

# Products
case("MatMul", lambda a, b: tf.matmul(a, b), [(3, C), (C, D)], [3 + C, C + D])
case(
    "MatMul transposed",
    lambda a, b: tf.matmul(a, b, transpose_a=True, transpose_b=True),
    [(C, 3), (D, C)],
    [3 + C, C + D],
)
for _op in ("BatchMatMul", "BatchMatMulV2"):
    CASES[_op] = Case(
        lambda a, b, op=_op: getattr(raw, op)(x=a, y=b, adj_y=True), [(2, 3, C), (2, D, C)], [2 + 3 + C, 2 + D + C]
    )
case("BatchMatMulV2 broadcast", lambda a, b: tf.matmul(a, b), [(7, 2, 3, C), (2, C, D)], [7 + 2 + 3 + C, 2 + C + D])
case(
    "BatchMatMulV3",
    lambda a, b: raw.BatchMatMulV3(x=a, y=b, Tout=tf.float32, adj_x=True),
    [(2, C, 3), (2, C, D)],
    [2 + 3 + C, 2 + D + C],
)
case("Gram matrix", lambda a: tf.matmul(a, a, transpose_b=True), [(3, C)], [3 + C])
for _equation, _shapes in {
    "bc,cd->bd": [(3, C), (C, D)],
    "abc,cde->abde": [(2, 3, C), (C, D, 5)],
    "...c,cd->...d": [(2, 3, C), (C, D)],
    "a...c,...c->a...": [(2, 3, C), (3, C)],
    "bthd,bshd->bhts": [(2, 3, 4, C), (2, 5, 4, C)],
    "ab,cb->": [(3, C), (D, C)],
}.items():
    CASES[f"Einsum {_equation}"] = Case(
        lambda a, b, eq=_equation: raw.Einsum(inputs=[a, b], equation=eq),
        list(_shapes),
        [sum(s) for s in _shapes],
    )
case("Einsum diagonal", lambda a, b: raw.Einsum(inputs=[a, b], equation="aac,cd->ad"), [(3, 3, C), (C, D)], [0, 0])
case("Einsum of one", lambda a: raw.Einsum(inputs=[a], equation="abc->ca"), [SEQ], [sum(SEQ)])

# Convolutions
case("Conv2D", lambda x, k: tf.nn.conv2d(x, k, 1, "SAME"), [IMAGE, (3, 3, C, D)], [2 + C, C + D])
case("Conv2D 1x1", lambda x, k: tf.nn.conv2d(x, k, 1, "SAME"), [IMAGE, (1, 1, C, D)], [sum(IMAGE), C + D])
case("Conv2D 1x1 strided", lambda x, k: tf.nn.conv2d(x, k, 2, "SAME"), [IMAGE, (1, 1, C, D)], [2 + C, C + D])
case("Conv2D dilated", lambda x, k: tf.nn.conv2d(x, k, 1, "VALID", dilations=2), [IMAGE, (2, 2, C, D)], [2 + C, C + D])
case(
    "Conv2D padded",
    lambda x, k: tf.nn.conv2d(x, k, 1, [[0, 0], [1, 0], [0, 1], [0, 0]]),
    [IMAGE, (1, 1, C, D)],
    [2 + C, C + D],
)
case("Conv2D grouped", lambda x, k: tf.nn.conv2d(x, k, 1, "SAME"), [(2, 5, 5, 12), (3, 3, 6, 8)], [2 + 12, 6 + 8])
case("Conv2D group per channel", lambda x, k: tf.nn.conv2d(x, k, 1, "SAME"), [IMAGE, (3, 3, 1, 2 * C)], [2 + C, 2 * C])
case("Conv3D", lambda x, k: tf.nn.conv3d(x, k, [1] * 5, "SAME"), [(2, 3, 4, 5, C), (3, 3, 3, C, D)], [2 + C, C + D])
case(
    "Conv",
    lambda x, k: raw.Conv(input=x, filter=k, strides=[1, 1, 1, 1], padding="SAME"),
    [IMAGE, (3, 3, C, D)],
    [2 + C, C + D],
)
case(
    "Conv of several batch axes",
    lambda x, k: raw.Conv(input=x, filter=k, strides=[1, 1, 1, 1], padding="SAME", batch_dims=2),
    [(2, *IMAGE), (3, 3, C, D)],
    [0, 0],
)
case("_FusedConv2D", lambda x, k, b: fused_conv2d(x, k, b), [IMAGE, (3, 3, C, D), (D,)], [2 + C, C + D, D])
case(
    "_FusedConv2D with batch norm",
    lambda x, k, *v: fused_conv2d(x, k, *v, ops=(b"FusedBatchNorm",)),
    [IMAGE, (3, 3, C, D), *[(D,)] * 4],
    [2 + C, C + D, *[D] * 4],
)
case("_FusedMatMul", lambda a, b, c: fused_matmul(a, b, c), [(3, C), (C, D), (D,)], [3 + C, C + D, D])
case(
    "_FusedMatMul transposed",
    lambda a, b, c: fused_matmul(a, b, c, transpose_b=True, ops=(b"BiasAdd", b"Tanh")),
    [(3, C), (D, C), (D,)],
    [3 + C, C + D, D],
)
case(
    "SparseMatMul",
    lambda a, b: tf.matmul(a, b, transpose_a=True, a_is_sparse=True),
    [(C, 3), (C, D)],
    [3 + C, C + D],
)
case(
    "XlaEinsum",
    tf.function(lambda a, b: xla_einsum("abc,cd->abd", a, b), jit_compile=True),
    [SEQ, (C, D)],
    [sum(SEQ), C + D],
)
case(
    "DepthwiseConv2dNative",
    lambda x, k: tf.nn.depthwise_conv2d(x, k, [1] * 4, "SAME"),
    [IMAGE, (3, 3, C, 1)],
    [2 + C, C],
)
case(
    "DepthwiseConv2dNative multiplier",
    lambda x, k: tf.nn.depthwise_conv2d(x, k, [1] * 4, "SAME"),
    [IMAGE, (3, 3, C, 3)],
    [2 + C, C],
)
case(
    "Conv2DBackpropInput",
    lambda x, k: tf.nn.conv2d_transpose(x, k, (2, 10, 10, D), 2),
    [IMAGE, (3, 3, D, C)],
    [2 + C, C + D],
)
case(
    "Conv3DBackpropInputV2",
    lambda x, k: tf.nn.conv3d_transpose(x, k, (2, 6, 8, 10, D), 2),
    [(2, 3, 4, 5, C), (3, 3, 3, D, C)],
    [2 + C, C + D],
)
case(
    "separable_conv2d",
    lambda x, d, p: tf.nn.separable_conv2d(x, d, p, [1] * 4, "SAME"),
    [IMAGE, (3, 3, C, 2), (1, 1, 2 * C, D)],
    [2 + C, C, 2 * C + D],
)
case("atrous_conv2d", lambda x, k: tf.nn.atrous_conv2d(x, k, 2, "SAME"), [IMAGE, (3, 3, C, D)], [C, C + D])
case(
    "Dilation2D", lambda x, k: tf.nn.dilation2d(x, k, [1] * 4, "SAME", "NHWC", [1] * 4), [IMAGE, (3, 3, C)], [2 + C, C]
)

# Windows and images
for _op in ("MaxPool", "AvgPool"):
    _arg = "input" if _op == "MaxPool" else "value"
    CASES[_op] = Case(
        lambda x, op=_op, arg=_arg: getattr(raw, op)(
            **{arg: x}, ksize=[1, 2, 2, 1], strides=[1, 2, 2, 1], padding="SAME"
        ),
        [IMAGE],
        [2 + C],
    )
    CASES[f"{_op}3D"] = Case(
        lambda x, op=_op: getattr(raw, f"{op}3D")(
            input=x, ksize=[1, 2, 2, 2, 1], strides=[1, 2, 2, 2, 1], padding="SAME"
        ),
        [(2, 3, 4, 5, C)],
        [2 + C],
    )
case(
    "MaxPool over channels",
    lambda x: raw.MaxPool(input=x, ksize=[1, 1, 1, 3], strides=[1, 1, 1, 3], padding="VALID"),
    [IMAGE],
    [2 + 5 + 5],
)
case("MaxPool along one axis", lambda x: tf.nn.max_pool2d(x, [1, 2], [1, 2], "VALID"), [IMAGE], [2 + 5 + C])
case(
    "MaxPoolV2",
    lambda x: raw.MaxPoolV2(input=x, ksize=[1, 2, 2, 1], strides=[1, 1, 1, 1], padding="SAME"),
    [IMAGE],
    [2 + C],
)
case("MaxPoolWithArgmax", lambda x: tf.nn.max_pool_with_argmax(x, 2, 2, "SAME"), [IMAGE], [0])
case("FractionalMaxPool", lambda x: tf.nn.fractional_max_pool(x, 1.4, seed=1)[0], [IMAGE], [0])
for _op in ("ResizeArea", "ResizeBicubic", "ResizeBilinear", "ResizeNearestNeighbor"):
    CASES[_op] = Case(lambda x, op=_op: getattr(raw, op)(images=x, size=[7, 9]), [IMAGE], [2 + C])
case(
    "ScaleAndTranslate",
    lambda x: raw.ScaleAndTranslate(images=x, size=[7, 9], scale=[1.2, 1.1], translation=[0.0, 1.0]),
    [IMAGE],
    [2 + C],
)
case("AdjustContrastv2", lambda x: tf.image.adjust_contrast(x, 0.5), [IMAGE], [2 + C])
case(
    "ImageProjectiveTransformV2",
    lambda x, t: raw.ImageProjectiveTransformV2(images=x, transforms=t, output_shape=[5, 5], interpolation="BILINEAR"),
    [IMAGE, (2, 8)],
    [2 + C, 2],
)
case(
    "ImageProjectiveTransformV3",
    lambda x, t: raw.ImageProjectiveTransformV3(
        images=x, transforms=t, output_shape=[5, 5], interpolation="BILINEAR", fill_value=0.0
    ),
    [IMAGE, (2, 8)],
    [2 + C, 2],
)
case("CropAndResize", lambda x, b: tf.image.crop_and_resize(x, b, [0, 1, 1], [4, 4]), [IMAGE, (3, 4)], [C, 0])
case(
    "ExtractImagePatches",
    lambda x: tf.image.extract_patches(x, [1, 2, 2, 1], [1, 2, 2, 1], [1] * 4, "VALID"),
    [IMAGE],
    [2 + C],
)

# Rearranging
case("Reshape merge", lambda x: tf.reshape(x, (2, -1)), [IMAGE], [2 + C])
case("Reshape split", lambda x: tf.reshape(x, (2, 3, 2, 3)), [SEQ], [2 + 3 + 6])
case("Reshape split and merge", lambda x: tf.reshape(x, (8, 3)), [(4, 6)], [4 + 6])
case("Reshape incommensurable", lambda x: tf.reshape(x, (4, 6)), [(6, 4)], [0])
case("Reshape no refinement", lambda x: tf.reshape(x, (6, 10)), [(4, 15)], [0])
case("Reshape there and back", lambda x: tf.reshape(tf.reshape(x, (6, C)) * 2.0, SEQ), [SEQ], [3 + C])
case("Reshape there and back at once", lambda x: tf.reshape(tf.nn.relu(tf.reshape(x, (6, C))), SEQ), [SEQ], [sum(SEQ)])
case(
    "Reshape merge of an axis that differs and one that does not",
    lambda x, y: y * tf.reshape(tf.broadcast_to(x, (2, 3, C)), (2, -1)),
    [(2, 3, 1), (2, 3 * C)],
    [2 + 3, 2 + 3 * C],
)
case(
    "Reshape merge of a pinned axis and one that does not differ",
    lambda x, y: y * tf.reshape(tf.broadcast_to(tf.cumsum(x, 1), (2, 3, C)), (2, -1)),
    [(2, 3, 1), (2, 3 * C)],
    [2, 2 + 3 * C],
)
case("Squeeze", lambda x: tf.squeeze(x, 1), [(2, 1, C)], [2 + C])
case("ExpandDims", lambda x: tf.expand_dims(x, 1), [SEQ], [sum(SEQ)])
case("Reshape of an empty tensor", lambda x: tf.reshape(x, (0, 6)), [(0, 3, 2)], [0])
case("Transpose", lambda x: tf.transpose(x, (2, 0, 1)), [SEQ], [sum(SEQ)])
case("ConjugateTranspose", lambda x: raw.ConjugateTranspose(x=x, perm=[2, 0, 1]), [SEQ], [sum(SEQ)])
case(
    "channel shuffle",
    lambda x: tf.reshape(tf.transpose(tf.reshape(x, (2, 3, 2, 3)), (0, 1, 3, 2)), SEQ),
    [SEQ],
    [sum(SEQ)],
)
case(
    "patches by reshape",
    lambda x: tf.reshape(tf.transpose(tf.reshape(x, (2, 2, 2, 3, 2, C)), (0, 1, 3, 2, 4, 5)), (2, 6, 4 * C)),
    [(2, 4, 6, C)],
    [2 + C],
)
case("BroadcastTo", lambda x: tf.broadcast_to(x, (7, 2, 3, C)), [(2, 1, C)], [2 + C])
case("BroadcastTo then add", lambda x, y: tf.broadcast_to(x, (2, 3, C)) + y, [(2, 1, C), SEQ], [2 + C, sum(SEQ)])
case("ConcatV2", lambda a, b: tf.concat([a, b, a], -1), [(2, C), (2, D)], [2 + C, 2 + D])
case("ConcatV2 with equal slices", lambda a: tf.concat([a, tf.zeros((2, 5))], -1), [(2, C)], [2 + C])
case("ConcatV2 with a constant", lambda a: tf.concat([a, tf.constant([[1.0, 2.0]] * 2)], -1), [(2, C)], [2 + C])
case("Concat", lambda a, b: raw.Concat(concat_dim=1, values=[a, b]), [(2, C), (2, D)], [2 + C, 2 + D])
case("Pack", lambda a, b: tf.stack([a, b], 1), [SEQ, SEQ], [sum(SEQ)] * 2)
case("Unpack", lambda x: tf.unstack(x, axis=1), [SEQ], [2 + C])
case("Tile", lambda x: tf.tile(x, (1, 3, 2)), [SEQ], [sum(SEQ)])
case("Pad", lambda x: tf.pad(x, ((0, 0), (0, 0), (1, 2))), [SEQ], [sum(SEQ)])
case("PadV2", lambda x: tf.pad(x, ((0, 0), (1, 0), (0, 2)), constant_values=3.0), [SEQ], [sum(SEQ)])
case("Pad of equal slices", lambda x: tf.pad(tf.tile(x, (1, 4)), ((0, 0), (1, 1))), [(2, 1)], [2])
case("MirrorPad", lambda x: tf.pad(x, ((0, 0), (0, 0), (1, 2)), "REFLECT"), [SEQ], [2 + 3])
case("SpaceToDepth", lambda x: tf.nn.space_to_depth(x, 2), [(2, 4, 6, C)], [2 + C])
case("DepthToSpace", lambda x: tf.nn.depth_to_space(x, 2), [(2, 3, 3, 4 * C)], [2 + 4 * C])
case(
    "SpaceToDepth NCHW",
    lambda x: raw.SpaceToBatch(input=x, paddings=[[0, 0], [0, 0]], block_size=2),
    [(2, 4, 6, C)],
    [C],
)
case("SpaceToBatchND", lambda x: tf.space_to_batch(x, [2], [[0, 1]]), [IMAGE], [5 + C])
case("BatchToSpaceND", lambda x: tf.compat.v1.batch_to_space_nd(x, [2], [[0, 0]]), [IMAGE], [5 + C])
case("SpaceToBatch", lambda x: raw.SpaceToBatch(input=x, paddings=[[0, 1], [0, 1]], block_size=2), [IMAGE], [C])
case("BatchToSpace", lambda x: raw.BatchToSpace(input=x, crops=[[0, 0], [0, 0]], block_size=2), [(4, 5, 5, C)], [C])
case("Fill", lambda x: x + tf.fill((3, 1), x[0, 0, 0]), [SEQ], [2 + 1 + 4])

# Picking
case("Slice", lambda x: tf.slice(x, (0, 0, 1), (2, 3, 4)), [SEQ], [sum(SEQ)])
case("Slice all", lambda x: tf.slice(x, (0, 0, 0), (-1, -1, -1)), [SEQ], [sum(SEQ)])
# A position that is picked alone is distinguished; the others, and those left out, stay alike.
for _name, (_get, _free) in {
    "a part": (lambda x: x[:, :, 1:5], 11),
    "every other": (lambda x: x[..., ::2], 11),
    "backwards": (lambda x: x[:, ::-1], 11),
    "one position": (lambda x: x[:, 1], 10),
    "from the end": (lambda x: x[..., -2:], 11),
    "one from the end": (lambda x: x[..., -1], 10),
    "new axis": (lambda x: x[:, None, ..., None], 11),
    "all at once": (lambda x: x[0, ..., None, ::-2], 9),
}.items():
    CASES[f"StridedSlice {_name}"] = Case(_get, [SEQ], [_free])
case("Split", lambda x: tf.split(x, 3, -1), [SEQ], [sum(SEQ)])
case("Split and add", lambda x: tf.add_n(tf.split(x, 2, -1)), [SEQ], [sum(SEQ)])
case("SplitV", lambda x: tf.split(x, (1, 2, 3), -1), [SEQ], [2 + 3 + 5])
case("GatherV2", lambda x: tf.gather(x, [3, 1, 0], axis=-1), [SEQ], [sum(SEQ)])
case("GatherV2 repeated", lambda x: tf.gather(x, [0, 0, 1, 1, 2, 2], axis=-1), [SEQ], [5 + 3 + 3])
case("GatherV2 one", lambda x: tf.gather(x, 2, axis=-1), [SEQ], [5 + 5])
case("GatherV2 by data", lambda x, i: tf.gather(x, i, axis=1), [SEQ, ints(4)], [2 + C, 4])
case("GatherV2 by a constant table", lambda x: tf.gather(x, ints(2, 2), axis=1), [SEQ], [2 + C])
case("GatherV2 batch", lambda x, i: tf.gather(x, i, batch_dims=1), [SEQ, ints(2, 4)], [2 + C, 2 + 4])
case("Gather", lambda x, i: raw.Gather(params=x, indices=i), [(3, C), ints(2, 4)], [C, 2 + 4])
case("GatherNd", lambda x, i: tf.gather_nd(x, i), [SEQ, ints(4, 1, high=2)], [3 + C, 4])
TABLE = variable(9, C)
SQUARE = variable(C, C)
case("ResourceGather", lambda i, y: tf.nn.embedding_lookup(TABLE, i) + y, [ints(2, 4), (2, 4, C)], [2 + 4, 2 + 4 + C])
case("ResourceGatherNd", lambda i, y: TABLE.gather_nd(i) + y, [ints(4, 1), (4, C)], [4, 4 + C])
case("ReadVariableOp", lambda x: tf.matmul(x, TABLE, transpose_b=True), [(3, C)], [3 + C])
case("shape of a variable", lambda x: tf.reshape(x, tf.shape(TABLE)) + TABLE, [(9, 1, C)], [9 + C])
case("ReverseV2", lambda x: tf.reverse(x, [1, -1]), [SEQ], [sum(SEQ)])
case("Roll", lambda x: tf.roll(x, (1, -2), (1, 2)), [SEQ], [sum(SEQ)])
case("ReverseSequence", lambda x: tf.reverse_sequence(x, [1, 3], seq_axis=1, batch_axis=0), [SEQ], [C])
case("TopKV2", lambda x: tf.math.top_k(x, 2), [SEQ], [2 + 3])
case("sort", lambda x: tf.sort(x, axis=-1), [SEQ], [2 + 3])
case("OneHot", lambda i: tf.one_hot(i, 5), [ints(2, 3)], [2 + 3])
case("OneHot in front", lambda i: tf.one_hot(i, 5, axis=0), [ints(2, 3)], [2 + 3])
case("MatrixBandPart", lambda x: tf.linalg.band_part(x, 0, -1), [(C, 4, 4)], [C])
case("MatrixDiagV3", lambda x: tf.linalg.diag(x), [SEQ], [2 + 3])
case("MatrixDiagPartV3", lambda x: tf.linalg.diag_part(x), [(C, 4, 4)], [C])
case("MatrixSetDiagV3", lambda x, d: tf.linalg.set_diag(x, d), [(C, 4, 4), (C, 4)], [C, C])

# Functions within functions, random numbers, control flow
case("PartitionedCall", lambda x: tf.function(tf.function(lambda y: y * 2.0))(x), [SEQ], [sum(SEQ)])
case("custom gradient", lambda x: tf.custom_gradient(lambda y: (tf.exp(y), lambda d: d))(x), [SEQ], [sum(SEQ)])
case("recompute", lambda x: tf.recompute_grad(tf.exp)(x), [SEQ], [sum(SEQ)])


def _repeated(step: Callable[..., Any], *more: Any, times: int = 3, test: Callable[..., Any] = lambda x: True) -> Any:
    """A function that puts its input, with `more`, through `step` several times, if `test` says so."""

    def function(x: tf.Tensor) -> tf.Tensor:
        return tf.while_loop(
            lambda i, x, *y: (i < times) & test(x), lambda i, x, *y: (i + 1, *step(x, *y)), (0, x, *more)
        )[1]

    return function


def _powers(x: tf.Tensor) -> tf.Tensor:
    """Each step adds a tensor to a list, and makes the next from what it reads back."""
    powers = tf.TensorArray(tf.float32, 4, clear_after_read=False).write(0, x)
    powers = tf.while_loop(lambda i, a: i < 4, lambda i, a: (i + 1, a.write(i, a.read(i - 1) * x)), (1, powers))[1]
    return powers.stack() + powers.gather([1, 1, 2, 0])


def _list_of(*tensors: tf.Tensor) -> Any:
    handle = raw.EmptyTensorList(element_shape=(-1, *SEQ[1:]), max_num_elements=9, element_dtype=tf.float32)
    for tensor in tensors:
        handle = raw.TensorListPushBack(input_handle=handle, tensor=tensor)
    return handle


def _popped(x: tf.Tensor) -> tf.Tensor:
    handle = raw.TensorListResize(input_handle=_list_of(x), size=1)
    handle, last = raw.TensorListPopBack(input_handle=handle, element_shape=SEQ, element_dtype=tf.float32)
    return last + tf.cast(raw.TensorListLength(input_handle=handle), tf.float32)


def _scattered(x: tf.Tensor) -> tf.Tensor:
    handle = raw.TensorListScatterV2(tensor=x, indices=[1, 0], element_shape=SEQ[1:], num_elements=2)
    handle = raw.TensorListScatterIntoExistingList(input_handle=handle, tensor=x[:1] * 2.0, indices=[1])
    return raw.TensorListStack(input_handle=handle, element_shape=SEQ[1:], element_dtype=tf.float32, num_elements=2)


case("While", _repeated(lambda x: (x * 2.0,)), [SEQ], [sum(SEQ)])
case("While over a table", _repeated(lambda x: (x * np.linspace(1, 2, C).astype(np.float32),)), [SEQ], [2 + 3])
case("While that starts from zeros", _repeated(lambda x, s: (x + s, s + x), tf.zeros(SEQ)), [SEQ], [sum(SEQ)])
case("While that rolls", _repeated(lambda x: (tf.roll(x, 1, -1),)), [SEQ], [2 + 3])
case("While that rolls by half", _repeated(lambda x: (x + tf.roll(x, C // 2, -1),)), [SEQ], [sum(SEQ)])
case("While until a sum", _repeated(lambda x: (x * 2.0,), test=lambda x: tf.reduce_sum(x) < 50.0), [SEQ], [sum(SEQ)])
case(
    "While until the first",
    _repeated(lambda x: (x * 2.0,), test=lambda x: x[0, 0, 0] < 50.0),
    [SEQ],
    [3 - 1 + C - 1],
)
case(
    "While that takes turns",
    lambda x: tf.while_loop(lambda i, a, b: i < 3, lambda i, a, b: (i + 1, b, a * 2.0), (0, x[..., :3], x[..., 3:]))[1],
    [SEQ],
    [2 + 3 + C],
)
case("While in While", _repeated(lambda x: (_repeated(lambda y: (y * 0.5 + x,))(x),)), [SEQ], [sum(SEQ)])
case(
    "While that grows",
    lambda x: tf.while_loop(
        lambda i, y: i < 3,
        lambda i, y: (i + 1, tf.concat([y, y[:, :1]], 1)),
        (0, x),
        shape_invariants=(tf.TensorShape([]), tf.TensorShape([2, None, C])),
    )[1],
    [SEQ],
    [0],
)
case("scan", lambda x: tf.scan(lambda a, b: tf.tanh(a @ SQUARE + b), x), [SEQ], [3 + C])
case("map", lambda x: tf.map_fn(lambda a: a @ SQUARE, x), [SEQ], [3 + C])
case("TensorArray", _powers, [SEQ], [sum(SEQ)])
case("TensorListPopBack", _popped, [SEQ], [sum(SEQ)])
case("TensorListScatterV2", _scattered, [SEQ], [3 + C])
case(
    "list of several shapes",
    lambda x: (
        raw.TensorListConcatV2(
            input_handle=_list_of(x, x[:1]),
            element_shape=(-1, *SEQ[1:]),
            leading_dims=np.zeros(0, np.int64),
            element_dtype=tf.float32,
        ).tensor
    ),
    [SEQ],
    [0],
)
case("If", lambda x: tf.cond(tf.reduce_sum(x) > 3, lambda: x * 2.0, lambda: x), [SEQ], [sum(SEQ)])
case(
    "If with a variable",
    lambda x: tf.cond(tf.reduce_sum(x) > 9, lambda: x * 2.0, lambda: x + SQUARE[0]),
    [SEQ],
    [sum(SEQ)],
)
case("If by the first", lambda x: tf.cond(x[0, 0, 0] > 0.5, lambda: x * 2.0, lambda: x), [SEQ], [3 - 1 + C - 1])
case(
    "Case",
    lambda x: tf.switch_case(tf.cast(tf.reduce_sum(x), tf.int32) % 3, [lambda: x, lambda: x * 2.0, lambda: x + 1.0]),
    [SEQ],
    [sum(SEQ)],
)
case(
    "Case with a variable",
    lambda x: tf.switch_case(tf.cast(tf.reduce_sum(x), tf.int32) % 2, [lambda: x, lambda: x + SQUARE[0]]),
    [SEQ],
    [sum(SEQ)],
)
case(
    "Case with branches of several shapes",
    lambda x: tf.switch_case(tf.cast(tf.reduce_sum(x), tf.int32) % 2, [lambda: x, lambda: x[:, :2]]),
    [SEQ],
    [0],
)
case(
    "If with a known condition",
    lambda x: tf.cond(tf.constant(3) > 2, lambda: x * 2.0, lambda: x[..., ::-1] * 1.0),
    [SEQ],
    [sum(SEQ)],
)
for _n in "123":
    _suffix = "" if _n == "1" else f"{_n}D"
    _signal = f"fft{_suffix.lower()}"
    _free = sum((7, 2, 4, 5)[: 4 - int(_n)])
    for _kind in ("FFT", "IFFT"):
        CASES[f"{_kind}{_suffix}"] = Case(
            lambda x, op=f"{_kind}{_suffix}": tf.abs(getattr(raw, op)(input=tf.complex(x, x))), [(7, 2, 4, 5)], [_free]
        )
    CASES[f"RFFT{_suffix}"] = Case(
        lambda x, op=_signal: tf.abs(getattr(tf.signal, f"r{op}")(x)), [(7, 2, 4, 5)], [_free]
    )
    if _n != "3":
        CASES[f"IRFFT{_suffix}"] = Case(
            lambda x, op=_signal: getattr(tf.signal, f"ir{op}")(tf.complex(x, x)), [(7, 2, 4, 5)], [_free]
        )
COUNTER = variable(C)


def _running_mean(x: tf.Tensor) -> tf.Tensor:
    mean = tf.reduce_mean(x, (0, 1))
    COUNTER.assign(mean)
    COUNTER.assign_sub(mean * 0.5)
    COUNTER.assign_add(mean * 0.1)
    return x - COUNTER


case("AssignVariableOp", _running_mean, [SEQ], [sum(SEQ)])
case("rfft", lambda x: tf.abs(tf.signal.rfft(x)), [SEQ], [2 + 3])
case(
    "NumPy",
    lambda x: tf.ensure_shape(tf.numpy_function(lambda a: a[..., ::-1].copy(), [x], tf.float32), SEQ),
    [SEQ],
    [0],
)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_outputs_follow_the_inputs(name, seed):
    chosen = CASES[name]
    arrays = arrays_of(chosen, seed)
    function, graph, axes = traced(chosen, arrays)
    taken = random_exchange(axes, np.random.default_rng(seed))
    variables = graph.variables
    kept = [v.numpy() for v in variables]
    before = [np.asarray(t) for t in tf.nest.flatten(function(*map(tf.constant, arrays)))]
    try:
        for i, v in enumerate(variables):
            v.assign(moved(kept[i], [axes.variable_axes[i, a] for a in range(len(v.shape))], taken))
        inputs = [moved(a, axes.nested(t), taken) for a, t in zip(arrays, graph.inputs, strict=True)]
        after = [np.asarray(t) for t in tf.nest.flatten(function(*map(tf.constant, inputs)))]
    finally:
        for v, value in zip(variables, kept, strict=True):
            v.assign(value)
    for old, new, tensor in zip(before, after, graph.outputs, strict=True):
        if tensor.shape is None:
            continue
        expected = moved(old, axes.nested(tensor), taken)
        np.testing.assert_allclose(new, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_freedom(name):
    chosen = CASES[name]
    _, graph, axes = traced(chosen, arrays_of(chosen, 0))
    found = [free_positions(axes, t) for t in graph.inputs]
    assert found == chosen.free


def test_channels_pass_a_shuffle_one_by_one():
    _, _, axes = traced(CASES["channel shuffle"], arrays_of(CASES["channel shuffle"], 0))
    taken = random_exchange(axes, np.random.default_rng(0))
    assert len(np.unique(taken)) == axes.count
    tables = exchangeable(axes, axes.classes(), np.arange(axes.count))
    assert C in [table.shape[1] for table in tables]


def test_every_rule_says_what_it_ties_and_pins():
    for op_type in rules.op_types():
        said = (rules.rule_for(op_type).__doc__ or "").lower()
        assert "pin" in said or ": as `" in said, op_type


def test_every_rule_is_tested():
    tested = set()
    for chosen in CASES.values():
        tested |= {op.type for op in traced(chosen, arrays_of(chosen, 0))[1].ops}
    random = {t for t in rules.op_types() if "Random" in t or "Normal" in t} | {"Multinomial", "StatefulUniform"}
    assert sorted(rules.op_types() - tested - rules.opaque.NAMED - random) == []
