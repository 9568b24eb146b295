"""tfmot's 8-bit scheme that preserves sparsity, without its gaps; and which layers it can quantize.

See ``quantize.py`` for what the gaps are.
"""

from __future__ import annotations

import inspect
from typing import Any

from tensorflow_model_optimization.python.core.keras.compat import keras
from tensorflow_model_optimization.python.core.quantization.keras import quantize_aware_activation
from tensorflow_model_optimization.python.core.quantization.keras.collab_opts.prune_preserve import (
    default_8bit_prune_preserve_quantize_scheme,
    prune_preserve_quantize_registry,
)
from tensorflow_model_optimization.python.core.quantization.keras.default_8bit import (
    default_8bit_quantize_configs,
    default_8bit_quantize_layout_transform,
    default_8bit_quantize_registry,
)

_layers = keras.layers
# Followed by these, tfmot leaves out what it would put between the two: TFLite computes them as one op.
_WEIGHTED = (_layers.Conv2D, _layers.DepthwiseConv2D, _layers.Dense, _layers.SeparableConv2D)
_BATCH_NORM = tuple(
    getattr(_layers, name) for name in ("BatchNormalization", "SyncBatchNormalization") if hasattr(_layers, name)
)
_DEFAULT = default_8bit_quantize_registry.Default8BitQuantizeRegistry()
_AwareActivation = quantize_aware_activation.QuantizeAwareActivation
_FUSED_ACTIVATIONS = (
    _AwareActivation._PRE_QUANT_ACTIVATIONS
    | _AwareActivation._POST_QUANT_ACTIVATIONS
    | _AwareActivation._NO_QUANTIZE_ACTIVATIONS
)


def why_float(layer: Any) -> str | None:
    """Why tfmot's scheme cannot quantize a layer of a functional or sequential tf_keras model; None if it can.

    Args:
        layer: the layer, connected.
    """
    kind = type(layer)
    if kind in _BATCH_NORM:
        before = _only_input(layer)
        if (
            before is not None
            and type(before) in _WEIGHTED
            and why_float(before) is None
            and _is_linear(before)
            and len(before._outbound_nodes) == 1
            and len(before._inbound_nodes) == 1
        ):
            return None
        return "batch normalization is quantized only behind a Conv2D or Dense without activation, as part of it"
    if kind is _layers.SeparableConv2D:
        return None if _is_supported(layer.activation) else _no_activation(layer)
    if not _DEFAULT._is_supported_layer(kind):
        return f"tfmot has no 8-bit scheme for {kind.__name__}"
    if kind is _layers.Activation:
        try:
            _DEFAULT.get_quantize_config(layer).get_output_quantizers(layer)
        except ValueError:
            return _no_activation(layer)
    elif isinstance(layer, _WEIGHTED + (_layers.Conv2DTranspose,)) and not _is_supported(layer.activation):
        return _no_activation(layer)
    return None


class Registry(prune_preserve_quantize_registry.Default8bitPrunePreserveQuantizeRegistry):
    """Which quantizers each layer gets.

    A layer that cannot be quantized, in front of one that can, has its output quantized, so that the latter computes
    in int8.
    """

    def supports(self, layer: Any) -> bool:
        """Whether ``get_quantize_config`` knows what to do."""
        return why_float(layer) is None or _has_one_plain_output(layer)

    def get_quantize_config(self, layer: Any) -> Any:
        """The quantizers of a layer (tfmot's interface)."""
        if why_float(layer) is not None:
            return default_8bit_quantize_configs.Default8BitOutputQuantizeConfig()
        config = _DEFAULT._get_quantize_config(type(layer))
        fresh = type(config).from_config(config.get_config())  # tfmot's Concatenate changes the one that it finds
        if self._preserves(layer, fresh):
            fresh = self.apply_sparsity_preserve_quantize_config(layer, fresh)
        return fresh

    def _preserves(self, layer: Any, config: Any) -> bool:
        names = self._LAYERS_CONFIG_MAP.get(type(layer))
        return names is not None and type(config).__name__ in names.quantize_config_attrs


