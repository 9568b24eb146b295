"""tfmot's callbacks, with the one hole closed that leaves weights dense after training."""

from __future__ import annotations

from typing import Any

import tensorflow_model_optimization as tfmot

PruningSummaries = tfmot.sparsity.keras.PruningSummaries


class UpdatePruningStep(tfmot.sparsity.keras.UpdatePruningStep):
    """tfmot's callback, which also masks the weights once training has ended.

    An optimizer with ``use_ema=True`` overwrites the weights with their moving averages after the last epoch's
    callbacks, and an average over the steps before the mask is dense.

    Example:
        >>> pruned = tfmot_asp.prune_low_magnitude(model)
        >>> pruned.compile("adam", "sparse_categorical_crossentropy")
        >>> pruned.fit(images, labels, callbacks=[tfmot_asp.UpdatePruningStep()])
    """

    def on_train_end(self, logs: Any = None) -> None:
        """Writes zeros to all masked weights."""
        for layer in self.prunable_layers:
            layer.pruning_obj.weight_mask_op()
