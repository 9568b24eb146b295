"""The search on CPU threads."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import numpy.typing as npt

from tfmot_asp.permutation.search.annealing import bounds, deal, deals_at_once, sample_positions, temperatures
from tfmot_asp.permutation.search.counter_random import gumbel_table, host_keys
from tfmot_asp.permutation.search.effort import Workload
from tfmot_asp.permutation.search.moves import DONE, STOP, anneal_block, prepare, typical_gain

SPAN = 64
"""Stripes prepared in one job."""
POLL = 0.05
"""Seconds between looks at progress, deadline and signals while threads compute."""

_Order = npt.NDArray[np.int64]
Tick = Callable[[float], bool]
"""Called with the fraction done, about every POLL seconds, in the caller's thread; returns whether to stop."""


def search_codes(
    codes: npt.NDArray[np.uint16], n: int, keep: int, work: Workload, seed: int, threads: int, tick: Tick
) -> tuple[list[_Order], bool]:
    """Anneals all chains.

    Args:
        codes: uint16 (columns, rows), see ``fixed_point``.
        n, keep: stripe width and values kept of it.
        work: how much work.
        seed: of all random numbers.
        threads: CPU threads to use; no effect on the result.
        tick: progress, and the wish to stop.

    Returns:
        One order per chain, int64 (columns,), and whether it was stopped before the work was done.
    """
    columns = codes.shape[0]
    start = _Chain(codes, np.arange(columns))
    stripes = -(-columns // n)
    with _pool(threads) as pool:
        run = _Run(pool, tick)
        spans = [(first, min(first + SPAN, stripes)) for first in range(0, stripes, SPAN)]
        stopped = run.all([(prepare, (*start.state, *span, n, keep)) for span in spans])
        chains = [start if c == work.chains - 1 else start.copy() for c in range(work.chains)]
        unit = int(typical_gain(start.codes, start.thresholds, sample_positions(columns, n)))
        table = gumbel_table()
        edges, span = bounds(stripes, work), deals_at_once(stripes, work)
        for epoch in range(work.epochs):
            if stopped:
                break
            if epoch % span == 0:
                epochs = range(epoch, min(epoch + span, work.epochs))
                dealt = [deal(stripes, work, seed, c, epochs) for c in range(work.chains)]
                keys = [host_keys(seed, c, epochs, work.blocks) for c in range(work.chains)]
            heat = temperatures(work, unit, epoch)
            jobs = []
            controls = []
            for c, chain in enumerate(chains):
                for b in range(work.blocks):
                    block, key = dealt[c][epoch % span, edges[b] : edges[b + 1]], keys[c][epoch % span, b]
                    control = np.zeros(2, np.int64)
                    controls.append(control)
                    jobs.append((anneal_block, (*chain.state, block, n, keep, heat, table, key, control)))
            stopped = run.all(jobs, controls, epoch / work.epochs, 1 / (work.epochs * work.rounds * len(jobs)))
    return [chain.order for chain in chains], stopped


class _Chain:
    """One annealing's state; the codes are shared, everything that changes is its own."""

    def __init__(self, codes: npt.NDArray[np.uint16], order: _Order) -> None:
        self.codes = codes
        self.thresholds = np.zeros_like(codes)
        self.order = order

    @property
    def state(self) -> tuple[Any, ...]:
        return self.codes, self.thresholds, self.order

    def copy(self) -> _Chain:
        other = _Chain(self.codes, self.order.copy())
        other.thresholds[:] = self.thresholds
        return other


@contextlib.contextmanager
def _pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(threads, thread_name_prefix="tfmot_asp_search")
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _Run:
    """Runs jobs on the pool while the caller's thread stays free for signals, progress and the deadline."""

    def __init__(self, pool: ThreadPoolExecutor, tick: Tick) -> None:
        self.pool = pool
        self.tick = tick

    def all(
        self, jobs: list[Any], controls: Sequence[npt.NDArray[np.int64]] = (), before: float = 0.0, step: float = 0.0
    ) -> bool:
        """Runs all jobs, (function, arguments) each.

        Args:
            controls: their control arrays (see ``anneal_block``).
            before: progress so far. step: progress that one round counts.

        Returns:
            Whether the tick asked to stop. Whatever is raised meanwhile, by a job, by the tick or by a signal, stops
            all jobs and is raised.
        """
        pending: set[Future[Any]] = {self.pool.submit(function, *arguments) for function, arguments in jobs}
        stop = False
        try:
            while pending:
                done, pending = wait(pending, timeout=POLL)
                for future in done:
                    future.result()
                rounds = sum(int(control[DONE]) for control in controls)
                if not stop and self.tick(before + step * rounds):
                    stop = True
                    for control in controls:
                        control[STOP] = 1
        except BaseException:
            for control in controls:
                control[STOP] = 1
            for future in pending:
                future.cancel()
            raise
        return stop
