"""Prunes a model's kernels in place: permutes it, chooses masks, and, with data, what becomes of the kept weights."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_asp.calibration.calibration_report import CalibrationReport
from tfmot_asp.calibration.data import CalibrationBatch, collect
from tfmot_asp.calibration.distillation import distill
from tfmot_asp.calibration.input_norms import activation_scores
from tfmot_asp.calibration.norm_statistics import MODES
from tfmot_asp.calibration.reconstruct import EFFORTS, METHODS
from tfmot_asp.calibration.sequential import Options, calibrate
from tfmot_asp.calibration.traced import TracedModel, trace_for
from tfmot_asp.graph.flat_graph import variable_key
from tfmot_asp.graph.inputs import input_specs
from tfmot_asp.keras_models.kernels import Kernel, Scores, scores_of
from tfmot_asp.keras_models.variables import read, underlying_variable
from tfmot_asp.masks import apply_mask, m_by_n_mask, magnitude
from tfmot_asp.pattern import Pattern
from tfmot_asp.types import CalibrationData, Policy

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataOptions:
    """The options of ``prune_trained_model`` that concern data.

    Raises:
        ValueError: for a name that is none of those there are, or a method that needs data and has none.
    """

    data: CalibrationData | None = None
    method: str | None = None
    effort: str = "balanced"
    scores: Scores | None = None
    batch_norm: str = "relative"
    samples: int | None = None
    progress: bool | None = None

    def __post_init__(self) -> None:
        for name, value, names in (
            ("method", self.method, (None, *METHODS)),
            ("effort", self.effort, EFFORTS),
            ("batch_norm", self.batch_norm, MODES),
        ):
            if value not in names:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, names))}; got {value!r}")
        if self.scores is not None and not callable(self.scores):
            raise TypeError(
                f"scores must be a function of a kernel that gives an array, got {type(self.scores).__name__}"
            )
        if self.data is None and self.method not in (None, "magnitude"):
            raise ValueError(
                f"method={self.method!r} needs data: give calibration_data, a few hundred unlabelled samples"
            )

    @property
    def chosen_method(self) -> str:
        """The method, or what it is by default."""
        return self.method or ("magnitude" if self.data is None else "reconstruction")


@dataclass(frozen=True)
class Pruned:
    """What ``prune_in_place`` did.

    Attributes:
        permutation: its report, None if the model was not permuted.
        masks: of each kernel, by name.
        calibration: its report, None without data.
    """

    permutation: Any
    masks: dict[str, np.ndarray]
    calibration: CalibrationReport | None


def prune_in_place(
    model: Any,
    kernels: Mapping[str, Kernel],
    options: DataOptions,
    *,
    policy: Policy,
    pattern: Pattern,
    permute: bool | Mapping[str, Any],
) -> Pruned:
    """Permutes a model and prunes its kernels; writes their weights, and the statistics of batch normalizations.

    To be called within ``restore.all_or_nothing``.

    Args:
        model: Keras model.
        kernels: to prune, by name, each variable once.
        options: the data and what to do with it.
        policy, pattern, permute: as in ``prune_trained_model``.
    """
    batches = None if options.data is None else collect(model, options.data, options.samples)
    traced = None if batches is None else trace_for(model, batches)
    scores = None
    if options.scores is not None:
        scores = {name: scores_of(name, kernel, options.scores) for name, kernel in kernels.items()}
    permutation = None
    if permute:
        search_by = scores
        if search_by is None and traced is not None and options.chosen_method != "magnitude":
            search_by = activation_scores(kernels, traced)
        given = dict(permute) if isinstance(permute, Mapping) else {}
        if traced is not None and options.chosen_method == "reconstruction":
            given.setdefault("effort", "fast")  # the refit makes up for what a longer search would keep
        given = {"policy": policy, "sparsity_m_by_n": pattern, "progress": options.progress, **given}
        if batches is not None and given.get("input_shapes") is None:
            given["input_shapes"] = _shapes(model, batches)
        permutation = _permuted(model, kernels, search_by, given, reorder=scores is not None)
        logger.info("%s", permutation)
    by_variable = None if scores is None else {id(kernels[name].tf_variable): score for name, score in scores.items()}
    lookup = None if by_variable is None else lambda kernel: by_variable[id(kernel.tf_variable)]
    if traced is None:
        return Pruned(permutation, _masked(kernels, lookup, pattern), None)
    return Pruned(permutation, *_calibrated(model, kernels, traced, lookup, options, pattern))


def _calibrated(
    model: Any,
    kernels: Mapping[str, Kernel],
    traced: list[TracedModel],
    scores: Scores | None,
    options: DataOptions,
    pattern: Pattern,
) -> tuple[dict[str, np.ndarray], CalibrationReport]:
    found = calibrate(
        model,
        kernels,
        traced,
        Options(
            pattern=pattern,
            method=options.chosen_method,
            effort=options.effort,
            scores=scores,
            batch_norm=options.batch_norm,
            progress=options.progress,
        ),
    )
    new = [(kernel.tf_variable, found.weights[name]) for name, kernel in kernels.items()]
    new += [(underlying_variable(variable), value) for variable, value in found.statistics]
    dense = {variable_key(variable): read(variable) for variable, _ in new}
    for variable, value in new:
        variable.assign(value)
    report = found.report
    if options.effort == "thorough" and options.chosen_method == "reconstruction":
        begin = time.perf_counter()
        distilled = distill(kernels, found.masks, dense, traced, progress=options.progress)
        report = dataclasses.replace(report, seconds=report.seconds + time.perf_counter() - begin)
        if distilled is not None:
            names = [output.name for output in report.outputs]
            outputs = (dataclasses.replace(o, name=n) for n, o in zip(names, distilled.outputs, strict=True))
            report = dataclasses.replace(report, outputs=tuple(outputs), distillation=distilled.error)
    return found.masks, report


def _masked(kernels: Mapping[str, Kernel], scores: Scores | None, pattern: Pattern) -> dict[str, np.ndarray]:
    """Masks without data, and the weights masked with them."""
    masks = {}
    for name, kernel in kernels.items():
        score = scores_of(name, kernel, scores)
        masks[name] = np.asarray(m_by_n_mask(score, kernel.layout.reduction_axes, pattern))
    for name, kernel in kernels.items():
        kernel.tf_variable.assign(apply_mask(read(kernel.tf_variable), masks[name]))
    return masks


def _permuted(
    model: Any,
    kernels: Mapping[str, Kernel],
    scores: dict[str, np.ndarray] | None,
    given: dict[str, Any],
    *,
    reorder: bool,
) -> Any:
    """Permutes the model, by scores if there are some, which are then reordered like their kernels if asked for."""
    # Here, since it takes time to import.
    from tfmot_asp.permutation.apply import variable_moves
    from tfmot_asp.permutation.pipeline import permute
    from tfmot_asp.permutation.plan import plan_model
    from tfmot_asp.permutation.reorder import reordered

    if scores is None:
        return permute(model, **given)
    by_variable = {id(kernels[name].tf_variable): score for name, score in scores.items()}

    def score(kernel: Kernel) -> np.ndarray:
        found = by_variable.get(id(kernel.tf_variable))
        return magnitude(read(kernel.tf_variable)) if found is None else found

    planning_options = ("policy", "input_shapes", "sparsity_m_by_n", "outputs", "optimizer")
    planning = {key: given[key] for key in planning_options if key in given}
    plan = plan_model(model, **planning) if reorder else None
    report = permute(model, **{"scores": score, **given})
    if plan is not None:
        moves = variable_moves(plan, [np.asarray(group.order, np.int64) for group in report.groups])
        for name, kernel in kernels.items():
            variable = plan.graph.variable_index(kernel.variable)
            scores[name] = reordered(scores[name], [] if variable is None else moves.get(variable, []))
    return report


def _shapes(model: Any, batches: list[CalibrationBatch]) -> Any:
    """The shapes to plan with, from the data, where the model does not know its own; else None."""
    try:
        input_specs(model)
    except ValueError:
        return tf.nest.map_structure(lambda t: tf.TensorSpec([None, *t.shape[1:]], t.dtype), batches[0].inputs)
    return None
