"""The layers in a model, each once, with names that tell them apart."""

from __future__ import annotations

from typing import Any, NamedTuple

from tfmot_asp.keras_models.layouts import ATTENTION_KINDS, kind_of
from tfmot_asp.keras_models.modules import modules_in
from tfmot_asp.keras_models.which_keras import is_keras_layer, is_keras_model
from tfmot_asp.keras_models.wrappers import holds_quantized, unwrap


class NamedLayer(NamedTuple):
    """A layer with the name that tells it apart within its model."""

    name: str
    layer: Any


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
    return [module for module in modules_in(node) if is_keras_layer(module)]


def _owns_weights(layer: Any) -> bool:
    if not is_keras_model(layer) and kind_of(layer) not in (None, *ATTENTION_KINDS) and unwrap(layer) is layer:
        return True
    own = getattr(layer, "_trainable_weights", None)
    if own is None:
        own = getattr(layer, "_trainable_variables", None)
    return bool(own) and unwrap(layer) is layer
