"""What every door asks of a policy, whoever wrote it: is this layer to be pruned, and if not, why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tfmot_asp.reason import Reason
from tfmot_asp.types import InputShapes

_MAX_REASONS = 8


def why_dense(policy: Any, layer: Any) -> Reason | None:
    """Why a policy keeps a layer dense; None if it prunes it.

    Args:
        policy: a ``PruneForSparseTensorCores``, anything else with ``why(layer)``, or a tfmot ``PruningPolicy``.
        layer: a Keras layer.

    Raises:
        TypeError: if ``policy`` is none of these.
    """
    if hasattr(policy, "reason_for"):
        return policy.reason_for(layer)
    if hasattr(policy, "why"):
        why = policy.why(layer)
        return None if why is None else Reason("", str(why))
    if hasattr(policy, "allow_pruning"):
        if policy.allow_pruning(layer):
            return None
        return Reason(f"{type(layer).__name__} {layer.name!r}", "is kept dense: the policy does not allow it")
    raise TypeError(
        "policy must have a method why(layer) -> str | None, like PruneForSparseTensorCores, or be a tfmot "
        f"PruningPolicy; got {policy!r}"
    )


def estimate_gains(policy: Any, model: Any, input_shapes: InputShapes | None = None) -> None:
    """Lets a policy look at a model before it is asked about the layers, if it has to: one with ``min_gain`` does."""
    if hasattr(policy, "estimate_gains"):
        policy.estimate_gains(model, input_shapes)


def no_prunable_layer_message(model: Any, reasons: Sequence[Reason | None], remedy: str = "") -> str:
    """The error text for a model in which a policy finds nothing: the reason of each layer with a kernel, a few.

    Args:
        model: the model.
        reasons: of its layers with kernels.
        remedy: what can be done, a sentence.
    """
    found = [reason for reason in reasons if reason is not None]
    shown = [f"  - {reason}" for reason in found[:_MAX_REASONS]]
    if len(found) > _MAX_REASONS:
        shown.append(f"  - and {len(found) - _MAX_REASONS} more (sparsity_report(model) lists all)")
    if not shown and not remedy:
        shown = ["  - none of its layers has a kernel that can be pruned"]
    return "\n".join([f"Model {model.name!r} has no layer to prune:", *shown, *([remedy] if remedy else [])])
