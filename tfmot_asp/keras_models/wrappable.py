"""What tfmot's way of wrapping layers, clone and replace, can work on."""

from __future__ import annotations

from typing import Any

from tfmot_asp.keras_models.checks import check_built
from tfmot_asp.keras_models.layers import NamedLayer
from tfmot_asp.keras_models.which_keras import is_keras_model
from tfmot_asp.keras_models.wrappers import is_called

# What a class may replace and a clone of its layers, called as before, may do without.
_NO_BEHAVIOUR = ("get_config", "from_config", "build", "summary", "_tf_api_names", "_abc_impl")


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
    """Checks that tfmot's way of wrapping (clone and replace) can work on the model, and loses nothing of it.

    Raises:
        ValueError: for a model that is not built, or naming the model, or the nested model, that cannot be cloned: a
            subclassed one, one with losses or metrics of its own, or with its own way of training.
    """
    check_built(model, "load the trained weights and prune it")
    for inner in _models_within(model):
        why = _why_not_wrapped(inner)
        if why is not None:
            nested = "" if inner is model else f", inside {model.name!r},"
            raise ValueError(
                f"Model {inner.name!r}{nested} {why}. Use tfmot_asp.prune_trained_model(model), which needs no "
                "wrappers and takes it as it is."
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


def is_graph(model: Any) -> bool:
    """Whether a model is a functional or sequential one, which Keras can clone."""
    return is_called(model, "Sequential") or bool(getattr(model, "_is_graph_network", False))


def _why_not_wrapped(model: Any) -> str | None:
    kind = type(model).__name__
    if not is_graph(model):
        return f"is a subclassed {kind}: layers can only be wrapped in functional and sequential models"
    if any(depth < 0 for depth in getattr(model, "_nodes_by_depth", None) or ()):
        return "has losses or metrics added to it (add_loss, add_metric), which its wrapped copy would not have"
    own = _own_behaviour(model)
    if own and not _keeps_its_class(model):
        return f"is a {kind} with {', '.join(own)} of its own, which its wrapped copy, a plain model, would not have"
    return None


def _own_behaviour(model: Any) -> list[str]:
    """The methods of Keras by which a model computes and trains that its class replaces."""
    own, keras_class = _classes_of(model)
    names = [name for base in own for name in vars(base) if not name.startswith("__") and name not in _NO_BEHAVIOUR]
    return [name for name in names if hasattr(keras_class, name)]


def _keeps_its_class(model: Any) -> bool:
    """Whether Keras clones the model into one of the same class: functional, with Keras' own constructor."""
    own, _ = _classes_of(model)
    return not is_called(model, "Sequential") and not any("__init__" in vars(base) for base in own)


def _classes_of(model: Any) -> tuple[list[type], type]:
    """The classes of a model before the first of Keras, and that one."""
    own: list[type] = []
    for base in type(model).__mro__:
        if base.__module__.split(".")[0] in ("keras", "tf_keras"):
            return own, base
        own.append(base)
    return own, object
