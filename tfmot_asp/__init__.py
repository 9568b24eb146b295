"""2:4 structured sparsity with channel permutation for TensorFlow and Keras models.

Importing this package loads none of TensorFlow, tfmot, numba or CuPy: every public name is resolved on first use, so
that Keras 3 users keep Keras 3 (importing tfmot switches ``tf.keras`` to Keras 2 for the whole process).
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "permute": "tfmot_asp.permutation.pipeline",
    "PermutationReport": "tfmot_asp.permutation.report",
    "PermutationError": "tfmot_asp.permutation.apply",
    "search": "tfmot_asp.permutation.search",
    "SearchResult": "tfmot_asp.permutation.search",
    "PruneForSparseTensorCores": "tfmot_asp.training.policy",
    "PruneLowMagnitude": "tfmot_asp.training.wrapper",
    "prune_low_magnitude": "tfmot_asp.training.prune",
    "strip_pruning": "tfmot_asp.training.prune",
    "prune_scope": "tfmot_asp.training.prune",
    "prune_trained_model": "tfmot_asp.training.trained",
    "PrunedModel": "tfmot_asp.training.trained",
    "AspOptimizerWrapperV2": "tfmot_asp.training.tf_asp.optimizers",
    "SHOW_PRUNING_INFO": "tfmot_asp.training.tf_asp.messages",
    "SHOW_PERMUTATION_INFO": "tfmot_asp.training.tf_asp.messages",
    "SHOW_PERMUTATION_MORE_INFO": "tfmot_asp.training.tf_asp.messages",
    "SHOW_PERMUTATION_DEBUG_INFO": "tfmot_asp.training.tf_asp.messages",
    "UpdatePruningStep": "tfmot_asp.training.callbacks",
    "PruningSummaries": "tfmot_asp.training.callbacks",
    "quantize_model": "tfmot_asp.quantization.quantize",
    "quantize_scope": "tfmot_asp.quantization.quantize",
    "keep_sparsity": "tfmot_asp.quantization.quantize",
    "quantization_report": "tfmot_asp.quantization.kernels",
    "QuantizationReport": "tfmot_asp.quantization.kernels",
    "SparseTensorCoreRule": "tfmot_asp.hardware.rule",
    "sparsity_report": "tfmot_asp.reports.sparsity",
    "SparsityReport": "tfmot_asp.reports.sparsity_report",
    "check_pruned_layers": "tfmot_asp.training.tf_asp.check",
}
_SUBPACKAGES = ("export", "loading", "permutation")

__all__ = [*sorted(_HOME), *_SUBPACKAGES]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
    elif name in _SUBPACKAGES:
        value = importlib.import_module(f"tfmot_asp.{name}")
    else:
        raise AttributeError(f"module 'tfmot_asp' has no attribute {name!r}; it has {', '.join(__all__)}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
