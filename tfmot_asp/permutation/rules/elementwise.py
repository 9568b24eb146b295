"""Ops that work on each element alone, with broadcasting; softmax and reductions; batch normalization."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfmot_asp.graph.flat_graph import Op
from tfmot_asp.graph.ops import BATCH_NORMS, channel_axis
from tfmot_asp.permutation.axes import Axes, Axis, Outputs
from tfmot_asp.permutation.rules.registry import register_rule

_UNARY = """
    Abs Acos Acosh Angle Asin Asinh Atan Atanh BesselI0e BesselI1e Cast Ceil CheckNumerics ComplexAbs Conj Cos Cosh
    Digamma Elu EnsureShape Erf Erfc Erfinv Exp Expm1 FakeQuantWithMinMaxArgs Floor Identity Imag Inv Invert IsFinite
    IsInf IsNan LeakyRelu Lgamma Log Log1p LogSoftmax LogicalNot Ndtri Neg OnesLike PlaceholderWithDefault
    PreventGradient Real Reciprocal Relu Relu6 Rint Round Rsqrt Selu Sigmoid Sign Sin Sinh Snapshot Softmax Softplus
    Softsign Sqrt Square StopGradient Tan Tanh ZerosLike
"""
UNARY = tuple(_UNARY.split())
# Softmax and LogSoftmax normalize over their last axis by a sum, in which order does not matter.

_BROADCASTING = """
    Add AddV2 ApproximateEqual Atan2 Betainc BitwiseAnd BitwiseOr BitwiseXor ClipByValue Complex Div DivNoNan Equal
    FloorDiv FloorMod Greater GreaterEqual Igamma Igammac LeftShift Less LessEqual LogicalAnd LogicalOr Maximum Minimum
    Mod Mul MulNoNan NextAfter NotEqual Polygamma Pow RealDiv RightShift SelectV2 SquaredDifference Sub TruncateDiv
    TruncateMod Xdivy Xlog1py Xlogy Zeta
