"""2:4 structured sparsity with channel permutation for TensorFlow and Keras models.

Importing this package loads none of TensorFlow, tfmot, numba or CuPy: every public name is resolved on first use, so
that Keras 3 users keep Keras 3 (importing tfmot switches ``tf.keras`` to Keras 2 for the whole process).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "permute": "tfmot_asp.permutation.pipeline",
    "permute_shards": "tfmot_asp.permutation.shards.permute_shards",
    "PermutationReport": "tfmot_asp.permutation.report",
    "PermutationError": "tfmot_asp.permutation.apply",
    "search": "tfmot_asp.permutation.search",
    "SearchResult": "tfmot_asp.permutation.search",
    "PruneForSparseTensorCores": "tfmot_asp.hardware.rule",
    "PruneLowMagnitude": "tfmot_asp.training.wrapper",
    "prune_low_magnitude": "tfmot_asp.training.prune",
    "strip_pruning": "tfmot_asp.training.strip",
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
    "SparsityLogs": "tfmot_asp.training.sparsity_logs",
    "quantize_model": "tfmot_asp.quantization.quantize",
    "quantize_scope": "tfmot_asp.quantization.quantize",
    "keep_sparsity": "tfmot_asp.quantization.quantize",
    "quantization_report": "tfmot_asp.quantization.quantization_report",
    "QuantizationReport": "tfmot_asp.quantization.quantization_report",
    "SparseTensorCoreRule": "tfmot_asp.hardware.rule",
    "sparsity_report": "tfmot_asp.reports.sparsity",
    "SparsityReport": "tfmot_asp.reports.sparsity_report",
    "check_pruned_layers": "tfmot_asp.training.tf_asp.check",
}
_SUBPACKAGES = ("export", "hardware", "loading", "permutation")

__all__ = [*sorted(_HOME), *_SUBPACKAGES]


if TYPE_CHECKING:  # what type checkers see; a test compares it with _HOME
    from tfmot_asp import export as export
    from tfmot_asp import hardware as hardware
    from tfmot_asp import loading as loading
    from tfmot_asp import permutation as permutation
    from tfmot_asp.hardware.rule import PruneForSparseTensorCores as PruneForSparseTensorCores
    from tfmot_asp.hardware.rule import SparseTensorCoreRule as SparseTensorCoreRule
    from tfmot_asp.permutation.apply import PermutationError as PermutationError
    from tfmot_asp.permutation.pipeline import permute as permute
    from tfmot_asp.permutation.report import PermutationReport as PermutationReport
    from tfmot_asp.permutation.search import SearchResult as SearchResult
    from tfmot_asp.permutation.search import search as search
    from tfmot_asp.permutation.shards.permute_shards import permute_shards as permute_shards
    from tfmot_asp.quantization.quantization_report import QuantizationReport as QuantizationReport
    from tfmot_asp.quantization.quantization_report import quantization_report as quantization_report
    from tfmot_asp.quantization.quantize import keep_sparsity as keep_sparsity
    from tfmot_asp.quantization.quantize import quantize_model as quantize_model
    from tfmot_asp.quantization.quantize import quantize_scope as quantize_scope
    from tfmot_asp.reports.sparsity import sparsity_report as sparsity_report
    from tfmot_asp.reports.sparsity_report import SparsityReport as SparsityReport
    from tfmot_asp.training.callbacks import PruningSummaries as PruningSummaries
    from tfmot_asp.training.callbacks import UpdatePruningStep as UpdatePruningStep
    from tfmot_asp.training.prune import prune_low_magnitude as prune_low_magnitude
    from tfmot_asp.training.prune import prune_scope as prune_scope
    from tfmot_asp.training.sparsity_logs import SparsityLogs as SparsityLogs
    from tfmot_asp.training.strip import strip_pruning as strip_pruning
    from tfmot_asp.training.tf_asp.check import check_pruned_layers as check_pruned_layers
    from tfmot_asp.training.tf_asp.messages import SHOW_PERMUTATION_DEBUG_INFO as SHOW_PERMUTATION_DEBUG_INFO
    from tfmot_asp.training.tf_asp.messages import SHOW_PERMUTATION_INFO as SHOW_PERMUTATION_INFO
    from tfmot_asp.training.tf_asp.messages import SHOW_PERMUTATION_MORE_INFO as SHOW_PERMUTATION_MORE_INFO
    from tfmot_asp.training.tf_asp.messages import SHOW_PRUNING_INFO as SHOW_PRUNING_INFO
    from tfmot_asp.training.tf_asp.optimizers import AspOptimizerWrapperV2 as AspOptimizerWrapperV2
    from tfmot_asp.training.trained import PrunedModel as PrunedModel
    from tfmot_asp.training.trained import prune_trained_model as prune_trained_model
    from tfmot_asp.training.wrapper import PruneLowMagnitude as PruneLowMagnitude
else:

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
