"""The layer of an op, found in its scoped name: for the labels of the picture, nothing else depends on names."""

from __future__ import annotations

import re
from typing import Any

from tfmot_asp import layouts
from tfmot_asp.permutation.plan import ModelPlan
from tfmot_asp.permutation.trace import variable_key

_CALL = re.compile(r"(Stateful)?PartitionedCall(_\d+)?$")


class Scopes:
    """Finds the layer of an op in its scoped name.

    Keras makes name scopes out of layer names, but numbers them when a scope repeats (`dense_1` may be the second call
    of `dense`). Scopes that hold variables are named by the layer that owns those; the others by the layers' names.
    """

    def __init__(self, plan: ModelPlan, model: Any):
        self._layers: set[str] = set()
        self._strip_first = layouts.is_keras3(model) if model is not None else False
        self._root = ""
        self._known: dict[tuple[str, ...], str] = {}
        flatten = getattr(model, "_flatten_layers", None)
        parts = list(flatten()) if flatten is not None else list(getattr(model, "submodules", ()))
        self._layers = {str(part.name) for part in parts if part is not model and getattr(part, "name", None)}
        title = str(getattr(model, "name", ""))
        firsts = {components(op.name)[0] for op in plan.graph.ops if "/" in op.name}
        if len(firsts) == 1 and _unnumbered(min(firsts), {title}) is not None:
            self._root = min(firsts)
        self._learn(plan, model)

    def _learn(self, plan: ModelPlan, model: Any) -> None:
        owner: dict[Any, str] = {}
        if model is not None:
            for _, layer in layouts.all_layers(model):
                for weight in getattr(layer, "weights", ()):
                    owner.setdefault(variable_key(weight), str(layer.name))
        for op in plan.graph.ops:
            for tensor in op.inputs:
                name = (
                    owner.get(variable_key(plan.graph.variables[tensor.variable]))
                    if tensor.variable is not None
                    else None
                )
                if name is None:
                    continue
                path = self._path(op.name)
                for depth in range(len(path) - 1, 0, -1):
                    if _unnumbered(path[depth - 1], {name}) is not None:
                        self._known[path[:depth]] = name
                        break

    def place(self, op_name: str) -> tuple[str, str]:
        """Path of the layer, and the name of the op within it."""
        path = self._path(op_name)
        depth = max((d for d in range(1, len(path)) if self._layer(path[:d]) is not None), default=0)
        names = [self._layer(path[:d]) or path[d - 1] for d in range(1, depth + 1)]
        return "/".join(names), "/".join(path[depth:])

    def shortened(self, text: str) -> str:
        """A sentence without the model's name before the names of its ops."""
        return text.replace(f"'{self._root}/", "'") if self._root else text

    def _path(self, op_name: str) -> tuple[str, ...]:
        path = components(op_name)
        return path[1:] if len(path) > 1 and path[0] == self._root else path

    def _layer(self, path: tuple[str, ...]) -> str | None:
        return self._known.get(path) or _unnumbered(path[-1], self._layers, self._strip_first)


def components(op_name: str) -> tuple[str, ...]:
    """The scopes of an op's name and its own, without the calls that were entered."""
    parts = [part for part in op_name.split("/") if part]
    return tuple(part for part in parts[:-1] if not _CALL.match(part)) + (parts[-1],)


def _unnumbered(scope: str, names: set[str], strip_first: bool = False) -> str | None:
    """Which of `names` a scope stands for: itself, or itself without the number that made it unique."""
    bare = re.sub(r"_\d+$", "", scope)
    candidates = (bare, scope) if strip_first else (scope, bare)
    return next((name for name in candidates if name in names), None)
