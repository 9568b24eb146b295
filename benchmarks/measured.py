"""What a method left of a trained model, over seeds. Needs no TensorFlow: tables are made of it elsewhere too."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Measured:
    """What a case gave.

    Attributes:
        title: what it is.
        weights: of the model.
        kernels: that are pruned.
        tfmot_kernels: those that tfmot prunes.
        samples: shape of the calibration data.
        figures: names of what was measured.
        rows: per method and seed the figures, processor seconds, and MiB; empty where the method refused.
        refused: per method the error.
    """

    title: str
    weights: int
    kernels: int
    tfmot_kernels: int
    samples: tuple[int, ...]
    figures: list[str]
    rows: dict[str, list[list[float]]]
    refused: dict[str, str]

    def mean(self, method: str) -> np.ndarray:
        """Per figure the mean over seeds, then processor seconds and MiB."""
        return np.mean(self.rows[method], axis=0)

    def error(self, method: str) -> np.ndarray:
        """Standard errors of the means; NaN of a single seed."""
        values = np.array(self.rows[method])
        if len(values) == 1:
            return np.full(values.shape[1], np.nan)
        return values.std(0, ddof=1) / np.sqrt(len(values))