class Layout(default_8bit_quantize_layout_transform.Default8BitQuantizeLayoutTransform):
    """tfmot's rewriting of the graph, but a ReLU layer takes no quantizers from the weights in front of it."""

    def apply(self, model: Any, layer_quantize_map: dict[str, Any]) -> Any:
        """Rewrites the model (tfmot's interface)."""
        relus = [
            layer.name
            for layer in model.layers
            if layer.name in layer_quantize_map and _is_relu(layer) and type(_only_input(layer)) in _WEIGHTED
        ]
        # What is not in the map is matched by no pattern.
        hidden = {name: layer_quantize_map[name] for name in relus}
        rest = {name: value for name, value in layer_quantize_map.items() if name not in hidden}
        transformed, found = super().apply(model, rest)
        for name, entry in hidden.items():
            found[name] = entry
            before = _only_input(transformed.get_layer(name))
            entry_before = found.get(getattr(before, "name", None))
            if entry_before is None or entry_before.get("quantize_config") or len(before._outbound_nodes) != 1:
                continue
            if _is_linear(before):
                entry_before["quantize_config"] = _without_activation(before)
        return transformed, found


class Scheme(default_8bit_prune_preserve_quantize_scheme.Default8BitPrunePreserveQuantizeScheme):
    """``Default8BitPrunePreserveQuantizeScheme`` with this module's registry and layout."""

    def get_quantize_registry(self) -> Registry:
        """Tfmot's interface."""
        return Registry()

    def get_layout_transformer(self) -> Layout:
        """Tfmot's interface."""
        return Layout()


def _without_activation(layer: Any) -> Any:
    """A layer's quantizers without the one behind its (linear) activation."""
    registry = Registry()
    config = registry.get_quantize_config(layer)
    plain = type(config).from_config({**config.get_config(), "activation_attrs": []})
    return (
        registry.apply_sparsity_preserve_quantize_config(layer, plain) if registry._preserves(layer, plain) else plain
    )


def _no_activation(layer: Any) -> str:
    return f"tfmot has no 8-bit scheme for the activation {_activation_name(layer.activation)!r}"


def _activation_name(activation: Any) -> str:
    return str(getattr(activation, "__name__", type(activation).__name__))


def _is_supported(activation: Any) -> bool:
    return _activation_name(activation) in _FUSED_ACTIVATIONS


def _is_linear(layer: Any) -> bool:
    return _activation_name(layer.activation) in ("linear", "NoOpActivation")


def _is_relu(layer: Any) -> bool:
    kind = type(layer)
    return kind is _layers.ReLU or (kind is _layers.Activation and _activation_name(layer.activation) == "relu")


def _only_input(layer: Any) -> Any:
    """The layer in front, if it is the only one and this layer is called once."""
    if len(layer._inbound_nodes) != 1:
        return None
    before = layer._inbound_nodes[0].inbound_layers
    return before if not isinstance(before, (list, tuple)) else (before[0] if len(before) == 1 else None)


def _has_one_plain_output(layer: Any) -> bool:
    """Whether tfmot's wrapper can quantize the output: called once, with one tensor and nothing else, giving one."""
    if len(layer._inbound_nodes) != 1 or isinstance(layer, keras.Model) or not hasattr(layer, "compute_output_shape"):
        return False
    if "OpLambda" in type(layer).__name__:  # an operator: its wrapper could not be rebuilt
        return False
    node = layer._inbound_nodes[0]
    if len(node.call_args) != 1 or any(value is not None for value in node.call_kwargs.values()):
        return False
    inputs = node.call_args[0] if isinstance(node.call_args[0], (list, tuple)) else [node.call_args[0]]
    if not all(hasattr(tensor, "dtype") for tensor in (*inputs, node.outputs)):
        return False
    # The wrapper hands masks to the layer, which may not take them, and passes none on.
    takes_masks = "mask" in inspect.signature(layer.call).parameters
    masked = any(getattr(tensor, "_keras_mask", None) is not None for tensor in inputs)
    passes_on = getattr(node.outputs, "_keras_mask", None) is not None
    return node.outputs.dtype.is_floating and not passes_on and (takes_masks or not masked)
