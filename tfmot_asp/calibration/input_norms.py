"""How large each input of each kernel is on the data: one pass of the dense model, for scores to permute by."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfmot_asp.calibration.kernel_products import KernelMatrix, NotFollowedError, ProductFinder, Site
from tfmot_asp.calibration.rows import spread
from tfmot_asp.calibration.traced import TracedModel
from tfmot_asp.graph.execute import Interpreter, last_uses
from tfmot_asp.graph.flat_graph import Op, Tensor
from tfmot_asp.keras_models.kernels import Kernel
from tfmot_asp.keras_models.variables import read

_ROWS = 8192
_SAMPLES = 64
"""About as many samples are looked at where there are more: norms need few."""


def activation_scores(kernels: Mapping[str, Kernel], traced: Sequence[TracedModel]) -> dict[str, np.ndarray]:
    """|w| times the root mean square of the weight's input (Wanda), for each kernel whose inputs can be followed.

    Args:
        kernels: by name.
        traced: the model, for all batches.

    Returns:
        Scores of each kernel's shape, float32; for other kernels |w|.
    """
    squares = {name: np.zeros(KernelMatrix(kernel).size) for name, kernel in kernels.items()}
    counts = dict.fromkeys(kernels, 0)
    every = max(1, sum(batch.samples for each in traced for batch in each.batches) // _SAMPLES)
    chosen = [each.batches[::every] for each in traced]
    samples = sum(batch.samples for batches in chosen for batch in batches)
    for each, batches in zip(traced, chosen, strict=True):
        interpreter = Interpreter(each.graph)
        finder = ProductFinder(each.graph, interpreter)
        readers: dict[Op | None, list[tuple[str, Site]]] = {}
        targets: set[Tensor] = set()
        for name, kernel in kernels.items():
            try:
                sites = finder.sites(kernel)
            except NotFollowedError:
                continue
            for site in sites:
                readers.setdefault(site.data.op, []).append((name, site))
                targets.add(site.data)
        ops = _ops_for(targets, interpreter)
        last = last_uses(ops, ())
        rng = np.random.default_rng(0)
        for batch in batches:
            values = dict(zip(each.graph.inputs, batch.leaves, strict=True))
            for op in [None, *ops]:
                if op is not None:
                    results = interpreter.run(op, interpreter.inputs_of(op, values))
                    values.update(zip(op.outputs, results, strict=True))
                for name, site in readers.get(op, ()):
                    _add(site, values[site.data], batch.samples / samples, rng, squares[name])
                    counts[name] = 1
                for tensor in last.get(op, ()) if op is not None else ():
                    values.pop(tensor, None)
    scores = {}
    for name, kernel in kernels.items():
        weight = np.abs(read(kernel.tf_variable).astype(np.float32))
        norms = np.sqrt(squares[name]).astype(np.float32)
        scores[name] = weight * KernelMatrix(kernel).per_row(norms) if counts[name] and norms.any() else weight
    return scores


def _add(site: Site, data: Any, share: float, rng: np.random.Generator, squares: np.ndarray) -> None:
    count = site.rows.count([int(size) for size in data.shape])
    if not count:
        return
    positions = spread(count, max(1, math.ceil(_ROWS * share)), rng)
    rows = site.rows.take(data, positions).numpy()
    sums = np.nan_to_num(np.einsum("brk,brk->bk", rows, rows)) * (count / rows.shape[1])
    for block in site.blocks:
        found = sums[block.source]
        squares[block.rows] += found if block.order is None else found[block.order]


def _ops_for(targets: set[Tensor], interpreter: Interpreter) -> list[Op]:
    needed: set[Op] = set()
    stack = [t.op for t in targets if t.op is not None]
    while stack:
        op = stack.pop()
        if op not in needed:
            needed.add(op)
            stack.extend(t.op for t in op.inputs if t.op is not None and t in interpreter.varying)
    return sorted(needed, key=lambda op: op.index)
