"""`permute_shards`: a model that need not fit in memory, from files of weights to files of weights."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np

from tfmot_asp.graph.flat_graph import variable_key
from tfmot_asp.keras_models.which_keras import is_keras_layer
from tfmot_asp.keras_models.without_weights import without_weights
from tfmot_asp.pattern import TWO_FOUR, PatternLike
from tfmot_asp.permutation.apply import variable_moves
from tfmot_asp.permutation.executors import Task, in_window
from tfmot_asp.permutation.pipeline import check_permute_options, search_groups
from tfmot_asp.permutation.plan import ModelPlan, plan_model
from tfmot_asp.permutation.report import PermutationReport, report_of
from tfmot_asp.permutation.shards.checkpoint import with_checksums
from tfmot_asp.permutation.shards.journal import Journal
from tfmot_asp.permutation.shards.names import tensor_names
from tfmot_asp.permutation.shards.stores import Store, open_store
from tfmot_asp.permutation.shards.write_shard import PARTIAL, TensorChange, Written, sha256, write_file
from tfmot_asp.permutation.weave import weave
from tfmot_asp.types import InputShapes, Policy

logger = logging.getLogger(__name__)

REPORT = "permutation.json"
SUMS = "SHA256SUMS"


def permute_shards(
    make_model: Callable[[], Any],
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    prune: bool = False,
    report: PermutationReport | None = None,
    names: Callable[[Any], str] | None = None,
    policy: Policy | None = None,
    input_shapes: InputShapes | None = None,
    sparsity_m_by_n: PatternLike = TWO_FOUR,
    device: str = "auto",
    effort: str = "balanced",
    seed: int = 0,
    progress: bool | None = None,
    executor: Executor | None = None,
) -> PermutationReport:
    """Permutes, and prunes if asked for, a model that need not fit in memory: from files to files of weights.

    The plan is made from the architecture alone. Groups are searched one at a time (or as many as the executor has
    workers), and what they read of the files are windows: beside them the search of one group takes at most 1 GiB, and
    writing less. The files of `source` are only read. Run again after a kill, it goes on where it was.

    The result is that of `permute`, and of `prune_trained_model`'s one-shot pruning, on the model itself, to the bit.
    But for the proof by running: the model is never run.

    Args:
        make_model: builds the model. It is called where variables take no memory, so the model cannot be called on
            data; build subclassed ones with `model.build(shape)`.
        source: the weights: a .safetensors file, its .safetensors.index.json or a folder of them; a .weights.h5 file of
            Keras 3, or the .weights.json of several; or the prefix of a TensorFlow checkpoint. Without an optimizer's
            state.
        target: a folder, made if it is not there, for files of the same names, permutation.json (the report) and
            SHA256SUMS.
        prune: also set the smallest weights to zero, as the pattern says.
        report: of an earlier run or of `permute`: its orders are applied, and nothing is searched.
        names: gives the name of a variable's tensor; by default the path of the variable in safetensors files, and what
            Keras or TensorFlow would look for in the others.
        policy: as for `permute`, and so are the others.
        input_shapes: see `permute`.
        sparsity_m_by_n: see `permute`.
        device: see `permute`.
        effort: see `permute`.
        seed: see `permute`.
        progress: see `permute`.
        executor: as for `permute`. Its tasks read the files themselves, so its workers must see them, and the target,
            under the same paths.

    Returns:
        The report, of which `max_change` is None.

    Raises:
        TypeError, ValueError: as `permute`; if a weight is not in the files, or of another shape there; or for a report
            of another model.
        FileNotFoundError: if there is no such store.
        FileExistsError: if `target` holds something else.

    Example:
        >>> report = tfmot_asp.permute_shards(build, "weights", "pruned", prune=True)
        >>> loaded = build().load_weights("pruned/weights")  # where it fits
    """
    if not callable(make_model) or is_keras_layer(make_model):
        raise TypeError(f"make_model must be a function that builds the model, got {type(make_model).__name__}")
    check_permute_options(sparsity_m_by_n, device, effort, seed, progress, executor)
    store, folder = open_store(source), Path(target)
    folder.mkdir(parents=True, exist_ok=True)
    if folder.samefile(store.folder):
        raise ValueError(f"the target {str(target)!r} is the folder of the weights themselves: give another")
    with without_weights():
        model = make_model()
    plan = plan_model(
        model, policy=policy, input_shapes=input_shapes, sparsity_m_by_n=sparsity_m_by_n, has_weights=False
    )
    tensors = _tensors(plan, store, tensor_names(model, store, names))
    plan = dataclasses.replace(plan, stored={variable: store.arrays[name] for variable, name in tensors.items()})
    options = {"m_by_n": plan.pattern, "device": device, "effort": effort, "seed": seed}
    stats = {name: (store.folder / name).stat() for name in store.files}
    run = {
        "weights": {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()},
        "model": {**plan.fingerprint(), "kernels": [kernel.shape for kernel in plan.plan.kernels]},
        "options": {**options, "m_by_n": list(plan.pattern), "device": None, "prune": prune},
        "report": None if report is None else [group.order for group in report.groups],
    }
    journal = Journal(folder, run, store.files)
    if report is None:
        orders, results = search_groups(plan, options, executor, progress, journal.results, journal.add_result)
        found = report_of(plan, model, weave(plan, orders, effort), results)
    else:
        found = report_of(plan, model, report.orders_for(plan))
    orders = found.orders_for(plan)
    _write(plan, orders, store, folder, tensors, prune, journal, executor)
    found.save(folder / REPORT)
    sums = "".join(f"{journal.files[name]['sha256']}  {name}\n" for name in store.files)
    (folder / SUMS).write_text(sums, "utf-8")
    logger.info("%d of %d prunable kernels permuted, in %s", found.permuted, found.prunable, folder)
    return found


def _tensors(plan: ModelPlan, store: Store, names: dict[Any, str]) -> dict[int, str]:
    """The names of the tensors that the plan reads or moves, by the position of their variable."""
    needed = {kernel.variable for kernel in plan.plan.kernels}
    needed.update(place.variable for group in plan.plan.groups for place in group.places)
    found = {}
    for variable in sorted(needed):
        weight = plan.graph.variables[variable]
        name, shape = names.get(variable_key(weight)), tuple(int(n) for n in weight.shape)
        if name not in store.arrays:
            known = ", ".join(sorted(store.arrays)[:3])
            raise ValueError(
                f"{str(store.path)!r} has no tensor {name or weight.name!r}, of shape {shape}; it has {known}, ... "
                "Pass names=, which gives the name of a variable's tensor"
            )
        if store.arrays[name].shape != shape:
            raise ValueError(
                f"the tensor {name!r} has shape {store.arrays[name].shape} in the files, and {shape} in the model"
            )
        found[variable] = name
    slots = [name for name in store.arrays if ".OPTIMIZER_SLOT" in name or name.startswith("optimizer/")]
    if slots:
        raise ValueError(
            f"{str(store.path)!r} holds the state of an optimizer ({slots[0]!r}), which would no longer fit: save the "
            "weights alone"
        )
    return found


def _write(
    plan: ModelPlan,
    orders: list[np.ndarray],
    store: Store,
    folder: Path,
    tensors: dict[int, str],
    prune: bool,
    journal: Journal,
    executor: Executor | None,
) -> None:
    """Writes the files that are not there yet, then those that say where tensors are."""
    moves = variable_moves(plan, orders)
    pruned = {kernel.variable: kernel.reduction_axes for kernel in plan.plan.kernels} if prune else {}
    by_file: dict[str, dict[str, TensorChange]] = {name: {} for name in store.files}
    for variable, name in tensors.items():
        if variable in moves or variable in pruned:
            array = store.arrays[name].reshape(plan.shape(variable))
            along = plan.along(variable, moves.get(variable, ()))
            change = TensorChange(array, along, pruned.get(variable, ()))
            by_file[os.path.basename(array.path)][name] = change
    checked = store.kind == "checkpoint"
    todo = [name for name in store.files if not (name.endswith(".index") or journal.has(name))]
    tasks = [
        Task(
            f"the writing of {name!r}",
            (store.folder / name).stat().st_size,
            write_file,
            (str(store.folder / name), str(folder / name), by_file[name], plan.pattern, checked),
        )
        for name in todo
    ]
    if executor is None:
        for name, task in zip(todo, tasks, strict=True):
            journal.add_file(name, **write_file(*task.arguments)._asdict())
    else:
        with in_window(executor, tasks) as results:
            written: Written
            for number, written in results:
                journal.add_file(todo[number], **written._asdict())
    for name in store.files:
        if checked and name.endswith(".index"):
            sums = {key: crc for found in journal.files.values() for key, crc in found["checksums"].items()}
            _write_index(store.folder / name, folder / name, sums)
            journal.add_file(name, sha256=sha256(folder / name), checksums={})


def _write_index(source: Path, target: Path, checksums: dict[str, int]) -> None:
    partial = target.with_name(f"{target.name}{PARTIAL}")
    partial.write_bytes(with_checksums(source.read_bytes(), checksums))
    os.replace(partial, target)
