"""Where each layer keeps its kernels, and which of their axes the GEMM sums over.

This is the only module that knows Keras layer classes. Importing it loads neither TensorFlow nor Keras: a layer that
exists has its Keras in ``sys.modules`` already, so tf_keras (Keras 2) and Keras 3 are recognised side by side, by
``isinstance``, and a process that uses one never loads the other.

The reduction axis is the one along which sparse Tensor Cores want m zeros in every n consecutive weights: a Dense
kernel ``(I, O)`` is reduced along 0, a convolution kernel ``(..., I, O)`` along its last axis but one, a transposed
convolution kernel ``(..., O, I)`` along its last, an EinsumDense kernel along the axes its equation contracts.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

_KERAS_MODULES = ("tf_keras", "keras")

_CONV_RANK = {"Conv1D": 1, "Conv2D": 2, "Conv3D": 3}
_ATTENTION_PROJECTIONS = ("_query_dense", "_key_dense", "_value_dense", "_output_dense")
ATTENTION_KINDS = ("MultiHeadAttention", "GroupQueryAttention")

# Subclasses first: Conv2DTranspose and DepthwiseConv2D are Conv2D (or Conv) subclasses in tf_keras.
_KINDS = (
    "Conv1DTranspose",
    "Conv2DTranspose",
    "Conv3DTranspose",
    "DepthwiseConv1D",
    "DepthwiseConv2D",
    "SeparableConv1D",
    "SeparableConv2D",
    "Conv1D",
    "Conv2D",
    "Conv3D",
    "EinsumDense",
    "Dense",
    *ATTENTION_KINDS,
)


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


class NamedLayer(NamedTuple):
    """A layer with the name that tells it apart within its model."""

    name: str
    layer: Any


def is_keras_layer(thing: Any) -> bool:
    """Whether ``thing`` is a layer (or model) of tf_keras or Keras 3."""
    return _isinstance(thing, "Layer")


def is_keras_model(thing: Any) -> bool:
    """Whether ``thing`` is a model of tf_keras or Keras 3."""
    return any(isinstance(thing, base) for base in _classes("Model", namespace="models"))


def is_keras3(thing: Any) -> bool:
    """Whether ``thing`` is a layer or model of Keras 3 (and not of tf_keras)."""
    keras = sys.modules.get("keras")
    base = getattr(getattr(keras, "layers", None), "Layer", None)
    version = str(getattr(keras, "__version__", ""))
    return base is not None and not version.startswith(("1.", "2.")) and isinstance(thing, base)


def check_backend(model: Any) -> None:
    """Raises ValueError for a Keras 3 model whose variables are not TensorFlow's."""
    if is_keras3(model) and (backend := sys.modules["keras"].backend.backend()) != "tensorflow":
        raise ValueError(
            f"{type(model).__name__} {model.name!r} runs on Keras 3's {backend} backend; tfmot_asp works on TensorFlow "
            "graphs. Set KERAS_BACKEND=tensorflow before importing Keras, and load the model there"
        )


def underlying_variable(variable: Any) -> Any:
    """Strips Keras' variable classes down to the ``tf.Variable`` (or distributed variable) that holds the numbers.

    Args:
        variable: a ``tf.Variable``, tf_keras ``AutoCastVariable`` or Keras 3 ``Variable``.

    Returns:
        The variable in its stored dtype. What is already plain comes back as it is.
    """
    if "AutoCast" in type(variable).__name__ and hasattr(variable, "_variable"):
        return variable._variable  # tf_keras mixed precision: reads of the outer one are cast to float16
    keras = sys.modules.get("keras")
    keras_variable = getattr(keras, "Variable", None)
    if keras_variable is not None and isinstance(variable, keras_variable):
        # Not `.value`: under an autocast scope that is a float16 tensor.
        return variable._value
    return variable


def read(variable: Any) -> np.ndarray:
    """The value of a variable, also of a distributed or Keras 3 one, in its stored dtype."""
    import tensorflow as tf

    return tf.convert_to_tensor(underlying_variable(variable)).numpy()


