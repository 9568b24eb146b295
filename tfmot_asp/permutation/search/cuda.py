"""The search on a CUDA device, with CuPy: the same rounds as ``cpu``, one launch per step for all blocks and chains."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tfmot_asp.permutation.search import geometry, loader
from tfmot_asp.permutation.search.annealing import deal, sample_positions, temperatures
from tfmot_asp.permutation.search.counter_random import gumbel_table, host_key
from tfmot_asp.permutation.search.cpu import Tick
from tfmot_asp.permutation.search.effort import Workload

IN_FLIGHT = 32
"""Rounds queued between looks at progress, deadline and signals."""

_Order = npt.NDArray[np.int64]


def search_codes(
    codes: npt.NDArray[np.uint16], n: int, keep: int, work: Workload, seed: int, tick: Tick
) -> tuple[list[_Order], bool]:
    """As ``cpu.search_codes``, with the same result."""
    import cupy

    device = cupy.cuda.Device()
    search = _Search(cupy, loader.module(n, keep, device.id), codes, n, work, device.attributes)
    unit = search.typical_gain()
    table = cupy.asarray(gumbel_table())
    total = work.epochs * work.rounds
    done = 0
    waiting: list[Any] = []
    stopped = tick(0.0)
    for epoch in range(work.epochs):
        if stopped:
            break
        search.upload(seed, epoch)
        for round_number, temperature in enumerate(temperatures(work, unit, epoch)):
            search.round(round_number, int(temperature), table)
            done += 1
            if done % IN_FLIGHT == 0 or done == total:
                event = cupy.cuda.Event(disable_timing=True)
                event.record()
                waiting.append((event, done))
                if len(waiting) > 1 or done == total:
                    event, rounds = waiting.pop(0)
                    event.synchronize()
                    stopped = tick(rounds / total)
                    if stopped:
                        break
    orders = [order.astype(np.int64) for order in cupy.asnumpy(search.order)]
    return orders, stopped and done < total


class _Search:
    """Device arrays of all chains, and the launches that change them."""

    def __init__(
        self, cupy: Any, module: Any, codes: npt.NDArray[np.uint16], n: int, work: Workload, attributes: dict[str, int]
    ) -> None:
        self.cupy = cupy
        self.n = n
        self.work = work
        self.columns, self.rows = codes.shape
        self.stripes = -(-self.columns // n)
        self.tasks = work.chains * work.blocks
        self.most = -(-self.stripes // work.blocks)
        self.processors = attributes["MultiProcessorCount"]
        self.pick = module.get_function("pick_columns")
        self.product = module.get_function("excess_product")
        self.solve = module.get_function("assign")
        self.refresh = module.get_function("refresh_stripes")
        self.launch = geometry.assignment(
            self.most, attributes["MaxSharedMemoryPerBlockOptin"] - 16 * geometry.THREADS - 1024
        )
        self.solve.max_dynamic_shared_size_bytes = self.launch.shared_bytes
        self.codes = cupy.asarray(codes)
        self.thresholds = cupy.empty((work.chains, *codes.shape), np.uint16)
        self.threshold_sum = cupy.zeros((work.chains, self.columns), np.uint64)
        self.order = cupy.tile(cupy.arange(self.columns, dtype=np.int32), (work.chains, 1))
        self.position = cupy.zeros((self.tasks, self.most), np.int32)
        self.index = cupy.zeros((self.tasks, self.most), np.int32)
        self.changed = cupy.zeros((self.tasks, self.most), np.int32)
        self.excess = cupy.zeros((self.tasks, self.most, self.most), np.uint64)
        self.cost = cupy.empty((self.tasks, self.most, self.most), np.int32)
        self._prepare()

    def _prepare(self) -> None:
        """Thresholds of the given order, once, for all chains."""
        cupy = self.cupy
        zero = cupy.zeros(1, np.int32)
        every = cupy.arange(self.stripes, dtype=np.int32)
        first = cupy.asarray(np.array([0, self.stripes], np.int32))
        self.refresh(
            (self.stripes, 1, 1),
            (geometry.THREADS,),
            (every, first, zero, np.uint64(0), self.codes, self.thresholds, self.order, np.int64(self.rows),
             np.int64(self.columns), np.int32(self.stripes), self.threshold_sum),
        )  # fmt: skip
        for chain in range(1, self.work.chains):
            self.thresholds[chain] = self.thresholds[0]
            self.threshold_sum[chain] = self.threshold_sum[0]

    def typical_gain(self) -> int:
        """As ``moves.typical_gain``."""
        cupy = self.cupy
        picked = sample_positions(self.columns, self.n)
        size = len(picked)
        first = cupy.asarray(np.array([0, size], np.int32))
        sums = cupy.zeros((size, size), np.uint64)
        index = cupy.asarray(picked.astype(np.int32))
        launch = geometry.product(1, size, self.rows, self.processors)
        self.product(
            launch.grid,
            (geometry.THREADS,),
            (first, cupy.zeros(1, np.int32), index, self.codes, self.thresholds, np.int64(self.rows),
             np.int64(self.columns), np.int64(launch.rows_per_split), np.int32(size), sums),
        )  # fmt: skip
        base = cupy.asnumpy(self.threshold_sum[0]).astype(np.int64)[picked]
        excess = cupy.asnumpy(sums).astype(np.int64) - base[:, None]
        own = np.diag(excess)
        gains = np.abs(excess + excess.T - own[:, None] - own[None, :])
        return int(np.tril(gains, -1).sum()) // max(size * (size - 1) // 2, 1)

    def upload(self, seed: int, epoch: int) -> None:
        """Deals out the stripes of an epoch."""
        blocks, chains, keys = [], [], []
        for chain in range(self.work.chains):
            for number, block in enumerate(deal(self.stripes, self.work, seed, chain, epoch)):
                blocks.append(block)
                chains.append(chain)
                keys.append(host_key(seed, chain, epoch, number))
        self.dealt = self.cupy.asarray(np.concatenate(blocks).astype(np.int32))
        self.first = self.cupy.asarray(
            np.concatenate([[0], np.cumsum([len(block) for block in blocks])]).astype(np.int32)
        )
        self.chain = self.cupy.asarray(np.array(chains, np.int32))
        self.key = self.cupy.asarray(np.array(keys, np.uint64))

    def round(self, number: int, temperature: int, table: Any) -> None:
        """Queues one round of all tasks."""
        threads = (geometry.THREADS,)
        rows, columns, most = np.int64(self.rows), np.int64(self.columns), np.int32(self.most)
        self.pick(
            (self.tasks,),
            threads,
            (self.dealt, self.first, self.chain, self.key, np.int32(number), np.int32(self.columns), most, self.order,
             self.position, self.index),
        )  # fmt: skip
        launch = geometry.product(self.tasks, self.most, self.rows, self.processors)
        self.product(
            launch.grid,
            threads,
            (self.first, self.chain, self.index, self.codes, self.thresholds, rows, columns,
             np.int64(launch.rows_per_split), most, self.excess),
        )  # fmt: skip
        self.solve(
            (self.tasks,),
            threads,
            (self.first, self.chain, self.key, np.int32(number), np.int64(temperature), table, self.threshold_sum,
             np.int32(self.columns), most, np.int32(self.launch.near_rows), self.position, self.index, self.excess,
             self.cost, self.order, self.changed),
            shared_mem=self.launch.shared_bytes,
        )  # fmt: skip
        self.refresh(
            (self.most, self.tasks, 1),
            threads,
            (self.dealt, self.first, self.chain, self.changed, self.codes, self.thresholds, self.order, rows, columns,
             most, self.threshold_sum),
        )  # fmt: skip
