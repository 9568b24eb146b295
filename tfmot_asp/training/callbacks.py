"""tfmot's callbacks, with the holes closed that leave weights dense, or fail halfway."""

from __future__ import annotations

import importlib.util
from typing import Any

import tensorflow_model_optimization as tfmot
from tensorflow_model_optimization.python.core.keras.compat import keras
from tensorflow_model_optimization.python.core.sparsity.keras import pruning_wrapper

from tfmot_asp.training.strip import wrappers_in


class UpdatePruningStep(tfmot.sparsity.keras.UpdatePruningStep):
    """tfmot's callback, which also masks the weights once training has ended, wherever a model holds its wrappers.

    An optimizer with ``use_ema=True`` overwrites the weights with their moving averages after the last epoch's
    callbacks, and an average over the steps before the mask is dense.

    A subclassed model whose layers are wrapped where it creates them may be unbuilt when training begins.

    Example:
        >>> pruned = tfmot_asp.prune_low_magnitude(model)
        >>> pruned.compile("adam", "sparse_categorical_crossentropy")
        >>> pruned.fit(images, labels, callbacks=[tfmot_asp.UpdatePruningStep()])
    """

    def on_train_begin(self, logs: Any = None) -> None:
        """Starts to count the steps of wrappers that have counted none."""
        self._find()
        for layer in self.prunable_layers:
            if keras.backend.get_value(layer.pruning_step) == -1:
                keras.backend.set_value(layer.pruning_step, 0)

    def on_epoch_end(self, batch: Any, logs: Any = None) -> None:
        """Writes zeros to all masked weights."""
        self._find()
        super().on_epoch_end(batch, logs)

    def on_train_end(self, logs: Any = None) -> None:
        """Writes zeros to all masked weights."""
        self._find()
        for layer in self.prunable_layers:
            layer.pruning_obj.weight_mask_op()

    def _find(self) -> None:
        found = wrappers_in(self.model, pruning_wrapper.PruneLowMagnitude)  # tfmot's own wrappers too
        self.prunable_layers = [wrapper for wrapper in found if wrapper.built]


class PruningSummaries(tfmot.sparsity.keras.PruningSummaries):
    """tfmot's callback, which needs tensorboard and says so before training begins.

    Args:
        log_dir: where to write.
        update_freq: of Keras' TensorBoard callback.
        **kwargs: of Keras' TensorBoard callback.

    Raises:
        ImportError: if tensorboard is not installed.

    Example:
        >>> pruned.fit(images, labels, callbacks=[tfmot_asp.UpdatePruningStep(), tfmot_asp.PruningSummaries("logs")])
    """

    def __init__(self, log_dir: str, update_freq: str | int = "epoch", **kwargs: Any) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise ImportError(
                "PruningSummaries writes for TensorBoard, which TensorFlow no longer brings: pip install tensorboard"
            )
        super().__init__(log_dir, update_freq=update_freq, **kwargs)