def kind_of(layer: Any) -> str | None:
    """The Keras class whose layout ``layer`` follows, or None for a layer without a known kernel.

    Subclasses count as their base class. Wrappers (``TimeDistributed``, tfmot's ``PruneLowMagnitude`` ...) have the
    kind of what they wrap. Works on unbuilt layers.
    """
    layer = unwrap(layer)
    for kind in _KINDS:
        if _isinstance(layer, kind):
            return kind
    return None


def unwrap(layer: Any) -> Any:
    """The layer inside Keras ``Wrapper`` layers that hold exactly one (``layer`` itself if it is no such wrapper)."""
    while _isinstance(layer, "Wrapper") and not _isinstance(layer, "Bidirectional"):
        inner = getattr(layer, "layer", None)
        if inner is None:
            break
        layer = inner
    return layer


def kernels_of(layer: Any) -> list[Kernel]:
    """The kernels of one layer, in a fixed order.

    Args:
        layer: a tf_keras or Keras 3 layer. Wrappers are looked through; attention layers give the kernels of their
            projections.

    Returns:
        Its kernels; empty for a layer without any, and for one that has not been built.
    """
    outer, layer = layer, unwrap(layer)
    if _isinstance(layer, "Bidirectional"):
        halves = (getattr(layer, "forward_layer", None), getattr(layer, "backward_layer", None))
        return [kernel for half in halves if half is not None for kernel in kernels_of(half)]
    kind = kind_of(layer)
    if kind is None:
        return []
    if kind in ATTENTION_KINDS:
        found = []
        for projection in _ATTENTION_PROJECTIONS:
            sublayer = getattr(layer, projection, None)
            found += [
                Kernel(layer, f"{projection}.{kernel.attribute}", kernel.variable, kernel.layout)
                for kernel in kernels_of(sublayer)
            ]
        return found
    kernels = []
    for attribute in _attributes(layer, kind):
        variable = getattr(layer, attribute, None)
        if holds_quantized(outer):
            variable = _trained_variables(outer).get(attribute, variable)
        rank = None if variable is None else getattr(variable.shape, "rank", None) or len(variable.shape)
        if variable is not None and rank:
            kernels.append(Kernel(layer, attribute, variable, _layout(layer, kind, attribute, rank)))
    return kernels


def all_layers(model: Any) -> list[NamedLayer]:
    """Every layer of a model that does work of its own, each once, in the order in which the model holds them.

    Containers (nested models, attention layers, wrappers) are replaced by what they contain; a layer with a kernel or
    weights of its own is listed even if it also holds sublayers (a Dense whose activation is a layer).

    Args:
        model: a functional, sequential, subclassed or nested model of tf_keras or Keras 3, any single layer, or a
            ``tf.Module`` that holds layers.

    Returns:
        ``(name, layer)`` pairs. The name is the layer's own; where two layers share it, the path of names that leads
        there (``"backbone/conv1"``), numbered if even the paths are equal (``"block/dense#2"``).
    """
    placed: list[tuple[tuple[str, ...], Any]] = []
    seen: set[int] = set()
    stack: list[tuple[tuple[str, ...], Any]] = [((), model)]
    while stack:  # an explicit stack: nesting depth is the user's choice, Python's recursion limit is not
        path, node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        children = _sublayers(node)
        if holds_quantized(node):  # its variables are the wrapper's: the layer inside computes with quantized copies
            placed.append(((*path, str(node.name), str(unwrap(node).name)), node))
            continue
        here = (*path, str(getattr(node, "name", type(node).__name__)))
        if is_keras_layer(node) and (not children or _owns_weights(node)):
            placed.append((here, node))
        below = path if node is model else here  # the model's own name would only lengthen every path
        stack.extend((below, child) for child in reversed(children))
    return _with_clear_names(placed)


def holds_quantized(layer: Any) -> bool:
    """Whether ``layer`` is tfmot's wrapper for quantization-aware training around a layer with weights.

    It takes the variables that it quantizes over from the layer inside, which then computes with tensors. Found by its
    name, so that tfmot need not be loaded.
    """
    wrapper = any(base.__name__ == "QuantizeWrapper" for base in type(layer).__mro__)
    return wrapper and bool(getattr(layer, "_weight_vars", None))


