"""The kernels of layers, and of a model by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from tfmot_asp.keras_models.layers import all_layers
from tfmot_asp.keras_models.layouts import ATTENTION_KINDS, KernelLayout, kernel_attributes, kind_of, layout_of
from tfmot_asp.keras_models.variables import read, underlying_variable
from tfmot_asp.keras_models.which_keras import is_instance
from tfmot_asp.keras_models.wrappers import holds_quantized, trained_variables, unwrap
from tfmot_asp.masks import magnitude

_ATTENTION_PROJECTIONS = ("_query_dense", "_key_dense", "_value_dense", "_output_dense")


@dataclass(frozen=True, eq=False)
class Kernel:
    """One kernel of one layer.

    Attributes:
        layer: the Keras layer that owns the variable (the inner one, if it came in a wrapper).
        attribute: dotted path from ``layer`` to the variable, such as ``"kernel"``.
        variable: the variable as Keras hands it out: a ``tf.Variable``, tf_keras' ``AutoCastVariable`` around one, or
            Keras 3's ``Variable``.
        layout: the roles of its axes.
    """

    layer: Any
    attribute: str
    variable: Any
    layout: KernelLayout

    @property
    def tf_variable(self) -> Any:
        """The ``tf.Variable`` underneath: what a trace captures, in its stored (float32, not autocast) dtype."""
        return underlying_variable(self.variable)

    @property
    def shape(self) -> tuple[int, ...]:
        """The kernel's static shape."""
        return tuple(int(size) for size in self.variable.shape)

    @property
    def reduction_size(self) -> int:
        """Length of the flattened reduction axes: input channels of one group."""
        return math.prod(self.shape[axis] for axis in self.layout.reduction_axes)

    @property
    def output_size(self) -> int:
        """Length of the flattened output axes: output channels."""
        return math.prod(self.shape[axis] for axis in self.layout.output_axes)


def used_kernel(kernel: Kernel) -> np.ndarray:
    """What the layer multiplies by: the stored weight, or what LoRA or a ``kernel_quantizer`` (larq) makes of it."""
    stored = read(kernel.tf_variable)
    if kernel.attribute == "_kernel":  # the property adds LoRA's product to it
        used = getattr(kernel.layer, "kernel", stored)
    else:
        quantizer = getattr(kernel.layer, f"{kernel.attribute}_quantizer", None)
        used = quantizer(kernel.variable) if callable(quantizer) else stored
    values = stored if used is stored else np.asarray(used)
    return values if values.shape == stored.shape else stored


Scores: TypeAlias = Callable[[Kernel], npt.ArrayLike]
"""Gives a score for each weight of a kernel: an array of its shape."""


def scores_of(name: str, kernel: Kernel, scores: Scores | None) -> np.ndarray:
    """The scores of a kernel's weights, by default their magnitudes as they are now.

    Raises ValueError, with the kernel's name, if they are of another shape.
    """
    if scores is None:
        return magnitude(read(kernel.tf_variable))
    score = np.asarray(scores(kernel))
    if score.shape != kernel.shape:
        raise ValueError(f"the scores of {name!r} have shape {score.shape}, its kernel has shape {kernel.shape}")
    return score


class LayerWithKernels(NamedTuple):
    """A layer of a model that has kernels.

    Attributes:
        name: that tells the layer apart within its model.
        layer: it, in its wrapper if that holds its variables.
        kernels: of it, at least one.
    """

    name: str
    layer: Any
    kernels: tuple[Kernel, ...]


def kernel_name(layer_name: str, attribute: str) -> str:
    """What a kernel is called in messages and tables: as its layer, unless that has several or calls it otherwise."""
    return layer_name if attribute in ("kernel", "_kernel") else f"{layer_name}.{attribute}"


def layers_with_kernels(model: Any) -> list[LayerWithKernels]:
    """The layers of a model, a single layer or a ``tf.Module`` that have kernels, in the model's order."""
    found = ((name, layer, tuple(kernels_of(layer))) for name, layer in all_layers(model))
    return [LayerWithKernels(name, layer, kernels) for name, layer, kernels in found if kernels]


def kernels_by_name(layers: Iterable[LayerWithKernels], *, masked: bool = False) -> dict[str, Kernel]:
    """The kernels that sum over channels, by name; one that several layers share once, under its first name.

    Args:
        layers: as ``layers_with_kernels`` gives them, or some of them.
        masked: whether masks are to be put on them.

    Raises:
        ValueError: if ``masked``, and two layers share a kernel but sum over different axes of it.
    """
    found: dict[str, Kernel] = {}
    first: dict[int, tuple[str, Kernel]] = {}
    for layer in layers:
        for kernel in layer.kernels:
            axes = kernel.layout.reduction_axes
            name = kernel_name(layer.name, kernel.attribute)
            if not axes:
                continue
            other_name, other = first.setdefault(id(kernel.tf_variable), (name, kernel))
            if other is kernel:
                found[name] = kernel
            elif masked and other.layout.reduction_axes != axes:
                raise ValueError(
                    f"{other_name!r} and {name!r} share a kernel, but sum over different axes of it "
                    f"({other.layout.reduction_axes} and {axes}), so no mask suits both; keep one of them out with "
                    "PruneForSparseTensorCores(skip=[layer])"
                )
    return found


def kernels_of(layer: Any) -> list[Kernel]:
    """The kernels of one layer, in a fixed order.

    Args:
        layer: a tf_keras or Keras 3 layer. Wrappers are looked through; attention layers give the kernels of their
            projections.

    Returns:
        Its kernels; empty for a layer without any, and for one that has not been built.
    """
    outer, layer = layer, unwrap(layer)
    if is_instance(layer, "Bidirectional"):
        halves = (getattr(layer, "forward_layer", None), getattr(layer, "backward_layer", None))
        return [kernel for half in halves if half is not None for kernel in kernels_of(half)]
    kind = kind_of(layer)
    if kind is None:
        return []
    if kind in ATTENTION_KINDS:
        return [
            Kernel(layer, f"{projection}.{kernel.attribute}", kernel.variable, kernel.layout)
            for projection in _ATTENTION_PROJECTIONS
            for kernel in kernels_of(getattr(layer, projection, None))
        ]
    held = trained_variables(outer) if holds_quantized(outer) else {}
    kernels: list[Kernel] = []
    for attribute in kernel_attributes(kind):
        # With LoRA, Keras 3's `kernel` is a tensor computed from three variables; the stored one is `_kernel`.
        stored = "_kernel" if attribute == "kernel" and getattr(layer, "lora_enabled", False) else attribute
        variable = held.get(stored, getattr(layer, stored, None))
        rank = 0 if variable is None else len(variable.shape)
        if rank and all(variable is not kernel.variable for kernel in kernels):
            kernels.append(Kernel(layer, stored, variable, layout_of(layer, kind, attribute, rank)))
    return kernels
