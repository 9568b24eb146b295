"""Which axes of a kernel the GEMM sums over, and which become output channels: the table of layer kinds.

The reduction axis is the one along which sparse Tensor Cores want m zeros in every n consecutive weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tfmot_asp import einsum
from tfmot_asp.keras_models.which_keras import is_instance
from tfmot_asp.keras_models.wrappers import unwrap

_Axes = tuple[tuple[int, ...], tuple[int, ...]]

# Kind -> attribute of the layer -> reduction axes and output axes of that kernel, counted from its end. The axes before
# them (a convolution's height and width) are positions. Kinds are Keras classes, subclasses first: Conv2DTranspose and
# DepthwiseConv2D are Conv2D (or Conv) subclasses in tf_keras.
_INPUT_OUTPUT: _Axes = ((-2,), (-1,))  # (..., I, O)
_OUTPUT_INPUT: _Axes = ((-1,), (-2,))  # (..., O, I)
_DEPTHWISE: _Axes = ((), (-2, -1))  # (..., I, M): an output channel sees one input channel, so none are summed over
_OF_EQUATION: _Axes = ((), ())  # see _einsum_axes
_LAYOUTS: dict[str, dict[str, _Axes]] = {
    "Conv1DTranspose": {"kernel": _OUTPUT_INPUT},
    "Conv2DTranspose": {"kernel": _OUTPUT_INPUT},
    "Conv3DTranspose": {"kernel": _OUTPUT_INPUT},
    "DepthwiseConv1D": {"depthwise_kernel": _DEPTHWISE, "kernel": _DEPTHWISE},  # the latter in Keras 3
    "DepthwiseConv2D": {"depthwise_kernel": _DEPTHWISE, "kernel": _DEPTHWISE},
    "SeparableConv1D": {"depthwise_kernel": _DEPTHWISE, "pointwise_kernel": _INPUT_OUTPUT},
    "SeparableConv2D": {"depthwise_kernel": _DEPTHWISE, "pointwise_kernel": _INPUT_OUTPUT},
    "Conv1D": {"kernel": _INPUT_OUTPUT},
    "Conv2D": {"kernel": _INPUT_OUTPUT},
    "Conv3D": {"kernel": _INPUT_OUTPUT},
    "EinsumDense": {"kernel": _OF_EQUATION},
    "Dense": {"kernel": _INPUT_OUTPUT},
    "MultiHeadAttention": {},  # its projections are EinsumDense layers
    "GroupQueryAttention": {},
}
ATTENTION_KINDS = ("MultiHeadAttention", "GroupQueryAttention")


@dataclass(frozen=True)
class KernelLayout:
    """How a kernel's axes take part in the GEMM.

    Axes in neither tuple are positions (a convolution's height and width, an einsum's batch letters): the pattern is
    independent for each of them.

    Attributes:
        kind: Keras class that the layout follows, such as ``"Conv2D"``.
        reduction_axes: kernel axes that are summed over (input channels), flattened row-major when there are several;
            empty if no channel axis is summed over (depthwise convolution).
        output_axes: kernel axes that become output channels, flattened row-major.
        groups: number of groups of a grouped convolution; the reduction axis then holds one group's input channels.
    """

    kind: str
    reduction_axes: tuple[int, ...]
    output_axes: tuple[int, ...]
    groups: int = 1


def kind_of(layer: Any) -> str | None:
    """The Keras class whose layout ``layer`` follows, or None for a layer without a known kernel.

    Subclasses count as their base class. Wrappers (``TimeDistributed``, tfmot's ``PruneLowMagnitude`` ...) have the
    kind of what they wrap. Works on unbuilt layers.
    """
    layer = unwrap(layer)
    return next((kind for kind in _LAYOUTS if is_instance(layer, kind)), None)


def kernel_attributes(kind: str) -> tuple[str, ...]:
    """What a layer of a kind may call its kernels."""
    return tuple(_LAYOUTS[kind])


def layout_of(layer: Any, kind: str, attribute: str, rank: int) -> KernelLayout:
    """The layout of one kernel of a layer.

    Args:
        layer: the layer, not wrapped.
        kind: of it.
        attribute: of ``kernel_attributes(kind)``.
        rank: of the kernel.
    """
    if kind == "EinsumDense":
        return KernelLayout(kind, *_einsum_axes(layer.equation, rank))
    reduction, outputs = _LAYOUTS[kind][attribute]
    groups = int(getattr(layer, "groups", 1) or 1) if kind.startswith("Conv") else 1
    return KernelLayout(kind, _from_start(reduction, rank), _from_start(outputs, rank), groups)


def _from_start(axes: tuple[int, ...], rank: int) -> tuple[int, ...]:
    return tuple(rank + axis for axis in axes)


def _einsum_axes(equation: str, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of an equation such as ``abc,cde->abde``: the axes that are contracted, and those new in the output."""
    return einsum.parse(equation).roles(1, rank)
