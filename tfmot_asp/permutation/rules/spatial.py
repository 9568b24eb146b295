"""Ops that slide a window or resample: channels pass through, spatial axes are pinned."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tfmot_asp.graph.flat_graph import Op
from tfmot_asp.permutation.axes import Axes, Axis, Outputs
from tfmot_asp.permutation.rules.contraction import len_of
from tfmot_asp.permutation.rules.registry import register_rule


@register_rule("MaxPool", "MaxPoolV2", "AvgPool", "MaxPool3D", "AvgPool3D")
def pool(op: Op, axes: Axes) -> Outputs:
    """Pins the axes over which the window moves; channels go through, unless the window pools over them too."""
    x = list(axes[op.inputs[0]])
    window, strides = _ints(op, "ksize", 1), _ints(op, "strides", 2)
    if window is None or strides is None:
        return axes.pin_all(op, "pools over a window that is known only when it runs")
    shape = op.outputs[0].shape or ()
    for i, (size, stride) in enumerate(zip(window, strides, strict=True)):
        if size != 1 or stride != 1 or shape[i] != len_of(op, i):
            axes.pin(x[i], "a spatial axis", op)
            x[i] = axes.pinned(shape[i], "a spatial axis", op)
    return [x]


def _ints(op: Op, name: str, position: int) -> Sequence[int] | None:
    value = op.attr(name, None)
    if value is None and len(op.inputs) > position:
        value = op.inputs[position].value
    return None if value is None else [int(v) for v in value]


@register_rule(
    "ResizeArea",
    "ResizeBicubic",
    "ResizeBilinear",
    "ResizeNearestNeighbor",
    "ScaleAndTranslate",
    "AdjustContrastv2",
)
def resize(op: Op, axes: Axes) -> Outputs:
    """Pins height and width; batch and channels go through."""
    x, shape = axes[op.inputs[0]], op.outputs[0].shape or ()
    for axis in x[-3:-1]:
        axes.pin(axis, "a spatial axis", op)
    return [[*x[:-3], *(axes.pinned(n, "a spatial axis", op) for n in shape[-3:-1]), x[-1]]]


@register_rule("ImageProjectiveTransformV2", "ImageProjectiveTransformV3")
def projective_transform(op: Op, axes: Axes) -> Outputs:
    """Pins height, width and the eight numbers of a transformation, whose roles differ; ties the batches of both."""
    images, transforms = axes[op.inputs[0]], axes[op.inputs[1]]
    axes.pin(transforms[1], "the coefficients of a transformation", op)
    (result,) = resize(op, axes)
    return [[axes.tie(images[0], transforms[0]), *result[1:]]]


@register_rule("CropAndResize")
def crop_and_resize(op: Op, axes: Axes) -> Outputs:
    """Pins everything but the channels, which go through: boxes are positions, and pick their image by index."""
    channels = axes[op.inputs[0]][-1]
    for tensor in op.inputs:
        if tensor.value is None:
            for axis in axes[tensor]:
                if axis is not channels:
                    axes.pin(axis, "cropped by position", op)
    return [[*(axes.pinned(n, "cropped by position", op) for n in (op.outputs[0].shape or ())[:-1]), channels]]


@register_rule("ExtractImagePatches")
def extract_patches(op: Op, axes: Axes) -> Outputs:
    """The patch's pixels in turn, all channels of each: `(i·w + j)·C + c`.

    Ties each channel to its copies, labelled by the pixel. Pins spatial axes.
    """
    x, shape = axes[op.inputs[0]], op.outputs[0].shape or ()
    channels = x[3]
    depth: Axis = None
    if channels is not None:
        copies = shape[3] // len(channels)
        depth = axes.fresh(shape[3])
        axes.tie(depth, np.tile(channels, copies), np.repeat(np.arange(copies), len(channels)))
    else:
        depth = axes.pinned(shape[3], "the pixels of a patch", op)
    for i in (1, 2):
        axes.pin(x[i], "a spatial axis", op)
    return [[x[0], *(axes.pinned(n, "a spatial axis", op) for n in shape[1:3]), depth]]


@register_rule("Dilation2D")
def dilation(op: Op, axes: Axes) -> Outputs:
    """Grayscale morphology, each channel by its own filter: ties channels to the filter's. Pins spatial axes."""
    x, kernel = axes[op.inputs[0]], axes[op.inputs[1]]
    shape = op.outputs[0].shape or ()
    for axis in (*x[1:3], *kernel[:2]):
        axes.pin(axis, "a spatial axis", op)
    return [[x[0], *(axes.pinned(n, "a spatial axis", op) for n in shape[1:3]), axes.tie(x[3], kernel[2])]]
