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
    "PruneForSparseTensorCores": "tfmot_asp.policy",
    "PruneLowMagnitude": "tfmot_asp.wrapper",
    "prune_low_magnitude": "tfmot_asp.prune",
    "strip_pruning": "tfmot_asp.prune",
    "prune_scope": "tfmot_asp.prune",
    "prune_trained_model": "tfmot_asp.trained",
    "PrunedModel": "tfmot_asp.trained",
    "AspOptimizerWrapperV2": "tfmot_asp.optimizers",
    "SHOW_PRUNING_INFO": "tfmot_asp.asp",
    "SHOW_PERMUTATION_INFO": "tfmot_asp.asp",
    "SHOW_PERMUTATION_MORE_INFO": "tfmot_asp.asp",
    "SHOW_PERMUTATION_DEBUG_INFO": "tfmot_asp.asp",
    "UpdatePruningStep": "tfmot_asp.callbacks",
    "PruningSummaries": "tfmot_asp.callbacks",
    "quantize_model": "tfmot_asp.quantize",
    "quantize_scope": "tfmot_asp.quantize",
    "keep_sparsity": "tfmot_asp.quantize",
    "quantization_report": "tfmot_asp.quantized_kernels",
    "QuantizationReport": "tfmot_asp.quantized_kernels",
    "SparseTensorCoreRule": "tfmot_asp.eligibility",
    "sparsity_report": "tfmot_asp.report",
    "SparsityReport": "tfmot_asp.report",
    "check_pruned_layers": "tfmot_asp.report",
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
