"""The tfmot policy: prune what sparse Tensor Cores can use."""

from __future__ import annotations

from typing import Any

import tensorflow_model_optimization as tfmot
from tensorflow_model_optimization.python.core.sparsity.keras.prune_registry import PruneRegistry
from tensorflow_model_optimization.python.core.sparsity.keras.pruning_wrapper import PruneLowMagnitude

from tfmot_asp.hardware.rule import DEFAULT_KINDS, Skip, SparseTensorCoreRule, no_prunable_layer_message
from tfmot_asp.keras_models.checks import check_built
from tfmot_asp.keras_models.layers import NamedLayer
from tfmot_asp.keras_models.quantized import check_not_quantized
from tfmot_asp.keras_models.which_keras import is_keras_model


class PruneForSparseTensorCores(tfmot.sparsity.keras.PruningPolicy):
    """Prunes the layers whose kernels NVIDIA's sparse Tensor Cores can use, and no others.

    Dense and Conv2D kernels, seen as matrices ``(I, rest)``, with ``I % 16 == 0`` input and ``O % 8 == 0`` output
    channels: the alignment of cuSPARSELt's and TensorRT's sparse fp16 kernels. Grouped, depthwise and transposed
    convolutions stay dense. The rule itself is ``tfmot_asp.hardware.rule.SparseTensorCoreRule``, which needs no tfmot.

    Works in ``tfmot_asp.prune_low_magnitude`` (which uses it by default) and in tfmot's own.

    Args:
        padding: prune Dense layers of any input size, counting the last stripe as padded with zeros.
        skip: layers to keep dense: a layer or model, a ``callable(layer) -> bool``, or an iterable of these.
        kinds: layer kinds to prune, out of ``tfmot_asp.hardware.rule.SUPPORTED_KINDS``.
        min_channels: keep kernels dense that have fewer input or output channels than this, since they gain no speed;
            None for no limit. 256 is where NVIDIA sees sparse kernels win: see ``SparseTensorCoreRule``, and
            ``sparsity_report`` for what it would mean for a model.

    Example:
        >>> policy = PruneForSparseTensorCores(skip=model.layers[-1])
        >>> policy.why(model.layers[1])
        "Conv2D 'stem' has 3 input channels; sparse Tensor Cores need a multiple of 16"
        >>> pruned = tfmot_asp.prune_low_magnitude(model, pruning_policy=policy)
    """

    def __init__(
        self,
        padding: bool = False,
        skip: Skip = (),
        kinds: tuple[str, ...] = DEFAULT_KINDS,
        min_channels: int | None = None,
    ) -> None:
        self.rule = SparseTensorCoreRule(padding=padding, skip=skip, kinds=kinds, min_channels=min_channels)

    def __repr__(self) -> str:
        rule = self.rule
        return (
            f"PruneForSparseTensorCores(padding={rule.padding}, skip={rule.skip}, kinds={rule.kinds}, "
            f"min_channels={rule.min_channels})"
        )

    def why(self, layer: Any) -> str | None:
        """Why a layer is kept dense, in words; None if it is to be pruned."""
        return self.rule.why(layer)

    def allow_pruning(self, layer: Any) -> bool:
        """Whether the layer is to be pruned (tfmot's interface)."""
        return self.why(layer) is None

    def ensure_model_supports_pruning(self, model: Any) -> None:
        """Checks a model before tfmot's own ``prune_low_magnitude`` wraps it (tfmot's interface).

        Raises:
            ValueError: for a subclassed or unbuilt model, a model without any layer to prune, or one with a layer to
                prune that tfmot's wrapper has no support for.
        """
        self.check_model(model)
        for name, layer in outer_layers(model):
            if self.allow_pruning(layer) and not _tfmot_can_wrap(layer):
                raise ValueError(
                    f"tfmot's own wrapper does not support layer {name!r} of type {type(layer).__name__}. Use "
                    "tfmot_asp.prune_low_magnitude, which does, or keep the layer dense with "
                    "PruneForSparseTensorCores(skip=[layer])."
                )

    def check_model(self, model: Any) -> None:
        """Checks that a model is a functional or sequential one, built, with at least one layer to prune.

        Raises:
            ValueError: if not, with each layer's reason in the last case.
        """
        check_structure(model)
        check_not_quantized(model)
        reasons = [(name, self.why(layer)) for name, layer in outer_layers(model)]
        if all(reason is not None for _, reason in reasons):
            raise ValueError(no_prunable_layer_message(model, reasons))


def outer_layers(model: Any) -> list[NamedLayer]:
    """The layers that a wrapper could be put around: those of the model and its nested models, containers whole.

    Unlike ``all_layers`` this does not look into attention layers and wrappers.
    """
    found: list[NamedLayer] = []
    seen: set[int] = set()

    def visit(node: Any, path: str) -> None:
        for layer in node.layers:
            if id(layer) in seen:
                continue
            seen.add(id(layer))
            if is_keras_model(layer):
                visit(layer, f"{path}{layer.name}/")
            else:
                found.append(NamedLayer(f"{path}{layer.name}", layer))

    visit(model, "")
    return found


def check_structure(model: Any) -> None:
    """Checks that tfmot's way of wrapping (clone and replace) can work on the model: functional or sequential, built.

    Raises:
        ValueError: naming the model, or the nested model, that it cannot work on.
    """
    check_built(model, "load the trained weights and prune it")
    subclassed = next((inner for inner in _models_within(model) if not _is_graph(inner)), None)
    if subclassed is not None:
        nested = "" if subclassed is model else f", inside {model.name!r},"
        raise ValueError(
            f"Model {subclassed.name!r}{nested} is a subclassed {type(subclassed).__name__}: layers can only be "
            "wrapped in functional and sequential models. Rebuild it as a functional model, or wrap single layers "
            "where you create them: self.dense = prune_low_magnitude(Dense(...))."
        )


def _models_within(model: Any) -> list[Any]:
    found: list[Any] = []
    stack = [model]
    while stack:
        node = stack.pop()
        if all(node is not other for other in found):
            found.append(node)
            stack.extend(layer for layer in node.layers if is_keras_model(layer))
    return found


def _is_graph(model: Any) -> bool:
    sequential = type(model).__name__ == "Sequential" or any(
        base.__name__ == "Sequential" for base in type(model).__mro__
    )
    return bool(sequential or getattr(model, "_is_graph_network", False))


def _tfmot_can_wrap(layer: Any) -> bool:
    return (
        isinstance(layer, PruneLowMagnitude) or hasattr(layer, "get_prunable_weights") or PruneRegistry.supports(layer)
    )
