"""What NVIDIA's sparse Tensor Cores and the libraries above them can use, with the source of each rule.

Plain numbers and rules about shapes: needs no TensorFlow. ``sparsity_report`` shows what they say of a layer. What is
pruned is another matter, see ``rule.PruneForSparseTensorCores``: it is less strict, and knows no precision.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tfmot_asp.keras_models.kernels import Kernel

TENSORRT_GUIDE = (
    "TensorRT developer guide, structured sparsity: "
    "https://docs.nvidia.com/deeplearning/tensorrt/10.16.1/inference-library/io-formats-sparsity.html"
)
GROUPED_CONVOLUTIONS = "NVIDIA on grouped convolutions: https://github.com/NVIDIA/TensorRT/issues/4054"
CHANNELS = "NVIDIA on channels: https://github.com/NVIDIA/TensorRT/issues/3849 and /4065"
END_TO_END = "https://github.com/NVIDIA/TensorRT/issues/2310"
CUSPARSELT = (
    "whether N and K are multiples of what cuSPARSELt asks for (no: these are not), and M (pad M): "
    "https://docs.nvidia.com/cuda/cusparselt/functions.html, and PyTorch's table, torch/sparse/semi_structured.py"
)

# Both counts from which NVIDIA's engineers saw sparse convolution kernels win: input and output channels, where the
# positions of a kernel count as input channels (the second of the issues in CHANNELS: "3x3 increases the C by 9x").
ENOUGH_CHANNELS = 256

# TensorRT cuts the input channels into stripes of four, and looks for its zeros there.
_TENSORRT_INPUT_MULTIPLE = 4


@dataclass(frozen=True)
class Alignment:
    """What the sizes of a sparse product must be multiples of.

    Attributes:
        sparse: N and K, the two sides of the sparse operand, which is the weight.
        dense: M, the other side of the dense operand, which is the activations. Libraries can pad it.
    """

    sparse: int
    dense: int


# cuSPARSELt (see CUSPARSELT). bfloat16 is as fp16.
ALIGNMENT = {"fp16": Alignment(sparse=16, dense=8), "int8": Alignment(sparse=32, dense=16)}


def misaligned(precision: str, *, m: int | None, n: int, k: int) -> tuple[str, ...]:
    """Which sizes of a product do not suit cuSPARSELt's sparse kernels.

    Args:
        precision: ``"fp16"`` or ``"int8"``.
        m: rows, positions; None if not known.
        n: output channels of one group.
        k: input channels of one group. Of a convolution only these: kernel positions are summed over one by one.

    Returns:
        Names out of ``"M"``, ``"N"`` and ``"K"``; empty if all is well.

    Example:
        >>> misaligned("fp16", m=49, n=2048, k=512)
        ('M',)
    """
    rule = ALIGNMENT[precision]
    sides = (("M", m, rule.dense), ("N", n, rule.sparse), ("K", k, rule.sparse))
    return tuple(name for name, size, multiple in sides if size is not None and size % multiple)


@dataclass(frozen=True)
class TensorRTVerdict:
    """Whether TensorRT has a sparse kernel for a weight.

    Attributes:
        usable: whether TensorRT considers a sparse kernel, once the weight is 2:4 and the precision fp16 or int8.
        gains: whether such a kernel is likely to win against the dense one when TensorRT times both.
        reason: why not, if ``usable`` or ``gains`` is False.
        source: of the rule.
    """

    usable: bool
    gains: bool
    reason: str | None
    source: str


def tensorrt_verdict(kernel: Kernel) -> TensorRTVerdict:
    """Whether TensorRT can use a sparse kernel for this weight, by its shape and the layer's kind.

    TensorRT documents sparse kernels for the weights of 2-D convolutions (a Conv1D is one of height 1) and fully
    connected layers, which today are products with a constant matrix, if the input channels divide by 4. Its engineers
    say that grouped convolutions are left out, and that kernels win from about 256 channels on.

    Args:
        kernel: a layer's kernel, as ``kernels_of`` gives it.
    """

    def no(reason: str, source: str = TENSORRT_GUIDE) -> TensorRTVerdict:
        return TensorRTVerdict(False, False, reason, source)

    kind, layout = kernel.layout.kind, kernel.layout
    inputs, outputs = kernel.reduction_size, kernel.output_size
    if kind.startswith("Depthwise") or kernel.attribute == "depthwise_kernel":
        return no("depthwise, a group per channel", GROUPED_CONVOLUTIONS)
    obstacle = tensorrt_obstacle(inputs, groups=layout.groups, transposed=kind.endswith("Transpose"))
    if layout.groups > 1:
        return no(obstacle, GROUPED_CONVOLUTIONS)
    if kind == "Conv3D":
        return no("a 3-D convolution is not among what it documents")
    positions = math.prod(kernel.shape) // max(1, inputs * outputs)
    if kind == "EinsumDense" and (not layout.reduction_axes or not layout.output_axes or positions > 1):
        return no("its equation is no product with one matrix")
    if obstacle:
        return no(obstacle)
    if positions * inputs < ENOUGH_CHANNELS:
        return TensorRTVerdict(True, False, f"small: sums over {positions * inputs}", CHANNELS)
    if outputs < ENOUGH_CHANNELS:
        return TensorRTVerdict(True, False, f"small: {outputs} outputs", CHANNELS)
    return TensorRTVerdict(True, True, None, TENSORRT_GUIDE)


def tensorrt_obstacle(inputs: int, *, groups: int = 1, transposed: bool = False) -> str:
    """What keeps TensorRT from a sparse kernel, of a layer or of a product in a file; empty if nothing does.

    Args:
        inputs: input channels of one group.
        groups: of the convolution.
        transposed: whether it is a transposed one.
    """
    if groups > 1:
        return f"{groups} groups"
    if transposed:
        return "a transposed convolution is not among what TensorRT documents"
    if inputs % _TENSORRT_INPUT_MULTIPLE:
        return f"{inputs} inputs, no multiple of {_TENSORRT_INPUT_MULTIPLE}"
    return ""


def best_case(share: float) -> float:
    """The factor by which a model gets faster if this share of its work takes half the time (Amdahl's law).

    Half, since sparse Tensor Cores do twice the multiply-adds per cycle (NVIDIA A100 whitepaper, 2020). An upper bound:
    time is not proportional to multiply-adds, memory is read all the same, and few kernels reach the factor.

    Args:
        share: of the multiply-adds, 0 to 1.

    Example:
        >>> round(best_case(0.9), 2)
        1.82
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be a number from 0 to 1, got {share!r}")
    return 1 / (1 - share + share / 2)
