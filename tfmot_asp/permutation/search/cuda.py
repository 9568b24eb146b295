"""The search on a CUDA device, with CuPy: the same rounds as ``cpu``, of many matrices at a time.

A task is one block of stripes of one chain of one matrix. Each step is four launches for all tasks that have rounds
left, so that small matrices, which cannot fill a chip, share it. They end one after the other: tasks are sorted by how
many rounds they have, and a step works on the first of them. A launch takes the host longer than a small matrix needs
for it: steps that differ in their number alone are captured once, as a CUDA graph of ``IN_FLIGHT`` steps, and repeated.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tfmot_asp.permutation.search import geometry, loader
from tfmot_asp.permutation.search.annealing import bounds, deal, deals_at_once, hottest, sample_positions
from tfmot_asp.permutation.search.counter_random import gumbel_table, host_keys
from tfmot_asp.permutation.search.cpu import Tick
from tfmot_asp.permutation.search.effort import Workload

IN_FLIGHT = 32
"""Steps queued between looks at progress, deadline and signals."""

WORTH_A_GRAPH = 4
"""Times that a graph of that many steps must run for its capture to pay."""

FIELDS = (
    "stripes",
    "stripes_step",
    "key",
    "key_step",
    "span",
    "rounds",
    "total",
    "hottest",
    "size",
    "slot",
    "square",
    "codes",
    "thresholds",
    "state",
    "rows",
    "columns",
)
"""Of a task, all int64: the struct Task of cuda/search.cu."""

_Order = npt.NDArray[np.int64]


class Problem(NamedTuple):
    """A matrix to search: its codes, uint16 (columns, rows), see ``fixed_point``, and how much work to spend on it."""

    codes: npt.NDArray[np.uint16]
    work: Workload

    @property
    def rounds(self) -> int:
        return self.work.epochs * self.work.rounds


def search_all(
    problems: Sequence[Problem], n: int, keep: int, seed: int, tick: Tick
) -> tuple[list[list[_Order]], bool]:
    """For each problem what ``cpu.search_codes`` finds, an order per chain; and whether it was stopped early."""
    import cupy

    device, stream = cupy.cuda.Device(), cupy.cuda.Stream(non_blocking=True)  # the default one cannot be captured
    try:
        with stream:
            module = loader.module(n, keep, device.id)
            return _search(_Batch(cupy, module, problems, n, seed, device.attributes), tick)
    finally:
        cupy.get_default_memory_pool().free_all_blocks(stream)  # which no other stream could use


def _search(batch: _Batch, tick: Tick) -> tuple[list[list[_Order]], bool]:
    batch.heat()
    rounds = [problem.rounds for problem in batch.problems]
    steps, amount = max(rounds), sum(rounds)
    waiting: list[Any] = []
    stopped, done = tick(0.0), 0
    while done < steps and not stopped:
        done += batch.steps(done)
        event = batch.cupy.cuda.Event(disable_timing=True)
        event.record()
        waiting.append((event, done))
        while len(waiting) > (done < steps):  # one is left to run while the next is queued
            event, reached = waiting.pop(0)
            event.synchronize()
            stopped = tick(sum(min(count, reached) for count in rounds) / amount)
    return batch.orders(), stopped and done < steps


class _Dealt(NamedTuple):
    """Where a problem's stripes and keys of a span of epochs are in the arrays of all."""

    stripes: int
    key: int
    span: int


