"""One pass over model and data in which kernels are pruned in order of execution.

Each kernel sees its inputs as the pruned layers in front of it make them, next to those of the dense model, so that
what earlier layers lost can be made up for. The model is not written: weights and statistics are returned.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tfmot_asp.calibration.calibration_report import CalibratedKernel, CalibrationReport, OutputComparison
from tfmot_asp.calibration.data import CalibrationBatch
from tfmot_asp.calibration.factors import Factors
from tfmot_asp.calibration.kernel_products import KernelBlock, KernelMatrix, NotFollowedError, ProductFinder, Site
from tfmot_asp.calibration.norm_statistics import ChannelMoments, NormSite, moved, norm_sites
from tfmot_asp.calibration.op_order import Change, Step, schedule
from tfmot_asp.calibration.reconstruct import Reconstruction, reconstruct
from tfmot_asp.calibration.rows import spread
from tfmot_asp.calibration.spill import MEMORY, Shelf
from tfmot_asp.calibration.statistics import MomentsAccumulator
from tfmot_asp.calibration.streams import Batches, Pair, Streams
from tfmot_asp.calibration.traced import TracedModel, nearest_mask, row_weights
from tfmot_asp.graph.flat_graph import Tensor
from tfmot_asp.keras_models.batch_norm import BatchNorm, batch_norms
from tfmot_asp.keras_models.kernels import Kernel, Scores, scores_of
from tfmot_asp.keras_models.variables import read
from tfmot_asp.masks import apply_mask, m_by_n_mask
from tfmot_asp.pattern import TWO_FOUR, Pattern
from tfmot_asp.reports.progress_bar import progress_bar

logger = logging.getLogger(__name__)

_ROWS = 1 << 16
_WORK = 4e11


@dataclass(frozen=True)
class Options:
    """How kernels are pruned with data; see ``prune_trained_model``."""

    pattern: Pattern = TWO_FOUR
    method: str = "reconstruction"
    effort: str = "balanced"
    scores: Scores | None = None
    batch_norm: str = "relative"
    seed: int = 0
    progress: bool | None = None
    memory: int | None = None


@dataclass
class Calibrated:
    """What a pass found; nothing is written yet.

    Attributes:
        weights, masks: of each kernel, by name, in its own shape.
        statistics: new values of batch normalizations' variables.
        report: what was done.
    """

    weights: dict[str, np.ndarray]
    masks: dict[str, np.ndarray]
    statistics: list[tuple[Any, np.ndarray]]
    report: CalibrationReport


def calibrate(model: Any, kernels: Mapping[str, Kernel], traced: Sequence[TracedModel], options: Options) -> Calibrated:
    """Prunes kernels on data, one after the other.

    Args:
        model: Keras model; not changed.
        kernels: to prune, by name, each variable once.
        traced: the model, for all batches.
        options: how.

    Returns:
        The new weights, masks and statistics.

    Raises:
        ValueError: for activations that are not finite, or scores that do not fit.
    """
    return _Pass(model, kernels, traced, options).run()


@dataclass(frozen=True, eq=False)
class _Kernels:
    """Kernels that see the same inputs, so that one set of moments serves them all."""

    names: tuple[str, ...]


@dataclass(eq=False)
class _Lane:
    """One traced graph in a pass."""

    traced: TracedModel
    streams: Streams
    sites: dict[str, list[Site]]
    norms: dict[int, list[NormSite]]
    steps: list[Step] = field(default_factory=list)
    masks: dict[Tensor, Tensor | None] = field(default_factory=dict)

    def mask_of(self, data: Tensor) -> Tensor | None:
        """The Keras mask that says which positions of a tensor are padding."""
        if data not in self.masks:
            self.masks[data] = nearest_mask(data, self.traced.masks)
        return self.masks[data]

    def needed(self, data: Tensor) -> tuple[Tensor, ...]:
        mask = self.mask_of(data)
        return (data,) if mask is None else (data, mask)


class _Pass:
    def __init__(
        self, model: Any, kernels: Mapping[str, Kernel], traced: Sequence[TracedModel], options: Options
    ) -> None:
        self.model, self.kernels, self.options = model, kernels, options
        self.matrices = {name: KernelMatrix(kernel) for name, kernel in kernels.items()}
        self.samples = sum(batch.samples for each in traced for batch in each.batches)
        self.norms: list[BatchNorm] = batch_norms(model)
        self.reasons: dict[str, str] = {}
        self.lanes = [self._lane(each) for each in traced]
        self.weights: dict[str, np.ndarray] = {}
        self.masks: dict[str, np.ndarray] = {}
        self.statistics: list[tuple[Any, np.ndarray]] = []
        self.entries: dict[str, CalibratedKernel] = {}
        self.moved_norms = 0

    def _lane(self, traced: TracedModel) -> _Lane:
        streams = Streams(traced.graph)
        finder = ProductFinder(traced.graph, streams.dense)
        sites: dict[str, list[Site]] = {}
        for name, kernel in self.kernels.items():
            try:
                sites[name] = finder.sites(kernel)
            except NotFollowedError as reason:
                self.reasons[name] = str(reason)
        norms = {i: norm_sites(traced.graph, streams.dense, norm) for i, norm in enumerate(self.norms)}
        return _Lane(traced, streams, sites, norms)

    def run(self) -> Calibrated:
        begin = time.perf_counter()
        for name in self.reasons:
            self._by_magnitude(name, f"kept its mask by magnitude: {self.reasons[name]}")
        self._plan()
        shelf = Shelf(MEMORY if self.options.memory is None else self.options.memory)
        try:
            states = [
                Batches([lane.streams.start(batch.leaves) for batch in lane.traced.batches], shelf)
                for lane in self.lanes
            ]
            steps = self.lanes[0].steps
            work = len(self.kernels) - len(self.reasons)
            with progress_bar(work, "calibrate", self.options.progress, unit="kernel") as bar:
                for number, step in enumerate(steps):
                    change = step.change
                    if change is None:
                        outputs = self._finish(states)
                    elif isinstance(change.what, _Kernels):
                        bar.set_postfix_str(change.what.names[0])
                        self._prune(number, change.what.names, states)
                        bar.update(len(change.what.names))
                    else:
                        self._normalize(number, change.what, states)
        finally:
            shelf.close()
        report = CalibrationReport(
            method=self.options.method,
            effort=self.options.effort,
            samples=self.samples,
            batches=sum(len(lane.traced.batches) for lane in self.lanes),
            kernels=tuple(self.entries.values()),
            outputs=tuple(outputs),
            batch_norms=self.moved_norms,
            batch_norm=self.options.batch_norm,
            seconds=time.perf_counter() - begin,
        )
        return Calibrated(self.weights, self.masks, self.statistics, report)

    # The order of things

    def _plan(self) -> None:
        whats: list[Any] | None = None
        for lane in self.lanes:
            if whats is None:
                groups: dict[Any, list[str]] = {}
                for name, sites in sorted(lane.sites.items(), key=lambda item: item[1][0].op.index):
                    if name not in self.reasons:
                        groups.setdefault(tuple(site.key for site in sites), []).append(name)
                whats = [_Kernels(tuple(names)) for names in groups.values()]
                whats += [i for i, sites in lane.norms.items() if sites]
            changes = [self._change(lane, what) for what in whats]
            lane.steps = schedule(
                lane.traced.graph,
                changes,
                lane.streams.varying,
                lane.streams.fixed_variables,
                lane.traced.graph.outputs,
            )
            whats = [step.change.what for step in lane.steps if step.change is not None]

    def _change(self, lane: _Lane, what: Any) -> Change:
        graph = lane.traced.graph
        if isinstance(what, _Kernels):
            variables = [graph.variable_index(self.kernels[name].variable) for name in what.names]
            data = [site.data for site in lane.sites[what.names[0]]]
        else:
            variables = [graph.variable_index(v) for v in (self.norms[what].mean, self.norms[what].variance)]
            data = [site.data for site in lane.norms[what]]
        found = tuple(v for v in variables if v is not None)
        return Change(what, found, tuple(lane.needed(tensor) for tensor in data))

    def _batches(self, number: int, states: Sequence[Batches]) -> Any:
        """Runs the ops of a step, batch by batch; gives lane, batch, its state, and which sites are ready."""
        for lane, batches in zip(self.lanes, states, strict=True):
            step = lane.steps[number]
            for batch, state in zip(lane.traced.batches, batches, strict=True):
                lane.streams.run(step.ops, state, step.freed)
                yield lane, batch, state, step.sites
                for tensor in step.freed.get(None, ()):
                    state.pop(tensor, None)

    # What happens to a kernel

    def _prune(self, number: int, names: tuple[str, ...], states: Sequence[Batches]) -> None:
        begin = time.perf_counter()
        accumulators: dict[Any, MomentsAccumulator] = {}
        rng = np.random.default_rng([self.options.seed, number])
        for lane, batch, state, ready in self._batches(number, states):
            for index in ready:
                site = lane.sites[names[0]][index]
                self._look(lane, site, batch, state, accumulators, len(ready), rng, names[0])
        results: dict[str, list[tuple[KernelBlock, Reconstruction]]] = {name: [] for name in names}
        rows = 0
        for key, accumulator in list(accumulators.items()):
            try:
                moments = accumulator.result()
            except ValueError as error:
                raise ValueError(f"the data shows {names[0]!r} no input that counts: {error}") from None
            del accumulators[key]
            rows = moments.rows
            factors = Factors(moments)
            for name in names:
                for block in self.lanes[0].sites[name][0].blocks:
                    if block.key == key:
                        results[name].append((block, self._reconstruct(name, block, factors)))
        seconds = (time.perf_counter() - begin) / len(names)
        for name in names:
            if results[name]:
                self._keep(name, results[name], rows, seconds)
            else:
                self._by_magnitude(name, "kept its mask by magnitude: its input depends on its own output")
        logger.debug("%s: %d rows, %.1f s", ", ".join(names), rows, time.perf_counter() - begin)

    def _look(
        self,
        lane: _Lane,
        site: Site,
        batch: CalibrationBatch,
        state: dict[Tensor, Pair],
        accumulators: dict[Any, MomentsAccumulator],
        sites: int,
        rng: np.random.Generator,
        name: str,
    ) -> None:
        """Adds what a kernel reads in one batch."""
        pair = lane.streams.value(site.data, state)
        shape = tuple(int(size) for size in pair.dense.shape)
        weights = self._weights(lane, site.data, batch, state, site.rows.leading(shape))
        counting = None if weights is None else np.flatnonzero(weights)
        count = site.rows.count(shape) if counting is None else len(counting)
        size = len(site.blocks[0].rows)
        wanted = _row_budget(size) * batch.samples / self.samples / sites
        positions = spread(count, max(1, math.ceil(wanted)), rng) if count else np.zeros(0, np.int64)
        if counting is not None:
            positions = counting if positions is None else counting[positions]
        pruned = site.rows.take(pair.pruned, positions).numpy()
        dense = None if pair.same else site.rows.take(pair.dense, positions).numpy()
        chosen = None if weights is None else weights[positions]
        matrix = self.matrices[name]
        for block in {block.key: block for block in site.blocks}.values():
            key = block.key
            if key not in accumulators:
                segments = len(block.rows) // matrix.reduction_size
                accumulators[key] = MomentsAccumulator(
                    len(block.rows), segments=segments, stripe=self.options.pattern.block
                )
            one, other = pruned[block.source], None if dense is None else dense[block.source]
            if block.order is not None:
                one, other = one[:, block.order], None if other is None else other[:, block.order]
            try:
                accumulators[key].add(one, other, chosen)
            except ValueError as error:
                raise ValueError(f"what {name!r} reads cannot be calibrated on: {error}. Nothing was changed") from None

    def _weights(
        self, lane: _Lane, data: Tensor, batch: CalibrationBatch, state: dict[Tensor, Pair], leading: tuple[int, ...]
    ) -> np.ndarray | None:
        """How much each row counts: 0 for padding. None if all count alike."""
        weights = None if batch.weights is None else row_weights(batch.weights, leading)
        mask = lane.mask_of(data)
        if mask is not None:
            shown = row_weights(lane.streams.value(mask, state).dense.numpy().astype(np.float32), leading)
            weights = shown if weights is None else weights if shown is None else weights * shown
        return None if weights is None or (weights == 1).all() else weights

    def _reconstruct(self, name: str, block: KernelBlock, factors: Factors) -> Reconstruction:
        kernel, matrix = self.kernels[name], self.matrices[name]
        weight = _part(matrix.of(read(kernel.tf_variable)), block)
        scores = None
        if self.options.scores is not None:
            scores = _part(matrix.of(scores_of(name, kernel, self.options.scores)), block)
        return reconstruct(
            weight,
            factors,
            m_by_n=self.options.pattern,
            segments=len(block.rows) // matrix.reduction_size,
            method=self.options.method,
            effort=self.options.effort,
            scores=scores,
        )

    def _keep(self, name: str, results: list[tuple[KernelBlock, Reconstruction]], rows: int, seconds: float) -> None:
        kernel, matrix = self.kernels[name], self.matrices[name]
        stored = read(kernel.tf_variable)
        whole = np.zeros_like(matrix.of(stored))
        mask = np.zeros(whole.shape, bool)
        for block, result in results:
            whole[np.ix_(block.rows, block.columns)] = result.weight
            mask[np.ix_(block.rows, block.columns)] = result.mask
        self._set(name, matrix.back(whole), matrix.back(mask))
        before, after = (
            math.sqrt(float(np.mean([getattr(result, error) ** 2 for _, result in results])))
            for error in ("error_before", "error_after")
        )
        note = next((result.note for _, result in results if result.note), None)
        self.entries[name] = CalibratedKernel(name, kernel.layout.kind, rows, before, after, seconds, note)

    def _by_magnitude(self, name: str, note: str) -> None:
        kernel = self.kernels[name]
        stored = read(kernel.tf_variable)
        score = scores_of(name, kernel, self.options.scores)
        mask = np.asarray(m_by_n_mask(score, kernel.layout.reduction_axes, self.options.pattern))
        self._set(name, np.asarray(apply_mask(stored, mask)), mask)
        self.entries[name] = CalibratedKernel(name, kernel.layout.kind, 0, None, None, 0.0, note)

    def _set(self, name: str, weight: np.ndarray, mask: np.ndarray) -> None:
        self.weights[name], self.masks[name] = weight, mask
        for lane in self.lanes:
            variable = lane.traced.graph.variable_index(self.kernels[name].variable)
            if variable is not None:
                lane.streams.assign(variable, weight)

    # CalibrationBatch normalization, and the end

    def _normalize(self, number: int, index: int, states: Sequence[Batches]) -> None:
        norm = self.norms[index]
        dense, pruned = ChannelMoments(), ChannelMoments()
        changed = self.options.batch_norm == "absolute"
        for lane, batch, state, ready in self._batches(number, states):
            for site in (lane.norms[index][i] for i in ready):
                pair = lane.streams.value(site.data, state)
                weights = self._weights(lane, site.data, batch, state, site.leading(pair.dense))
                rows = site.rows(pair.dense)
                dense.add(rows, weights)
                pruned.add(rows if pair.same else site.rows(pair.pruned), weights)
                changed |= not pair.same
        if not changed or not dense.count:
            return
        mean, variance = moved(read(norm.mean), read(norm.variance), dense, pruned, self.options.batch_norm)
        if not np.isfinite(mean).all() or not np.isfinite(variance).all():
            raise ValueError(
                f"what batch normalization {norm.name!r} reads has NaN or infinite values on the data. Nothing was "
                "changed"
            )
        self.moved_norms += 1
        for variable, value in ((norm.mean, mean), (norm.variance, variance)):
            self.statistics.append((variable, value))
            for lane in self.lanes:
                place = lane.traced.graph.variable_index(variable)
                if place is not None:
                    lane.streams.assign(place, value)

    def _finish(self, states: Sequence[Batches]) -> list[Any]:
        outputs = self.lanes[0].traced.graph.outputs
        names = list(getattr(self.model, "output_names", None) or ())
        if len(names) != len(outputs):
            names = [str(i) for i in range(len(outputs))]
        comparisons = [OutputComparison(name) for name in names]
        for lane, _, state, _ in self._batches(len(self.lanes[0].steps) - 1, states):
            for comparison, tensor in zip(comparisons, lane.traced.graph.outputs, strict=True):
                pair = lane.streams.value(tensor, state)
                comparison.add(pair.dense.numpy(), pair.pruned.numpy())
            state.clear()
        return [comparison.result() for comparison in comparisons]


def _part(matrix: np.ndarray, block: KernelBlock) -> np.ndarray:
    if (len(block.rows), len(block.columns)) == matrix.shape and (np.diff(block.columns) == 1).all():
        return matrix
    return matrix[np.ix_(block.rows, block.columns)]


def _row_budget(size: int) -> int:
    """How many rows are looked at: enough for each input several times, but no more work than is needed."""
    return int(min(_ROWS, max(4 * size, _WORK / size**2)))
