"""Which layers sparse Tensor Cores can use, and why the others cannot: the rule behind every policy of the package.

Needs neither TensorFlow nor tfmot, so it serves Keras 3 models as well. It has the methods of tfmot's policies, and
tfmot asks for no more.
"""

from __future__ import annotations

import logging
import operator
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tfmot_asp.hardware.layer_gains import LayerGains
from tfmot_asp.hardware.left_dense import LeftDense, left_dense
from tfmot_asp.hardware.policy import no_prunable_layer_message
from tfmot_asp.keras_models.kernels import Kernel, kernels_of
from tfmot_asp.keras_models.layers import all_layers
from tfmot_asp.keras_models.layouts import ATTENTION_KINDS, kind_of
from tfmot_asp.keras_models.quantized import check_not_quantized
from tfmot_asp.keras_models.which_keras import is_keras_layer
from tfmot_asp.keras_models.wrappable import check_structure, outer_layers
from tfmot_asp.keras_models.wrappers import is_called, unwrap
from tfmot_asp.reason import Reason
from tfmot_asp.types import InputShapes, StrPath

logger = logging.getLogger(__name__)

# The least that fp16 sparse kernels ask of a weight: whole blocks of 16 along the reduction axis, where the zeros are,
# and the 8 values of a 16-byte access along the other. NVIDIA's ASP for PyTorch and for TensorFlow have the same rule.
# What cuSPARSELt asks for, in fp16 and int8, is stricter: `libraries.ALIGNMENT`, shown by `sparsity_report`.
INPUT_MULTIPLE = 16
OUTPUT_MULTIPLE = 8

SUPPORTED_KINDS = ("Dense", "Conv1D", "Conv2D", "Conv3D", "EinsumDense", "SeparableConv1D", "SeparableConv2D")
# What becomes a product with one matrix, or a 1-D or 2-D convolution, when deployed: sparse Tensor Cores run these.
# Of 3-D convolutions TensorRT documents no sparse kernel.
DEFAULT_KINDS = tuple(kind for kind in SUPPORTED_KINDS if kind != "Conv3D")
# NVIDIA's ASP for TensorFlow prunes these two, and they are what tfmot's own wrapper masks along the reduction axis.
TF_ASP_KINDS = ("Dense", "Conv2D")

_NO_CHANNEL_SUM = (
    "has a depthwise kernel, which sums over no channels, so it is no matrix product that Tensor Cores could shorten"
)
_TRANSPOSED = "is a transposed convolution, which has no sparse Tensor Core kernel"
_REFUSED = {
    "DepthwiseConv1D": _NO_CHANNEL_SUM,
    "DepthwiseConv2D": _NO_CHANNEL_SUM,
    "Conv1DTranspose": _TRANSPOSED,
    "Conv2DTranspose": _TRANSPOSED,
    "Conv3DTranspose": _TRANSPOSED,
}

Skip = Any | Callable[[Any], bool] | Iterable[Any]