class _Batch:
    """Device arrays of all problems, and the launches that change them."""

    def __init__(
        self, cupy: Any, module: Any, problems: Sequence[Problem], n: int, seed: int, attributes: dict[str, int]
    ) -> None:
        self.cupy, self.n, self.seed = cupy, n, seed
        self.given = sorted(range(len(problems)), key=lambda i: -problems[i].rounds)
        self.problems = [problems[i] for i in self.given]
        self.processors = attributes["MultiProcessorCount"]
        self.pick = module.get_function("pick_columns")
        self.product = module.get_function("excess_product")
        self.solve = module.get_function("assign")
        self.refresh = module.get_function("refresh_stripes")
        self.advance = module.get_function("advance_clock")
        self.chains, self.dealt_at = self._chains()
        tasks = self._tasks()
        self.sizes, self.rows, self.totals = tasks["size"], tasks["rows"], tasks["total"]
        self.assignment = geometry.assignment(int(self.sizes.max()), attributes["MaxSharedMemoryPerBlockOptin"])
        self.solve.max_dynamic_shared_size_bytes = self.assignment.shared_bytes
        codes = [problem.codes.ravel() for problem in self.problems]
        self.codes = cupy.asarray(codes[0] if len(codes) == 1 else np.concatenate(codes))
        self.thresholds = cupy.empty(sum(p.codes.size * p.work.chains for p in self.problems), np.uint16)
        self.order = cupy.asarray(np.concatenate([np.arange(c, dtype=np.int32) for c in self.chains["columns"]]))
        self.threshold_sum = cupy.zeros(self.order.size, np.uint64)
        slots, squares = int(self.sizes.sum()), int((self.sizes**2).sum())
        self.position, self.index, self.changed = (cupy.zeros(slots, np.int32) for _ in range(3))
        self.excess, self.cost = cupy.zeros(squares, np.uint64), cupy.empty(squares, np.int32)
        self.dealt = cupy.zeros(sum(d.span * self._stripes(p) * p.work.chains for p, d in self._dealt()), np.int32)
        self.keys = cupy.zeros(sum(d.span * p.work.chains * p.work.blocks for p, d in self._dealt()), np.uint64)
        self.table = cupy.asarray(gumbel_table())
        self.task_of_slot = cupy.asarray(np.repeat(np.arange(len(tasks), dtype=np.int32), self.sizes))
        self.host_tasks = tasks
        self.tasks = self._upload(tasks)
        self.clock = cupy.zeros(1, np.int64)
        self._active = -1
        self._graph: Any = None
        self._prepare()

    # Where everything is

    def _stripes(self, problem: Problem) -> int:
        return -(-problem.codes.shape[0] // self.n)

    def _dealt(self) -> list[tuple[Problem, _Dealt]]:
        return list(zip(self.problems, self.dealt_at, strict=True))

    def _chains(self) -> tuple[npt.NDArray[Any], list[_Dealt]]:
        """A task per chain, of all its stripes; and where problems' dealt stripes are."""
        chains, dealt = [], []
        codes = thresholds = state = slot = stripes = key = 0
        for problem in self.problems:
            (columns, rows), work, size = problem.codes.shape, problem.work, self._stripes(problem)
            for _ in range(work.chains):
                chains.append(_task(span=1, rounds=1, size=size, slot=slot, codes=codes, thresholds=thresholds,
                                    state=state, rows=rows, columns=columns))  # fmt: skip
                thresholds, state, slot = thresholds + problem.codes.size, state + columns, slot + size
            codes += problem.codes.size
            span = deals_at_once(size, work)
            dealt.append(_Dealt(stripes, key, span))
            stripes, key = stripes + span * size * work.chains, key + span * work.chains * work.blocks
        return np.array(chains, _TASK), dealt

    def _tasks(self) -> npt.NDArray[Any]:
        """The tasks, those of the longest problem first. The temperature is not known yet."""
        tasks, slot, square, chain = [], 0, 0, 0
        for problem, dealt in self._dealt():
            work, stripes = problem.work, self._stripes(problem)
            edges = bounds(stripes, work)
            for c in range(work.chains):
                for block, (first, last) in enumerate(itertools.pairwise(edges)):
                    task = self.chains[chain].copy()
                    task["stripes"], task["stripes_step"] = dealt.stripes + c * dealt.span * stripes + first, stripes
                    task["key"] = dealt.key + c * dealt.span * work.blocks + block
                    task["key_step"], task["span"] = work.blocks, dealt.span
                    task["rounds"], task["total"] = work.rounds, problem.rounds
                    task["size"], task["slot"], task["square"] = last - first, slot, square
                    tasks.append(task)
                    slot, square = slot + int(last - first), square + int(last - first) ** 2
                chain += 1
        return np.array(tasks, _TASK)

    def _upload(self, tasks: npt.NDArray[Any]) -> Any:
        return self.cupy.asarray(tasks.view(np.int64))

    # What is done once

    def _prepare(self) -> None:
        """Thresholds of the given order."""
        sizes = self.chains["size"]
        self.refresh(
            (int(sizes.sum()),),
            (geometry.THREADS,),
            (self._upload(self.chains), self.cupy.asarray(np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)),
             self.cupy.arange(int(sizes.max()), dtype=np.int32), self.clock, np.int64(0), np.uint64(0), self.codes,
             self.thresholds, self.order, self.threshold_sum),
        )  # fmt: skip

    def heat(self) -> None:
        """Sets the temperatures, from the gains of a sample of swaps, as ``moves.typical_gain`` has them."""
        cupy = self.cupy
        first = np.cumsum([0, *(p.work.chains for p in self.problems)])[:-1]
        samples = [sample_positions(p.codes.shape[0], self.n) for p in self.problems]
        tasks = self.chains[first].copy()
        tasks["size"] = sizes = np.array([len(sample) for sample in samples])
        tasks["slot"] = np.cumsum([0, *sizes[:-1]])
        tasks["square"] = squares = np.cumsum([0, *sizes[:-1] ** 2])
        launch = geometry.product(sizes, tasks["rows"], self.processors)
        sums = cupy.zeros(int((sizes**2).sum()), np.uint64)
        index = cupy.asarray(np.concatenate(samples).astype(np.int32))
        self.product(
            (len(launch.work),),
            (geometry.THREADS,),
            (self._upload(tasks), cupy.asarray(launch.work), self.keys, self.clock, np.int64(0), self.table,
             self.threshold_sum, index, self.codes, self.thresholds, np.int64(launch.rows_per_split), sums),
        )  # fmt: skip
        excess = cupy.asnumpy(sums).astype(np.int64)
        task = 0
        for problem, size, square in zip(self.problems, sizes, squares, strict=True):
            found = excess[square : square + size**2].reshape(size, size)
            own = np.diag(found)
            gains = np.abs(found + found.T - own[:, None] - own[None, :])
            unit = int(np.tril(gains, -1).sum()) // max(int(size) * (int(size) - 1) // 2, 1)
            count = problem.work.chains * problem.work.blocks
            self.host_tasks["hottest"][task : task + count] = hottest(unit)
            task += count
        self.tasks = self._upload(self.host_tasks)

    # What is done at each step

    def steps(self, done: int) -> int:
        """Queues up to ``IN_FLIGHT`` of the steps that follow those that are done; returns how many."""
        self._deal(done)
        alike = self._alike(done)
        active = int((self.totals > done).sum())
        if active != self._active:
            launch = geometry.product(self.sizes[:active], self.rows[:active], self.processors)
            self._work, self._rows_per_split = self.cupy.asarray(launch.work), launch.rows_per_split
            self._active, self._graph = active, None
        if self._graph is None and done and alike >= WORTH_A_GRAPH * IN_FLIGHT:  # kernels that have run are loaded
            stream = self.cupy.cuda.get_current_stream()
            stream.begin_capture()
            try:
                self._queue(IN_FLIGHT)
            finally:  # a stream that captures can do nothing else
                graph = stream.end_capture()
            self._graph = graph
        count = min(alike, IN_FLIGHT)
        if self._graph is not None and count == IN_FLIGHT:
            self._graph.launch()
        else:
            self._queue(count)
        return count

    def _deal(self, step: int) -> None:
        """Deals out the stripes of the next span of epochs, of the problems that have come to the end of theirs."""
        for problem, dealt in self._dealt():
            work, stripes = problem.work, self._stripes(problem)
            epoch, late = divmod(step, work.rounds)
            if step >= problem.rounds or late or epoch % dealt.span:
                continue
            epochs = range(epoch, min(epoch + dealt.span, work.epochs))
            for c in range(work.chains):
                at = dealt.stripes + c * dealt.span * stripes
                order = deal(stripes, work, self.seed, c, epochs).astype(np.int32).ravel()
                self.dealt[at : at + order.size] = self.cupy.asarray(order)
                at = dealt.key + c * dealt.span * work.blocks
                keys = host_keys(self.seed, c, epochs, work.blocks).ravel()
                self.keys[at : at + keys.size] = self.cupy.asarray(keys)

    def _alike(self, done: int) -> int:
        """How many steps from here on have the same tasks, and stripes that are dealt out."""
        ends = [problem.rounds for problem in self.problems if problem.rounds > done]
        for problem, dealt in self._dealt():
            span = dealt.span * problem.work.rounds
            ends += [(done // span + 1) * span] if problem.rounds > done else []
        return min(ends) - done

    def _queue(self, count: int) -> None:
        """Queues steps of all tasks that have one, and moves the clock on."""
        threads, rows_per_split = (geometry.THREADS,), np.int64(self._rows_per_split)
        slots = int(self.sizes[: self._active].sum())
        for ahead in map(np.int64, range(count)):
            self.pick(
                (self._active,),
                threads,
                (self.tasks, self.dealt, self.keys, self.clock, ahead, self.order, self.position, self.index),
            )
            self.product(
                (len(self._work),),
                threads,
                (self.tasks, self._work, self.keys, self.clock, ahead, self.table, self.threshold_sum, self.index,
                 self.codes, self.thresholds, rows_per_split, self.excess),
            )  # fmt: skip
            self.solve(
                (self._active,),
                (self.assignment.threads,),
                (self.tasks, np.int32(self.assignment.shared_bytes // 4), self.position, self.index, self.excess,
                 self.cost, self.order, self.changed),
                shared_mem=self.assignment.shared_bytes,
            )  # fmt: skip
            self.refresh(
                (slots,),
                threads,
                (self.tasks, self.task_of_slot, self.dealt, self.clock, ahead, self.changed, self.codes,
                 self.thresholds, self.order, self.threshold_sum),
            )  # fmt: skip
        self.advance((1,), (1,), (self.clock, np.int64(count)))

    def orders(self) -> list[list[_Order]]:
        """Of each problem as it was given, the order of each of its chains."""
        order = self.cupy.asnumpy(self.order).astype(np.int64)
        columns = self.chains["columns"]
        by_chain = iter(np.split(order, np.cumsum(columns)[:-1]))
        found = {
            i: [next(by_chain) for _ in range(p.work.chains)] for i, p in zip(self.given, self.problems, strict=True)
        }
        return [found[i] for i in range(len(found))]


_TASK = np.dtype([(name, np.int64) for name in FIELDS])


def _task(**values: int) -> tuple[int, ...]:
    return tuple(values.get(name, 0) for name in FIELDS)
