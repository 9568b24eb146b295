"""The kernels of a model that a policy prunes: what every door without wrappers starts from."""

from __future__ import annotations

from typing import Any

from tfmot_asp.hardware.policy import estimate_gains, why_dense
from tfmot_asp.keras_models.kernels import Kernel, kernels_by_name, layers_with_kernels
from tfmot_asp.reason import Reason
from tfmot_asp.types import InputShapes, Policy


def allowed_kernels(
    model: Any, policy: Policy, input_shapes: InputShapes | None = None, *, masked: bool = False
) -> tuple[dict[str, Kernel], list[Reason | None]]:
    """The kernels that a policy allows, and its answers.

    Args:
        model: a built model.
        policy: which layers to prune.
        input_shapes: for a policy that estimates gains, of a model that leaves sizes open.
        masked: as in ``kernels_by_name``.

    Returns:
        The kernels by name, each variable once; and for each layer with kernels why it stays dense, or None.
    """
    estimate_gains(policy, model, input_shapes)
    layers = layers_with_kernels(model)
    reasons = [why_dense(policy, layer.layer) for layer in layers]
    allowed = (layer for layer, reason in zip(layers, reasons, strict=True) if reason is None)
    return kernels_by_name(allowed, masked=masked), reasons
