"""The layer of an op, found in its scoped name: for the labels of the picture, nothing else depends on names."""

from __future__ import annotations

import re
from typing import Any

from tfmot_asp.keras_models.which_keras import is_keras3
from tfmot_asp.keras_models.wrappers import parts_of
from tfmot_asp.permutation.plan import ModelPlan

_CALL = re.compile(r"(Stateful)?PartitionedCall(_\d+)?$")


class Scopes:
    """Finds the layer of an op in its scoped name.

    Keras makes name scopes out of layer names. tf_keras enters the same scope at each call of a layer; Keras 3 numbers
    every scope, so that `dense_1` is a call of `dense`, and `dense_1_1` one of `dense_1`.
    """

    def __init__(self, plan: ModelPlan, model: Any):
        self._strip_first = is_keras3(model) if model is not None else False
        self._root = ""
        parts = (part for part in parts_of(model) if part is not model)
        self._layers = {str(part.name) for part in parts if getattr(part, "name", None)}
        title = str(getattr(model, "name", ""))
        firsts = {components(op.name)[0] for op in plan.graph.ops if "/" in op.name}
        if len(firsts) == 1 and _unnumbered(min(firsts), {title}) is not None:
            self._root = min(firsts)

    def place(self, op_name: str) -> tuple[str, str]:
        """Path of the layer, and the name of the op within it."""
        path = self._path(op_name)
        depth = max((d for d in range(1, len(path)) if self._layer(path[d - 1]) is not None), default=0)
        names = [self._layer(scope) or scope for scope in path[:depth]]
        return "/".join(names), "/".join(path[depth:])

    def below_root(self, op_name: str) -> str:
        """The name of an op without that of the model before it."""
        return op_name.removeprefix(f"{self._root}/") if self._root else op_name

    def _path(self, op_name: str) -> tuple[str, ...]:
        path = components(op_name)
        return path[1:] if len(path) > 1 and path[0] == self._root else path

    def _layer(self, scope: str) -> str | None:
        return _unnumbered(scope, self._layers, self._strip_first)


def components(op_name: str) -> tuple[str, ...]:
    """The scopes of an op's name and its own, without the calls that were entered."""
    parts = [part for part in op_name.split("/") if part]
    return tuple(part for part in parts[:-1] if not _CALL.match(part)) + (parts[-1],)


def _unnumbered(scope: str, names: set[str], strip_first: bool = False) -> str | None:
    """Which of `names` a scope stands for: itself, or itself without the number that made it unique."""
    bare = re.sub(r"_\d+$", "", scope)
    candidates = (bare, scope) if strip_first else (scope, bare)
    return next((name for name in candidates if name in names), None)
