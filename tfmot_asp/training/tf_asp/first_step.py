"""Masks that are computed within the first training step and then frozen: what ``AspOptimizerWrapperV2`` keeps."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_asp import masks
from tfmot_asp.keras_models.constraints import assign, attach_mask, in_cross_replica_context
from tfmot_asp.keras_models.holders import forget_traces
from tfmot_asp.keras_models.kernels import Kernel
from tfmot_asp.keras_models.variables import underlying_variable
from tfmot_asp.training.kernel_masks import KernelMasks, create_mask


@dataclass(frozen=True)
class _Targets:
    """The kernels to prune, which ``tf.Module`` would track if they were attributes of one."""

    model: weakref.ref[Any]
    kernels: dict[str, Kernel]
    by_variable: dict[int, str]


class FirstStepMasks(KernelMasks):
    """2:4 masks of a model's kernels that are computed at the first training step, then frozen.

    Args:
        model: the model; its training step is traced anew, so that it sees the masks.
        kernels: what to prune, by name.
    """

    def __init__(self, model: Any, kernels: dict[str, Kernel]) -> None:
        super().__init__("asp_masks", kernels, {name: np.ones(kernel.shape) for name, kernel in kernels.items()})
        by_variable = {variable: name for name, kernel in kernels.items() for variable in _identities(kernel.variable)}
        self._targets = _Targets(weakref.ref(model), kernels, by_variable)
        self._checked = False
        first = next(iter(kernels.values())).variable if kernels else None
        self.computed = create_mask(first, False) if kernels else None
        for name, kernel in kernels.items():
            attach_mask(kernel.variable, self.masks[name], model)
        forget_traces(model)

    def compute_if_due(self) -> None:
        """Computes the masks and applies them to the weights, unless that was done in an earlier step."""
        if self.computed is None:
            return

        computed = self.computed

        def update(strategy: Any) -> Any:
            return tf.cond(computed.read_value(), tf.no_op, lambda: self._compute(strategy))

        in_cross_replica_context(update)

    def check_trained(self, variables: Iterable[Any]) -> None:
        """Warns, at the first step, if that trains another model than the one whose kernels are to be pruned."""
        if self._checked or self.computed is None:
            return
        self._checked = True
        model = self._targets.model()
        own = set(self._targets.by_variable)
        own.update(i for weight in (() if model is None else model.weights) for i in _identities(weight))
        if not any(own.intersection(_identities(variable)) for variable in variables):
            made_for = "a model that is gone" if model is None else repr(model.name)
            warnings.warn(
                f"AspOptimizerWrapperV2 was made for {made_for} but trains other variables, which stay dense. Make it "
                "for the model that it trains: AspOptimizerWrapperV2(optimizer, model)",
                UserWarning,
                stacklevel=3,
            )

    @property
    def model(self) -> Any:
        """The model whose kernels are pruned, while it lives."""
        return self._targets.model()

    def read(self, variable: Any) -> tf.Tensor:
        """A kernel's mask as a tensor of its dtype. Raises KeyError for a variable without."""
        name = next((self._targets.by_variable.get(i) for i in _identities(variable)), None)
        if name is None:
            raise KeyError(
                f"{getattr(variable, 'name', variable)!r} is not pruned, so it has no mask. Pruned are the kernels of: "
                f"{', '.join(self.masks) or 'no layer'}"
            )
        return tf.cast(tf.convert_to_tensor(self.masks[name]), underlying_variable(variable).dtype)

    def _compute(self, strategy: Any) -> Any:
        written = [assign(strategy, self.computed, tf.constant(True))]
        for name, kernel in self._targets.kernels.items():
            stored = kernel.tf_variable
            weight = stored.read_value()
            mask = masks.m_by_n_mask(tf.abs(weight), kernel.layout.reduction_axes)
            written.append(assign(strategy, self.masks[name], mask))
            written.append(assign(strategy, stored, masks.apply_mask(weight, mask)))
        return tf.group(written)


def _identities(variable: Any) -> list[int]:
    """Ids by which a variable is known: its own, and those of its replicas."""
    plain = underlying_variable(variable)
    return [id(plain), *(id(part) for part in (getattr(plain, "values", ()) if hasattr(plain, "_values") else ()))]
