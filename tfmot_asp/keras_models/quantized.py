"""Tells whether a model is quantized: 2:4 comes before quantization, and the doors refuse the other order.

Needs neither TensorFlow nor tfmot: what is quantized is recognised by what its layers are called.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_TFMOT_LAYERS = ("QuantizeWrapper", "QuantizeLayer", "QuantizeAnnotate")
_FAKE_QUANT = ("fake_quant", "quantize_and_dequantize")


def quantized_layers(model: Any) -> list[tuple[str, str]]:
    """The layers of a model, or of a layer, that quantize.

    Args:
        model: a model or layer of tf_keras or Keras 3, of any kind.

    Returns:
        ``(name, why)`` of each: tfmot's wrappers for quantization-aware training and its annotations, TensorFlow's fake
        quantization ops called in a functional model, and layers that Keras 3's ``quantize`` has changed.
    """
    found = []
    flatten = getattr(model, "_flatten_layers", None)
    for layer in flatten(include_self=True, recursive=True) if flatten is not None else [model]:
        why = _why_quantized(layer)
        if why is not None:
            found.append((str(getattr(layer, "name", "?")), why))
    return found


def check_not_quantized(models: Any) -> None:
    """Raises ValueError if a model, a layer, or one of a list of layers is quantized already."""
    several: Iterable[Any] = models if isinstance(models, (list, tuple)) else [models]
    for model in several:
        found = quantized_layers(model)
        if found:
            name, why = found[0]
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            raise ValueError(
                f"{getattr(model, 'name', '?')!r} is quantized already: layer {name!r} {why}{more}. Quantizing first "
                "and sparsifying later is refused: the ranges were learnt for the dense weights, which masks change "
                "under them, and a scheme that preserves sparsity takes its masks from the weights when it is applied. "
                "Go back to the float model: prune it, fine-tune it, strip it with tfmot_asp.strip_pruning(model), and "
                "quantize the result with tfmot_asp.quantize_model(model)"
            )


def _why_quantized(layer: Any) -> str | None:
    names = {base.__name__ for base in type(layer).__mro__}
    if names.intersection(_TFMOT_LAYERS):
        return f"is tfmot's {type(layer).__name__}"
    if getattr(layer, "quantization_mode", None):  # Keras 3
        return f"has Keras' quantization {layer.quantization_mode!r}"
    if "TFOpLambda" in names:
        function = str(getattr(layer, "symbol", None) or getattr(layer, "name", ""))
        if any(op in function for op in _FAKE_QUANT):
            return f"is the fake quantization op {function}"
    return None
