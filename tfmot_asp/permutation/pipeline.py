"""`permute`: plan, search, apply, report."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from typing import Any

import numpy as np

from tfmot_asp.hardware import cuda_device
from tfmot_asp.keras_models.kernels import Scores
from tfmot_asp.keras_models.slots import optimizers_of
from tfmot_asp.pattern import TWO_FOUR, PatternLike
from tfmot_asp.permutation.apply import reordered, variable_moves
from tfmot_asp.permutation.free_outputs import OUTPUTS
from tfmot_asp.permutation.groups import Group
from tfmot_asp.permutation.picture.outline import outline
from tfmot_asp.permutation.picture.plot import check_plot_path, plot
from tfmot_asp.permutation.plan import ModelPlan, plan_model
from tfmot_asp.permutation.report import PermutationReport, finish
from tfmot_asp.permutation.search import SearchResult, loader, search, search_many
from tfmot_asp.permutation.search.api import bytes_on_a_device, check_options, choose_device
from tfmot_asp.permutation.weave import weave
from tfmot_asp.reports.progress_bar import progress_bar
from tfmot_asp.types import InputShapes, Policy

logger = logging.getLogger(__name__)

MOST_TOGETHER = 1 << 26
"""Elements of search matrices that are held at a time, 256 MiB, for groups that a GPU searches together."""


def permute(
    model: Any,
    *,
    policy: Policy | None = None,
    input_shapes: InputShapes | None = None,
    sparsity_m_by_n: PatternLike = TWO_FOUR,
    device: str = "auto",
    effort: str = "balanced",
    seed: int = 0,
    verify: bool = True,
    progress: bool | None = None,
    plot_to_file: str | os.PathLike[str] | None = None,
    scores: Scores | None = None,
    optimizer: Any = None,
    outputs: str = "pinned",
    executor: Executor | None = None,
) -> PermutationReport:
    """Reorders the channels of a model, in place, so that an m by n mask keeps more weight magnitude.

    What the model computes does not change: whatever carries a channel (kernels that make it, biases, normalization,
    kernels that consume it, optimizer slots) is reordered alike. Use it before pruning; the weights stay dense.
    After any error, and if it is interrupted, the model is as it was.

    Args:
        model: a tf_keras or Keras 3 (TensorFlow backend) model, or a `tf.Module` that holds Keras layers. Built.
        policy: which layers will be pruned: a `PruningPolicy`, by default `PruneForSparseTensorCores()`.
        input_shapes: for models that do not know their input shapes: a shape such as (None, 224, 224, 3), or a list or
            dict of shapes as the model is called.
        sparsity_m_by_n: the pattern along the reduction axis: ``(zeros, block)``, or the text ``"N:M"`` (N kept of M).
        device: "auto", "cpu" or "cuda", where the search runs. The result is the same.
        effort: "fast", "balanced" or "thorough".
        seed: of the search.
        verify: run the model on a random input before and after, and put everything back if an output changed.
        progress: show a progress bar; by default if stderr is a terminal.
        plot_to_file: where to draw what is permuted and what is not: a .png, .svg or .pdf file, for which Graphviz must
            be installed, or .dot. Drawn before the search, from the plan; the report's `plot` draws the same later.
        scores: gives a score for each weight of a `Kernel` (`.layer`, `.tf_variable`, `.layout`), an array of the
            kernel's shape, finite and not negative: the order then lets the mask keep as much as it can of the scores.
            By default the magnitude of the weight. The report's shares are of the scores as well.
        optimizer: one, or a list of them, that trains the model in a loop of your own: its slots (momentum, moments)
            move with the weights. Those of compiled models that hold the model or its layers do so anyway.
        outputs: "pinned" keeps the order of the outputs' channels. "free" lets the channels on their last axis move
            where that helps, as an encoder's residual stream must for its kernels to move; `report.output_orders` says
            how, to be undone by one gather or by the layer that reads them.
        executor: where to search the groups, each a task of its own: any `concurrent.futures.Executor`, so processes,
            or the pools of Dask, Ray and MPI. The result is the same. It is not shut down. By default they are searched
            here.

    Returns:
        A :class:`PermutationReport`: per layer what was done and why not.

    Raises:
        TypeError: if `model` is not a model, or an option is of a wrong type.
        ValueError: if the model is not built, has unknown input shapes, NaN or infinite weights, no layer that the
            policy prunes, or layers that are wrapped for pruning already; for an unknown `device` or `effort`, or a
            `plot_to_file` with an unknown suffix.
        RuntimeError: for device="cuda" where there is none.
        FileNotFoundError, ImportError, RuntimeError: if the picture cannot be drawn, see `picture.plot`.
        PermutationError: if an output changed, which would be a defect of this library.

    Example:
        >>> report = tfmot_asp.permute(model)
        >>> print(report)
    """
    if outputs not in OUTPUTS:
        raise ValueError(f"outputs must be one of {', '.join(map(repr, OUTPUTS))}; got {outputs!r}")
    _check_options(sparsity_m_by_n, device, effort, seed, progress, executor)
    optimizers_of(None, optimizer)  # raises if it is none
    if plot_to_file is not None:
        check_plot_path(plot_to_file)
    plan = plan_model(
        model,
        policy=policy,
        input_shapes=input_shapes,
        sparsity_m_by_n=sparsity_m_by_n,
        scores=scores,
        outputs=outputs,
        optimizer=optimizer,
    )
    if plot_to_file is not None:
        plot(outline(plan, model), plot_to_file)
    orders: list[np.ndarray] = []
    results: list[SearchResult | None] = []
    options = {"m_by_n": plan.pattern, "device": device, "effort": effort, "seed": seed}
    with _bar(plan, progress) as bar, _results(plan, options, executor) as found:
        for group in plan.plan.groups:
            if not group.parts:
                orders.append(np.arange(group.size))
                results.append(None)
                continue
            bar.set_postfix_str(f"{group.name}, {group.size} channels")
            result, weights = next(found)
            order = np.arange(group.size)
            order[group.columns] = group.columns[result.permutation]
            if not _helps(plan, group, order):
                order = np.arange(group.size)
                result = dataclasses.replace(
                    result,
                    permutation=np.arange(len(group.columns)),
                    retained_after=result.retained_before,
                    efficacy=0.0,
                )
            orders.append(order)
            results.append(result if not group.woven else None)
            bar.update(weights)
    orders = weave(plan, orders, effort)
    return finish(plan, model, orders, results, verify=verify, optimizer=optimizer)


def _check_options(
    m_by_n: PatternLike, device: str, effort: str, seed: int, progress: bool | None, executor: Executor | None
) -> None:
    """Refuses options that the search would refuse, before the model is looked at, whether or not it has groups."""
    check_options(m_by_n, device, effort, seed, "sparsity_m_by_n")
    if not (progress is None or isinstance(progress, bool)):
        raise TypeError(f"progress must be True, False or None; got {progress!r}")
    if executor is None:
        if device == "cuda":
            choose_device(device, 0, 0)  # raises if there is none
    elif not callable(getattr(executor, "submit", None)):
        raise TypeError(f"executor must have a method submit, as a concurrent.futures.Executor has; got {executor!r}")


@contextlib.contextmanager
def _results(
    plan: ModelPlan, options: dict[str, Any], executor: Executor | None
) -> Iterator[Iterator[tuple[SearchResult, int]]]:
    """For each group its search result and how many weights were searched; cancels what is left at the end."""
    if executor is None:
        yield _found_here(plan, options)
        return
    futures: list[tuple[Future[SearchResult], int]] = []
    try:
        for group in plan.plan.groups:
            if not group.parts:
                continue
            matrix = search_matrix(plan, group)
            futures.append((executor.submit(search, matrix, **options), matrix.size))
        yield ((future.result(), size) for future, size in futures)
    finally:
        for future, _ in futures:
            future.cancel()


def _found_here(plan: ModelPlan, options: dict[str, Any]) -> Iterator[tuple[SearchResult, int]]:
    """The same without an executor: one group after the other, or those that have room on a GPU together."""
    for groups in _together(plan, options):
        matrices = [search_matrix(plan, group) for group in groups]
        yield from zip(search_many(matrices, **options), [matrix.size for matrix in matrices], strict=True)


def _together(plan: ModelPlan, options: dict[str, Any]) -> Iterator[list[Group]]:
    """The groups with a search matrix, those that are searched at a time."""
    groups = [group for group in plan.plan.groups if group.parts]
    if options["device"] == "cpu" or loader.why_not() is not None:
        yield from ([group] for group in groups)
        return
    room = cuda_device.free_bytes()
    batch: list[Group] = []
    elements = needed = 0
    for group in groups:
        rows, columns = _rows(plan, group), len(group.columns)
        takes = bytes_on_a_device(rows, columns, options["m_by_n"], options["effort"])
        if batch and (elements + rows * columns > MOST_TOGETHER or needed + takes > room):
            yield batch
            batch, elements, needed = [], 0, 0
        batch.append(group)
        elements, needed = elements + rows * columns, needed + takes
    if batch:
        yield batch


def _rows(plan: ModelPlan, group: Group) -> int:
    """Rows of a group's search matrix."""
    kernels = [plan.plan.kernels[part.kernel] for part in group.parts]
    return sum(math.prod(kernel.shape) // kernel.reduction_size for kernel in kernels)


def search_matrix(plan: ModelPlan, group: Group) -> np.ndarray:
    """The group's search matrix: a column per channel of `group.columns`, a row per weight row; float32 scores."""
    kernels = plan.plan.kernels
    rows = [math.prod(kernels[p.kernel].shape) // kernels[p.kernel].reduction_size for p in group.parts]
    matrix = np.empty((sum(rows), len(group.columns)), np.float32)
    start = 0
    flat: np.ndarray | None = None
    last = -1
    for part, count in zip(group.parts, rows, strict=True):
        if part.kernel != last:
            flat, last = plan.score_matrix(part.kernel, np.float32), part.kernel
        assert flat is not None
        matrix[start : start + count] = flat[part.positions].T
        start += count
    return matrix


def _helps(plan: ModelPlan, group: Group, order: np.ndarray) -> bool:
    """Whether the order keeps more over all kernels it touches, also those whose stripes the search did not see."""
    searched = {part.kernel for part in group.parts}
    if searched == set(group.kernels) and len(group.columns) == group.size:
        return True
    orders = [order if g is group else np.arange(g.size) for g in plan.plan.groups]
    moves = variable_moves(plan, orders)
    before = after = 0.0
    for index in group.kernels:
        kernel = plan.plan.kernels[index]
        score = plan.score(kernel)
        before += plan.retained(kernel, score)[0]
        after += plan.retained(kernel, reordered(score, moves.get(kernel.variable, [])))[0]
    return after >= before


def _bar(plan: ModelPlan, progress: bool | None) -> Any:
    sizes = [len(group.columns) * _rows(plan, group) for group in plan.plan.groups]
    return progress_bar(sum(sizes), "permute", progress, unit="weight", unit_scale=True)