@dataclass(frozen=True)
class PruneForSparseTensorCores:
    """Prunes the layers whose kernels NVIDIA's sparse Tensor Cores can use, and no others; tells of each why not.

    A kernel seen as a matrix ``(I, rest)`` is accepted if its reduction axis I is a multiple of 16 and its output
    channels a multiple of 8, the alignment that fp16 sparse kernels require (cuSPARSELt's table of supported shapes).
    Grouped, depthwise and transposed convolutions stay dense.

    Every door of this package takes it as ``policy=``, and tfmot's own ``prune_low_magnitude`` as ``pruning_policy=``.
    ``SparseTensorCoreRule`` is another name of it.

    Attributes:
        padding: accept Dense kernels of any input size; their incomplete last stripe counts as padded with zeros.
        skip: layers to keep dense: a layer or model object, a ``callable(layer) -> bool``, or an iterable of these.
            A model keeps out all the layers it holds.
        kinds: layer kinds to accept, out of ``SUPPORTED_KINDS``; subclasses of them count. The default is all but
            Conv3D, of which TensorRT documents no sparse kernel. An attention layer is accepted if EinsumDense is and
            all its projections qualify; of a SeparableConv the pointwise kernel is pruned, and the depthwise one stays
            dense. tfmot's own wrapper knows fewer: under the default it is given Dense and Conv2D, and the log says
            what stays dense for that reason.
        min_channels: keep a layer dense if one of its kernels has fewer input or output channels than this; None for
            no limit. Small kernels are seldom faster sparse: TensorRT times both and takes the faster, and NVIDIA's
            engineers see sparse convolutions win from about 256 channels on (github.com/NVIDIA/TensorRT, issues 3849
            and 4065), 3 × 3 kernels somewhat earlier. So 256 costs least accuracy for what speed there is; 128 is the
            choice if most of the network is 3 × 3 convolutions. See docs/performance.md.
        min_gain: keep a layer dense if its products get faster by less than this on ``gpu``, by ``hardware.estimate``:
            1.05 asks for 5 %. None for no limit. It knows the model's sizes, so it is the better rule of the two. Every
            function that takes a model estimates its gains first; before asking ``why`` of a layer alone, call
            ``estimate_gains(model)``. Layers that tfmot's wrapper is put around one by one are not asked about.
        gpu: for ``min_gain``: ``"H100"``, which None stands for, ``"H100-tuned"`` or a JSON file of times.
        precision: for ``min_gain``: ``"fp16"`` or ``"int8"``.
        batch_size: for ``min_gain``: number of samples, where the model leaves it open.
        input_shapes: for ``min_gain``, if the model leaves its sizes open and they are not given otherwise: as
            ``sparsity_report`` takes them.

    Example:
        >>> policy = PruneForSparseTensorCores(skip=lambda layer: layer.name == "head")
        >>> policy.why(model.get_layer("head"))
        "Dense 'head' is kept dense: skip asks for it"
        >>> pruned = tfmot_asp.prune_low_magnitude(model, policy=policy)
    """

    padding: bool = False
    skip: Skip = ()
    kinds: tuple[str, ...] = DEFAULT_KINDS
    min_channels: int | None = None
    min_gain: float | None = None
    gpu: StrPath | None = None
    precision: str = "fp16"
    batch_size: int = 1
    input_shapes: InputShapes | None = None
    _skipped_ids: frozenset[int] = field(init=False, repr=False, compare=False)
    _skip_tests: tuple[Callable[[Any], bool], ...] = field(init=False, repr=False, compare=False)
    _gains: LayerGains | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Validates the options.

        Raises:
            TypeError: if ``skip`` holds something that is neither a layer nor callable, ``padding`` is no bool, or
                ``min_channels`` no integer, or ``min_gain`` no number.
            ValueError: if ``kinds`` names a kind that is not supported, ``min_channels`` or ``min_gain`` is less than
                1, there are no times for ``gpu`` and ``precision``, or ``gpu`` comes without ``min_gain``.
            FileNotFoundError: if ``gpu`` is a path and there is no such file.
        """
        if not isinstance(self.padding, bool):
            raise TypeError(f"padding must be True or False, got {self.padding!r}")
        kinds = (self.kinds,) if isinstance(self.kinds, str) else tuple(self.kinds)
        unknown = [kind for kind in kinds if kind not in SUPPORTED_KINDS]
        if unknown or not kinds:
            raise ValueError(f"kinds must be taken from {SUPPORTED_KINDS}, got {self.kinds!r}")
        layers, tests = _split_skip(self.skip)
        object.__setattr__(self, "min_channels", _checked_min_channels(self.min_channels))
        object.__setattr__(self, "kinds", kinds)
        object.__setattr__(self, "skip", (*layers, *tests))  # keeps the layers alive, and so their ids unique
        object.__setattr__(self, "_skipped_ids", frozenset(_ids_within(layers)))
        object.__setattr__(self, "_skip_tests", tuple(tests))
        object.__setattr__(self, "_gains", self._checked_gains())

    def why(self, layer: Any) -> str | None:
        """Why a layer is kept dense.

        Args:
            layer: a layer of tf_keras or Keras 3; wrappers are looked through.

        Returns:
            None if the layer is to be pruned, else the reason in words, with the layer's name and the numbers.

        Raises:
            ValueError: with ``min_gain``, for a layer of no model that gains were estimated of.
        """
        reason = self.reason_for(layer)
        return None if reason is None else str(reason)

    def reason_for(self, layer: Any) -> Reason | None:
        """The same as ``why``, in its parts."""
        inner = unwrap(layer)
        why = self._why(layer, inner, kind_of(inner))
        return None if why is None else Reason(f"{type(inner).__name__} {getattr(inner, 'name', '?')!r}", why)

    def estimate_gains(self, model: Any, input_shapes: InputShapes | None = None) -> None:
        """With ``min_gain``, estimates what each layer of a model gains; without, does nothing.

        Args:
            model: a built model of tf_keras or Keras 3. Of several, the last is remembered.
            input_shapes: used if the policy has none.

        Raises:
            ValueError: if the sizes of its products cannot be found, because it is not built or leaves them open.
        """
        if self._gains is not None:
            self._gains.estimate(model, input_shapes)

    def allows(self, layer: Any) -> bool:
        """Whether the layer is to be pruned."""
        return self.reason_for(layer) is None

    def allow_pruning(self, layer: Any) -> bool:
        """Whether tfmot's own wrapper is to prune the layer (tfmot's interface): of the default kinds, what it can."""
        return self.allows(layer) and not self._beyond_tfmot(layer)

    def ensure_model_supports_pruning(self, model: Any) -> None:
        """Checks a model before tfmot's own ``prune_low_magnitude`` wraps it (tfmot's interface).

        Raises:
            ValueError: for a subclassed or unbuilt model, a model without any layer to prune, or one with a layer to
                prune that tfmot's wrapper has no support for.
        """
        self.check_model(model)
        left = self._left_dense(model, self.allow_pruning)
        if not left.wrapped:
            raise ValueError(no_prunable_layer_message(model, [reason for _, reason in left.by_policy], left.remedy))
        # Which layers those are, tfmot knows, and it is loaded if it asks.
        registry: Any = sys.modules.get("tensorflow_model_optimization.python.core.sparsity.keras.prune_registry")
        for name, layer in outer_layers(model) if registry is not None else ():
            wraps = is_called(layer, "PruneLowMagnitude") or hasattr(layer, "get_prunable_weights")
            if self.allow_pruning(layer) and not (wraps or registry.PruneRegistry.supports(layer)):
                raise ValueError(
                    f"tfmot's own wrapper does not support layer {name!r} of type {type(layer).__name__}. Use "
                    "tfmot_asp.prune_low_magnitude, which does, or keep the layer dense with "
                    "PruneForSparseTensorCores(skip=[layer])."
                )
        if left:
            logger.warning("%s", left.line(model))

    def check_model(self, model: Any) -> None:
        """Checks that a model is a functional or sequential one, built, with at least one layer to prune.

        Raises:
            ValueError: if not, with each layer's reason in the last case.
        """
        check_structure(model)
        check_not_quantized(model)
        self.estimate_gains(model)
        left = self._left_dense(model, self.allows)
        if not left.wrapped:
            raise ValueError(no_prunable_layer_message(model, [reason for _, reason in left.by_policy], left.remedy))

    def _left_dense(self, model: Any, allows: Callable[[Any], bool]) -> LeftDense:
        wrapped = {id(layer) for _, layer in outer_layers(model) if allows(layer)}
        beyond = "is beyond tfmot's own wrapper; tfmot_asp.prune_low_magnitude prunes it"
        return left_dense(model, self, wrapped, beyond)

    def _beyond_tfmot(self, layer: Any) -> bool:
        """Whether a layer is of a kind that is pruned by default, but that tfmot's own wrapper gives no pattern."""
        return self.kinds == DEFAULT_KINDS and kind_of(layer) not in TF_ASP_KINDS

    def _why(self, layer: Any, inner: Any, kind: str | None) -> str | None:
        if kind is None:
            return "has no kernel that can be pruned"
        if self._skips(layer) or self._skips(inner):
            return "is kept dense: skip asks for it"
        if kind in _REFUSED:
            return _REFUSED[kind]
        if (needed := "EinsumDense" if kind in ATTENTION_KINDS else kind) not in self.kinds:
            return f"is kept dense: {needed} is not in kinds={tuple(self.kinds)}"
        if not inner.built:
            return "is not built, so its input size is unknown; call the model on a batch or build it first"
        if getattr(inner, "lora_enabled", False):
            return "has LoRA enabled: its effective kernel is a sum, so a mask on one term is no 2:4 pattern"
        kernels = kernels_of(layer)
        if kind.startswith("Separable"):
            kernels = [kernel for kernel in kernels if kernel.layout.reduction_axes]
        if not kernels:
            return "is built but holds no kernel variable"
        why = next((why for kernel in kernels if (why := self._why_kernel(kind, kernel)) is not None), None)
        return self._gains.why(kernels) if why is None and self._gains is not None else why

    def _checked_gains(self) -> LayerGains | None:
        if self.min_gain is not None:
            gpu = "H100" if self.gpu is None else self.gpu
            return LayerGains(self.min_gain, gpu, self.precision, self.batch_size, self.input_shapes)
        if self.gpu is not None:
            raise ValueError(f"gpu={self.gpu!r} is where min_gain is a gain: give min_gain too, such as 1.05")
        return None

    def _skips(self, layer: Any) -> bool:
        return id(layer) in self._skipped_ids or any(test(layer) for test in self._skip_tests)

    def _why_kernel(self, kind: str, kernel: Kernel) -> str | None:
        part = "" if kernel.attribute in ("kernel", "_kernel") else f" ({kernel.attribute})"
        layout = kernel.layout
        if layout.groups > 1:
            return (
                f"has {layout.groups} groups; grouped convolutions have no sparse Tensor Core kernel "
                "in TensorRT or cuSPARSELt"
            )
        dtype = str(getattr(kernel.tf_variable.dtype, "name", kernel.tf_variable.dtype))
        if "float" not in dtype:
            return f"has a kernel of dtype {dtype}{part}; sparsify in floating point, then quantize"
        if not layout.reduction_axes or not layout.output_axes:
            return f"is no matrix product{part}: its equation {kernel.layer.equation!r} contracts no channels"
        inputs, outputs = kernel.reduction_size, kernel.output_size
        channels = "input features" if kind == "Dense" else "input channels"
        any_inputs = self.padding and kind == "Dense"
        if inputs % INPUT_MULTIPLE and not any_inputs:
            remedy = "; padding=True would zero-pad it" if kind == "Dense" else ""
            return f"has {inputs} {channels}{part}; sparse Tensor Cores need a multiple of {INPUT_MULTIPLE}{remedy}"
        if outputs % OUTPUT_MULTIPLE:
            return (
                f"has {outputs} {channels.replace('input', 'output')}{part}; sparse Tensor Cores need a "
                f"multiple of {OUTPUT_MULTIPLE}"
            )
        for size, side in ((inputs, channels), (outputs, channels.replace("input", "output"))):
            if self.min_channels is not None and size < self.min_channels:
                return f"has {size} {side}{part}, fewer than min_channels={self.min_channels}"
        return None


