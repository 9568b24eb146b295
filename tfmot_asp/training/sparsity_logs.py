"""Sparsity in Keras' ``logs``, from where whatever records metrics takes it: CSVLogger, History, W&B, MLflow."""

from __future__ import annotations

from typing import Any

import numpy as np
import tf_keras

from tfmot_asp import masks
from tfmot_asp.hardware.allowed_kernels import allowed_kernels
from tfmot_asp.hardware.policy import no_prunable_layer_message
from tfmot_asp.hardware.rule import PruneForSparseTensorCores
from tfmot_asp.keras_models.kernels import Kernel, used_kernel
from tfmot_asp.pattern import TWO_FOUR, Pattern, PatternLike
from tfmot_asp.types import Policy


class SparsityLogs(tf_keras.callbacks.Callback):
    """Puts ``sparsity`` and ``kept_magnitude`` into the ``logs`` of an epoch, for all callbacks that come after it.

    So ``CSVLogger``, ``TensorBoard``, ``ModelCheckpoint`` and the callbacks of W&B, MLflow and others record them, or
    watch them, as they do the loss. Keras gives ``logs`` to one callback after another: list this one behind
    ``UpdatePruningStep``, and in front of those that record. Keras' own ``History`` and progress bar come last anyway.

    Works with every way to prune, on models of tf_keras and of Keras 3, wrapped or not; it reads weights and changes
    none. Needs no tfmot.

    - ``sparsity``: share of weights that are zero, 0 to 1, in the kernels that the policy would prune: 0.5 with 2:4.
    - ``kept_magnitude``: share of their magnitude that the pattern keeps, 0 to 1: 1 once they have the pattern, and
      before, what would be left if they were pruned now.

    Args:
        policy: which layers count, as in ``sparsity_report``. By default ``PruneForSparseTensorCores()``.
        sparsity_m_by_n: the pattern, ``(zeros, block)`` or ``"N:M"``.
        per_layer: adds ``sparsity/LAYER`` and ``kept_magnitude/LAYER`` of each kernel.

    Raises:
        ValueError: when training begins, or after the first epoch of a model that is not built before, if it has no
            layer that the policy would prune.

    Example:
        >>> logger = tf_keras.callbacks.CSVLogger("training.csv")
        >>> history = pruned.fit(images, labels, callbacks=[tfmot_asp.SparsityLogs(), logger], verbose=0)
        >>> history.history["sparsity"]
        [0.5]
    """

    def __init__(
        self, policy: Policy | None = None, sparsity_m_by_n: PatternLike = TWO_FOUR, per_layer: bool = False
    ) -> None:
        super().__init__()
        self.policy = PruneForSparseTensorCores() if policy is None else policy
        self.sparsity_m_by_n = Pattern.of(sparsity_m_by_n)
        self.per_layer = per_layer
        self._kernels: dict[str, Kernel] = {}

    def on_train_begin(self, logs: Any = None) -> None:
        """Finds the kernels of a model that is built."""
        self._kernels = self._find() if self.model.built else {}

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Adds to the logs."""
        if logs is None:
            return
        self._kernels = self._kernels or self._find()
        pattern = self.sparsity_m_by_n
        zeros, weights, kept, magnitude = np.zeros((4, len(self._kernels)))
        for index, kernel in enumerate(self._kernels.values()):
            weight = used_kernel(kernel)
            zeros[index], weights[index] = weight.size - np.count_nonzero(weight), weight.size
            kept[index] = masks.retained_magnitude(weight, kernel.layout.reduction_axes, pattern)
            magnitude[index] = np.sum(masks.magnitude(weight), dtype=np.float64)
        logs["sparsity"] = float(zeros.sum() / weights.sum())
        logs["kept_magnitude"] = _share(kept.sum(), magnitude.sum())
        if self.per_layer:
            for index, name in enumerate(self._kernels):
                logs[f"sparsity/{name}"] = float(zeros[index] / weights[index])
                logs[f"kept_magnitude/{name}"] = _share(kept[index], magnitude[index])

    def _find(self) -> dict[str, Kernel]:
        found, reasons = allowed_kernels(self.model, self.policy)
        if not found:
            raise ValueError(no_prunable_layer_message(self.model, reasons))
        return found


def _share(part: float, whole: float) -> float:
    """1 of nothing: a kernel of zeros keeps all that it has."""
    return float(part / whole) if whole else 1.0
