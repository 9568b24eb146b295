"""Channel permutation: reorder a model's channels, without changing what it computes, so that 2:4 keeps large weights.

`axes` and `rules` find which positions of a traced graph move together, `rearrange` and `regrouping` what chains of
reshapes and single ones let move, `exchange` which classes may be exchanged, `groups` where they live in the weights.
`search` finds the best order, `proof` runs the model on copies of its weights, `apply` writes them, `report` says what
was done, `picture` draws it. `plan` and `pipeline` put them in line.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOME = {
    "PermutationError": "tfmot_asp.permutation.apply",
    "RayExecutor": "tfmot_asp.permutation.executors",
    "PermutationReport": "tfmot_asp.permutation.report",
    "permute": "tfmot_asp.permutation.pipeline",
    "plan_model": "tfmot_asp.permutation.plan",
    "register_rule": "tfmot_asp.permutation.rules",
}

__all__ = sorted(_HOME)


if TYPE_CHECKING:
    from tfmot_asp.permutation.apply import PermutationError as PermutationError
    from tfmot_asp.permutation.executors import RayExecutor as RayExecutor
    from tfmot_asp.permutation.pipeline import permute as permute
    from tfmot_asp.permutation.plan import plan_model as plan_model
    from tfmot_asp.permutation.report import PermutationReport as PermutationReport
    from tfmot_asp.permutation.rules import register_rule as register_rule
else:

    def __getattr__(name: str) -> Any:
        # Lazy, because `tfmot_asp.permutation.search` must work without TensorFlow.
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
        return getattr(importlib.import_module(_HOME[name]), name)