def _trained_variables(wrapper: Any) -> dict[str, Any]:
    return {str(entry[0].name).split(":")[0].split("/")[-1]: entry[0] for entry in wrapper._weight_vars}


def _with_clear_names(placed: list[tuple[tuple[str, ...], Any]]) -> list[NamedLayer]:
    def repeated(names: list[str]) -> set[str]:
        seen: set[str] = set()
        return {name for name in names if name in seen or seen.add(name)}  # type: ignore[func-returns-value]

    short = [path[-1] for path, _ in placed]
    clashing = repeated(short)
    names = ["/".join(path) if path[-1] in clashing else path[-1] for path, _ in placed]
    still_clashing, count = repeated(names), dict.fromkeys(names, 0)
    result = []
    for name, (_, layer) in zip(names, placed, strict=True):
        count[name] += 1
        result.append(NamedLayer(f"{name}#{count[name]}" if name in still_clashing else name, layer))
    return result


def _sublayers(node: Any) -> list[Any]:
    flatten = getattr(node, "_flatten_layers", None)
    if flatten is not None:
        return [child for child in flatten(include_self=False, recursive=False) if child is not node]
    submodules = getattr(node, "submodules", ())  # a plain tf.Module
    return [module for module in submodules if is_keras_layer(module)]


def _owns_weights(layer: Any) -> bool:
    if not is_keras_model(layer) and kind_of(layer) not in (None, *ATTENTION_KINDS) and unwrap(layer) is layer:
        return True
    own = getattr(layer, "_trainable_weights", None)
    if own is None:
        own = getattr(layer, "_trainable_variables", None)
    return bool(own) and unwrap(layer) is layer


def _attributes(layer: Any, kind: str) -> tuple[str, ...]:
    if kind.startswith("Separable"):
        return ("depthwise_kernel", "pointwise_kernel")
    if kind.startswith("Depthwise"):
        return ("depthwise_kernel",) if getattr(layer, "depthwise_kernel", None) is not None else ("kernel",)
    # With LoRA, Keras 3's `kernel` is a tensor computed from three variables; the stored one is `_kernel`.
    return ("_kernel",) if getattr(layer, "lora_enabled", False) else ("kernel",)


def _layout(layer: Any, kind: str, attribute: str, rank: int) -> KernelLayout:
    if attribute == "depthwise_kernel" or kind.startswith("Depthwise"):
        # (..., I, M): each output channel sees one input channel, so no channel axis is summed over.
        return KernelLayout(kind, (), (rank - 2, rank - 1))
    if kind.endswith("Transpose"):
        return KernelLayout(kind, (rank - 1,), (rank - 2,), int(getattr(layer, "groups", 1) or 1))
    if kind == "EinsumDense":
        return _einsum_layout(layer)
    groups = int(getattr(layer, "groups", 1) or 1) if kind in _CONV_RANK else 1
    return KernelLayout(kind, (rank - 2,), (rank - 1,), groups)


def _einsum_layout(layer: Any) -> KernelLayout:
    """Reads the roles off an equation such as ``abc,cde->abde``: contracted letters, and letters new in the output."""
    operands, output = layer.equation.replace(" ", "").split("->")
    data, kernel = operands.split(",")
    reduction = tuple(axis for axis, letter in enumerate(kernel) if letter in data and letter not in output)
    outputs = tuple(axis for axis, letter in enumerate(kernel) if letter not in data)
    return KernelLayout("EinsumDense", reduction, outputs)


def _classes(name: str, namespace: str = "layers") -> Iterator[type]:
    for module_name in _KERAS_MODULES:
        found = getattr(getattr(sys.modules.get(module_name), namespace, None), name, None)
        if isinstance(found, type):
            yield found


def _isinstance(thing: Any, name: str) -> bool:
    return any(isinstance(thing, base) for base in _classes(name))