SparseTensorCoreRule = PruneForSparseTensorCores


def _checked_min_channels(value: Any) -> int | None:
    if value is None:
        return None
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, (bool, np.bool_)):
        raise TypeError(f"min_channels must be a number of channels such as 256, or None for no limit; got {value!r}")
    if number < 1:
        raise ValueError(f"min_channels must be at least 1, or None for no limit; got {value!r}")
    return number


def _split_skip(skip: Any) -> tuple[list[Any], list[Callable[[Any], bool]]]:
    """Sorts ``skip`` into layers and tests. Keras layers are callable too, so the class decides."""
    if skip is None:
        return [], []
    if is_keras_layer(skip) or callable(skip) or isinstance(skip, str):
        skip = (skip,)
    layers, tests = [], []
    for item in skip:
        if is_keras_layer(item):
            layers.append(item)
        elif callable(item):
            tests.append(item)
        else:
            hint = f"; for a name, give model.get_layer({item!r})" if isinstance(item, str) else ""
            raise TypeError(f"skip takes layer objects and callables of a layer, got {item!r}{hint}")
    return layers, tests


def _ids_within(layers: Iterable[Any]) -> Iterable[int]:
    for layer in layers:
        yield id(layer)
        yield id(unwrap(layer))
        for _, inner in all_layers(layer):
            yield id(inner)
