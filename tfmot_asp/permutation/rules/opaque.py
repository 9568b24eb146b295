"""Ops that keep what they touch in place, each with its reason in plain words; random numbers; writing to variables."""

from __future__ import annotations

from tfmot_asp.graph.flat_graph import Op
from tfmot_asp.permutation.axes import Axes, Outputs, Rule
from tfmot_asp.permutation.rules.registry import register_rule

_REASONS = {
    "a loop": "For",
    "a recurrent layer": "BlockLSTM BlockLSTMV2 CudnnRNN CudnnRNNV2 CudnnRNNV3 GRUBlockCell LSTMBlockCell",
    "a list of tensors, as loops use": "TensorListConcatV2 TensorListElementShape TensorListSplit",
    "computed in Python": "EagerPyFunc PyFunc PyFuncStateless",
    "written to by index": """
        DynamicStitch ParallelDynamicStitch ScatterNd TensorScatterAdd TensorScatterMax TensorScatterMin
        TensorScatterSub TensorScatterUpdate
    """,
    "grouped by values known only when it runs": """
        Bincount DenseBincount DynamicPartition SegmentMax SegmentMean SegmentSum SparseSegmentMean SparseSegmentSum
        Unique UniqueV2 UnsortedSegmentMax UnsortedSegmentSum Where
    """,
    "linear algebra on whole matrices": """
        BatchMatrixSolve Cholesky LogMatrixDeterminant MatrixDeterminant MatrixInverse MatrixSolve
        MatrixTriangularSolve Qr SelfAdjointEigV2 Svd
    """,
    "a choice among boxes": """
        CombinedNonMaxSuppression NonMaxSuppression NonMaxSuppressionV2 NonMaxSuppressionV3 NonMaxSuppressionV4
        NonMaxSuppressionV5
    """,
    "pooling that returns positions or draws its windows at random": """
        FractionalAvgPool FractionalMaxPool MaxPoolWithArgmax
    """,
    "colours, which are not alike": "AdjustHue AdjustSaturation HSVToRGB RGBToHSV",
    "a table that is looked up": "HashTableV2 LookupTableFindV2 LookupTableSizeV2",
    "text": """
        AsString RaggedTensorToTensor RegexReplace StaticRegexReplace StringJoin StringLower StringSplitV2
        StringToHashBucketFast
    """,
}


def _opaque(reason: str) -> Rule:
    def rule(op: Op, axes: Axes) -> Outputs:
        """Pins all that the op touches."""
        return axes.pin_all(op, reason)

    return rule


for _reason, _types in _REASONS.items():
    register_rule(*_types.split())(_opaque(_reason))

NAMED = frozenset(op_type for types in _REASONS.values() for op_type in types.split())
"""Op types that pin all they touch, for a reason that has a name here."""


@register_rule("FFT", "FFT2D", "FFT3D", "IFFT", "IFFT2D", "IFFT3D", "RFFT", "RFFT2D", "RFFT3D", "IRFFT", "IRFFT2D")
def fourier_transform(op: Op, axes: Axes) -> Outputs:
    """Mixes the positions of the last one, two or three axes, which are pinned; the leading axes go through."""
    depth = int(op.type[-2]) if op.type.endswith("D") else 1
    reason, shape = "a Fourier transform along this axis", op.outputs[0].shape or ()
    x = list(axes[op.inputs[0]])
    for axis in x[-depth:]:
        axes.pin(axis, reason, op)
    return [[*x[:-depth], *(axes.pinned(n, reason, op) for n in shape[-depth:])]]


@register_rule(
    "Multinomial",
    "ParameterizedTruncatedNormal",
    "RandomGammaGrad",
    "RandomPoissonV2",
    "RandomStandardNormal",
    "RandomUniform",
    "RandomUniformInt",
    "StatelessRandomNormal",
    "StatelessRandomNormalV2",
    "StatelessRandomUniform",
    "StatelessRandomUniformInt",
    "StatelessRandomUniformIntV2",
    "StatelessRandomUniformV2",
    "StatelessTruncatedNormal",
    "StatelessTruncatedNormalV2",
    "StatefulStandardNormalV2",
    "StatefulUniform",
    "TruncatedNormal",
)
def random_numbers(op: Op, axes: Axes) -> Outputs:
    """In training (dropout) one order of independent numbers is as good as another: nothing is tied or pinned.

    In inference the numbers count, and every axis is pinned.
    """
    shape = op.outputs[0].shape or ()
    if op.training:
        return [[None] * len(shape)]
    return [[axes.pinned(n, "random numbers, drawn position by position", op) for n in shape]]


@register_rule("AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp")
def assign(op: Op, axes: Axes) -> Outputs:
    """Ties a variable that is written to what is written, axis by axis. Pins nothing."""
    variable = op.inputs[0].variable
    if variable is None:
        return axes.pin_all(op, "writes to a resource that is not a variable")
    for own, axis in zip(map(axes.alike, axes.of_variable(variable)), axes[op.inputs[1]], strict=True):
        if own is not None and axis is not None and len(axis) == len(own):
            axes.tie(own, axis)
    return []