"""
BROADCASTING = tuple(_BROADCASTING.split())

_ACTIVATION_GRADIENTS = "EluGrad LeakyReluGrad Relu6Grad ReluGrad RsqrtGrad SigmoidGrad SqrtGrad TanhGrad"


@register_rule(*UNARY)
def unary(op: Op, axes: Axes) -> Outputs:
    """The output is indexed as the first input, further inputs are scalars. Ties and pins nothing."""
    if op.outputs[0].is_resource:
        return identity_n(op, axes)
    return [axes[op.inputs[0]]]


@register_rule("CollectiveReduce", "CollectiveReduceV2")
def collective_reduce(op: Op, axes: Axes) -> Outputs:
    """The sum of what each worker keeps of its own, such as batch statistics, element by element: as `unary`."""
    return [axes[op.inputs[0]]]


@register_rule("IdentityN")
def identity_n(op: Op, axes: Axes) -> Outputs:
    """What custom-gradient functions end in: each output is an input. Ties and pins nothing."""
    for handle, same in zip(op.inputs, op.outputs, strict=True):
        if handle.dtype == tf.variant:
            axes.same_list(handle, same)
    return [axes[t] if not t.is_resource else [] for t in op.inputs]


@register_rule(*BROADCASTING, *_ACTIVATION_GRADIENTS.split())
def broadcasting(op: Op, axes: Axes) -> Outputs:
    """Ties axes of equal size, aligned from the last; those of size 1 are uniform and tie to nothing. Pins nothing."""
    return [join(op, axes, len(op.outputs[0].shape or ()))] * len(op.outputs)


def join(op: Op, axes: Axes, rank: int) -> list[Axis]:
    """The axes of all inputs, broadcast to `rank` and tied."""
    result: list[Axis] = [None] * rank
    for tensor in op.inputs:
        own = axes[tensor]
        for i, axis in enumerate(own, start=rank - len(own)):
            result[i] = axes.tie(result[i], axis)
    return result


@register_rule("AddN", "AccumulateNV2")
def add_n(op: Op, axes: Axes) -> Outputs:
    """The sum of a list of tensors of one shape: ties all their axes. Pins nothing."""
    return [join(op, axes, len(op.outputs[0].shape or ()))]


@register_rule("Select")
def select(op: Op, axes: Axes) -> Outputs:
    """The older select: ties both choices, and their first axis to the condition if that is a vector. Pins nothing."""
    condition, x, y = (axes[t] for t in op.inputs)
    result = [axes.tie(a, b) for a, b in zip(x, y, strict=True)]
    return [[axes.tie(r, condition[i]) if i < len(condition) else r for i, r in enumerate(result)]]


@register_rule("Bitcast")
def bitcast(op: Op, axes: Axes) -> Outputs:
    """To a type of another size, a last axis of the parts of each number comes or goes, and is pinned. Ties nothing."""
    x, rank = list(axes[op.inputs[0]]), len(op.outputs[0].shape or ())
    if rank > len(x):
        return [[*x, axes.pinned((op.outputs[0].shape or ())[-1], "the parts of a number", op)]]
    if rank < len(x):
        axes.pin(x.pop(), "the parts of a number", op)
    return [x]


@register_rule("BiasAdd", "BiasAddV1")
def bias_add(op: Op, axes: Axes) -> Outputs:
    """Ties the bias to the channels, wherever `data_format` has them. Pins nothing."""
    x, (bias,) = list(axes[op.inputs[0]]), axes[op.inputs[1]]
    channel = channel_axis(op, len(x))
    x[channel] = axes.tie(x[channel], bias)
    return [x]


@register_rule(
    "FakeQuantWithMinMaxVars",
    "FakeQuantWithMinMaxVarsPerChannel",
    "QuantizeAndDequantizeV2",
    "QuantizeAndDequantizeV3",
    "QuantizeAndDequantizeV4",
)
def fake_quant(op: Op, axes: Axes) -> Outputs:
    """Ties ranges that are vectors to the axis they are for: the last, or the one that `axis` names. Pins nothing."""
    x = list(axes[op.inputs[0]])
    axis = int(op.attr("axis", -1))
    for limit in op.inputs[1:3]:
        if limit.shape:
            x[axis] = axes.tie(x[axis], axes[limit][0])
    return [x]


@register_rule(*BATCH_NORMS)
def fused_batch_norm(op: Op, axes: Axes) -> Outputs:
    """Ties scale, offset, mean and variance to the channels; other axes are averaged or go through. Pins nothing.

    Works alike in training mode (layer normalization is built on it), in which mean and variance are empty.
    """
    x = list(axes[op.inputs[0]])
    channel = channel_axis(op, len(x))
    for tensor in op.inputs[1:]:
        if tensor.shape and tensor.shape[0]:
            x[channel] = axes.tie(x[channel], axes[tensor][0])
    rest = [
        [x[channel]] if t.shape == (op.inputs[0].shape or ())[channel : channel + 1] else [None] * len(t.shape or ())
        for t in op.outputs[1:]
    ]
    return [x, *rest]


@register_rule("L2Loss")
def to_scalar(op: Op, axes: Axes) -> Outputs:
    """A sum over everything, which does not depend on any order. Ties and pins nothing."""
    return [[]]


@register_rule("Sum", "Mean", "Max", "Min", "Prod", "All", "Any", "EuclideanNorm")
def reduce(op: Op, axes: Axes) -> Outputs:
    """A reduction does not depend on the order along the axes that it drops. Ties and pins nothing."""
    where = op.inputs[1].value
    if where is None:
        return axes.pin_all(op, "reduces axes that are known only when it runs")
    x = axes[op.inputs[0]]
    dropped = {int(i) % len(x) for i in np.ravel(where)} if x else set()
    if op.attr("keep_dims", False):
        return [[None if i in dropped else a for i, a in enumerate(x)]]
    return [[a for i, a in enumerate(x) if i not in dropped]]


@register_rule("Cumsum", "Cumprod", "CumulativeLogsumexp")
def cumulative(op: Op, axes: Axes) -> Outputs:
    """Pins the axis along which it runs, whose order matters."""
    return ordered_along(op, axes, op.inputs[1].value, "accumulated in order along this axis")


@register_rule("LRN")
def local_response_normalization(op: Op, axes: Axes) -> Outputs:
    """Each channel is normalized by its neighbours: pins the channels."""
    return ordered_along(op, axes, np.asarray(-1), "normalized by neighbouring channels")


def ordered_along(op: Op, axes: Axes, axis: np.ndarray | None, reason: str) -> Outputs:
    """Pins one axis of the first input and hands all on; pins everything if the axis is not known."""
    if axis is None:
        return axes.pin_all(op, reason)
    x = list(axes[op.inputs[0]])
    for i in np.ravel(axis):
        i = int(i) % len(x)
        axes.pin(x[i], reason, op)
        if x[i] is None:  # equal slices in, different slices out
            x[i] = axes.pinned((op.inputs[0].shape or ())[i], reason, op)
    return [x]


@register_rule("ArgMax", "ArgMin")
def arg_max(op: Op, axes: Axes) -> Outputs:
    """The result is a position along the axis, which is pinned; the other axes go through."""
    where = op.inputs[1].value
    if where is None:
        return axes.pin_all(op, "the position along this axis is the result")
    x = axes[op.inputs[0]]
    dropped = int(where) % len(x)
    axes.pin(x[dropped], "the position along this axis is the result", op)
    return [[a for i, a in enumerate(x) if i != dropped]]
