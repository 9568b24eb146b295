"""Layers around layers: looks through wrappers, and recognises tfmot's by name, so that tfmot need not be loaded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tfmot_asp.keras_models.modules import modules_in
from tfmot_asp.keras_models.which_keras import is_instance


def unwrap(layer: Any) -> Any:
    """The layer inside Keras ``Wrapper`` layers that hold exactly one (``layer`` itself if it is no such wrapper)."""
    while is_instance(layer, "Wrapper") and not is_instance(layer, "Bidirectional"):
        inner = getattr(layer, "layer", None)
        if inner is None:
            break
        layer = inner
    return layer


def is_called(layer: Any, name: str) -> bool:
    """Whether the layer's class, or one that it inherits from, is called ``name``, whichever module it is of."""
    return any(base.__name__ == name for base in type(layer).__mro__)


def parts_of(model: Any) -> Iterator[Any]:
    """The model and all layers and models in it; of a ``tf.Module`` that is no layer, the modules in it."""
    flatten = getattr(model, "_flatten_layers", None)
    return iter(modules_in(model)) if flatten is None else flatten(include_self=True, recursive=True)


def check_not_wrapped(model: Any, advice: str) -> None:
    """Raises ValueError, with advice on what to do, if a layer in the model is wrapped for pruning."""
    for part in parts_of(model):
        if is_called(part, "PruneLowMagnitude"):
            raise ValueError(f"layer {part.name!r} is wrapped for pruning already{advice}")


def holds_quantized(layer: Any) -> bool:
    """Whether ``layer`` is tfmot's wrapper for quantization-aware training around a layer with weights.

    It takes the variables that it quantizes over from the layer inside, which then computes with tensors.
    """
    return is_called(layer, "QuantizeWrapper") and bool(getattr(layer, "_weight_vars", None))


def trained_variables(wrapper: Any) -> dict[str, Any]:
    """The variables that a wrapper which ``holds_quantized`` has taken over, by the attribute that they were."""
    return {str(entry[0].name).split(":")[0].split("/")[-1]: entry[0] for entry in wrapper._weight_vars}
