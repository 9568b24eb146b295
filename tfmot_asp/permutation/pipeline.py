"""`permute`: plan, search, apply, report."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from typing import Any

import numpy as np

from tfmot_asp.keras_models.kernels import Scores
from tfmot_asp.keras_models.slots import optimizers_of
from tfmot_asp.pattern import TWO_FOUR, PatternLike
from tfmot_asp.permutation.apply import variable_moves
from tfmot_asp.permutation.executors import Task, in_window
from tfmot_asp.permutation.free_outputs import OUTPUTS
from tfmot_asp.permutation.groups import Group
from tfmot_asp.permutation.matrix import GroupMatrix
from tfmot_asp.permutation.memory import memory_needed
from tfmot_asp.permutation.picture.outline import outline
from tfmot_asp.permutation.picture.plot import check_plot_path, plot
from tfmot_asp.permutation.plan import ModelPlan, plan_model
from tfmot_asp.permutation.report import PermutationReport, finish
from tfmot_asp.permutation.search import SearchResult, search, search_many
from tfmot_asp.permutation.search.api import check_options, choose_device
from tfmot_asp.permutation.search.batches import batches
from tfmot_asp.permutation.weave import weave
from tfmot_asp.reports.progress_bar import check_progress, progress_bar
from tfmot_asp.types import InputShapes, Policy

logger = logging.getLogger(__name__)

_SLAB, _SLAB_OF_FILES = 1 << 21, 1 << 24
"""Elements of a search matrix that are made at a time: from files more, for longer runs of bytes."""


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
        A ``PermutationReport``: per layer what was done and why not.

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
    check_permute_options(sparsity_m_by_n, device, effort, seed, progress, executor)
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
    memory = memory_needed(plan, effort)
    logger.info("permute needs up to %.1f GB beside the model", memory / 1e9)
    options = {"m_by_n": plan.pattern, "device": device, "effort": effort, "seed": seed}
    orders, results = search_groups(plan, options, executor, progress)
    orders = weave(plan, orders, effort)
    report = finish(plan, model, orders, results, verify=verify, optimizer=optimizer)
    return dataclasses.replace(report, memory=memory)


def check_permute_options(
    m_by_n: PatternLike, device: str, effort: str, seed: int, progress: bool | None, executor: Executor | None
) -> None:
    """Refuses options that the search would refuse, before the model is looked at, whether or not it has groups."""
    check_options(m_by_n, device, effort, seed, "sparsity_m_by_n")
    check_progress(progress)
    if executor is None:
        if device == "cuda":
            choose_device(device, 0, 0)  # raises if there is none
    elif not callable(getattr(executor, "submit", None)):
        raise TypeError(f"executor must have a method submit, as a concurrent.futures.Executor has; got {executor!r}")


def search_groups(
    plan: ModelPlan,
    options: dict[str, Any],
    executor: Executor | None = None,
    progress: bool | None = None,
    known: Mapping[int, SearchResult] | None = None,
    note: Callable[[int, SearchResult], None] | None = None,
) -> tuple[list[np.ndarray], list[SearchResult | None]]:
    """Searches the groups of a plan, each by itself.

    Args:
        plan: of the model.
        options: of `search`.
        executor: where to search; here by default.
        progress: whether to show a bar.
        known: results by the number of their group, that need not be searched again.
        note: is told each new result.

    Returns:
        For each group its order, and its result; None where it was not searched or is not all that counts.
    """
    found = dict(known or {})
    todo = {
        i: GroupMatrix(group, plan.plan.kernels, plan.score, _SLAB if plan.stored is None else _SLAB_OF_FILES)
        for i, group in enumerate(plan.plan.groups)
        if group.parts and i not in found
    }
    bar = progress_bar(
        sum(matrix.size for matrix in todo.values()), "permute", progress, unit="weight", unit_scale=True
    )
    with bar, _results(plan, todo, options, executor) as results:
        for i, result in results:
            bar.set_postfix_str(f"{plan.plan.groups[i].name}, {plan.plan.groups[i].size} channels")
            bar.update(todo[i].size)
            todo[i].forget()
            found[i] = result
            if note is not None:
                note(i, result)
    orders: list[np.ndarray] = []
    kept: list[SearchResult | None] = []
    for i, group in enumerate(plan.plan.groups):
        order = np.arange(group.size)
        searched = found.get(i)
        if searched is not None:
            order[group.columns] = group.columns[searched.permutation]
            if not _helps(plan, group, order):
                order = np.arange(group.size)
                unchanged = np.arange(len(group.columns))
                before = searched.retained_before
                searched = dataclasses.replace(searched, permutation=unchanged, retained_after=before, efficacy=0.0)
        orders.append(order)
        kept.append(searched if not group.woven else None)
    return orders, kept


@contextlib.contextmanager
def _results(
    plan: ModelPlan, matrices: Mapping[int, GroupMatrix], options: dict[str, Any], executor: Executor | None
) -> Iterator[Iterator[tuple[int, SearchResult]]]:
    """The search results of groups, by their numbers, as they come; cancels what is left at the end."""
    if executor is None:
        yield _found_here(matrices, options)
        return
    numbers = list(matrices)
    tasks = [
        Task(f"the search of group {plan.plan.groups[i].name!r}", matrix.size, search, (matrix,), options)
        for i, matrix in matrices.items()
    ]
    with in_window(executor, tasks) as results:
        yield ((numbers[k], result) for k, result in results)


def _found_here(matrices: Mapping[int, GroupMatrix], options: dict[str, Any]) -> Iterator[tuple[int, SearchResult]]:
    """The same without an executor: one group after the other, or those that have room on a GPU together."""
    where = {name: options[name] for name in ("device", "effort", "m_by_n")}
    for numbers in batches({i: matrix.shape for i, matrix in matrices.items()}, **where):
        yield from zip(numbers, search_many([matrices[i] for i in numbers], **options), strict=True)


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
        before += plan.retained(kernel)[0]
        after += plan.retained(kernel, moves.get(kernel.variable, []))[0]
    return after >= before
