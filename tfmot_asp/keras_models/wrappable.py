"""What tfmot's way of wrapping layers, clone and replace, can work on."""

from __future__ import annotations

from typing import Any

from tfmot_asp.keras_models.checks import check_built
from tfmot_asp.keras_models.layers import NamedLayer
from tfmot_asp.keras_models.which_keras import is_keras_model
from tfmot_asp.keras_models.wrappers import is_called


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
    return is_called(model, "Sequential") or bool(getattr(model, "_is_graph_network", False))
