"""Orders for stripes that several groups share, or one group's blocks: swaps, as long as they gain.

The search orders the whole stripes of one group. Some groups have none, or some channels that lie in no whole stripe of
theirs: interleaved sets after a channel shuffle, the two channels of each group of a group normalization, the edges of
concatenated pieces. What such a stripe keeps depends on several groups at once. So the groups take turns: of all swaps
of two of its channels (or blocks) those that gain most, each in stripes of its own, are made, until none gains.

Scores are integers here, so that a sum does not depend on its order and the result is the same everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from tfmot_asp.keras_models.windows import windows
from tfmot_asp.permutation.groups import Group
from tfmot_asp.permutation.plan import ModelPlan
from tfmot_asp.permutation.search._jit import jit

_PASSES = {"fast": 6, "balanced": 24, "thorough": 96}
_WORK = {"fast": 1e8, "balanced": 5e8, "thorough": 4e9}  # of the swaps tried in one pass, in weights looked at
_CODES = (1 << 20) - 1


def weave(plan: ModelPlan, orders: Sequence[np.ndarray], effort: str) -> list[np.ndarray]:
    """Improves the orders of the groups that share stripes.

    Args:
        plan: of the model.
        orders: of all groups, as the search found them.
        effort: "fast", "balanced" or "thorough".

    Returns:
        The orders of all groups; together they keep at least as much as before.
    """
    orders = [np.array(order) for order in orders]
    woven = [i for i, group in enumerate(plan.plan.groups) if group.woven]
    if not woven:
        return orders
    kernels = sorted({index for i in woven for index in plan.plan.groups[i].kernels})
    largest = max(float(part.max(initial=0)) for index in kernels for _, part in _scores(plan, index))
    if not largest:
        return orders
    states = {
        index: _KernelNow(_codes(plan, index, largest), plan.pattern.block, plan.pattern.kept) for index in kernels
    }
    for level in dict.fromkeys(group.level for group in plan.plan.groups):
        here = [i for i, group in enumerate(plan.plan.groups) if group.level == level]
        for i in here:
            for index in plan.plan.groups[i].kernels:
                if index in states:
                    states[index].move(plan.plan.groups[i].positions_in(index, plan.plan.kernels), orders[i])
        todo = [_SwapsOfGroup(plan, plan.plan.groups[i], states, effort, orders[i]) for i in here if i in woven]
        for _ in range(_PASSES[effort]):
            todo = [swaps for swaps in todo if swaps.improve()]
            if not todo:
                break
    return orders


def _scores(plan: ModelPlan, index: int) -> Iterator[tuple[tuple[slice, ...], np.ndarray]]:
    """The scores of a kernel in float64, window by window."""
    score = plan.score(plan.plan.kernels[index])
    for window in windows(score.shape):
        yield window, np.abs(score[window].astype(np.float64))


def _codes(plan: ModelPlan, index: int, largest: float) -> np.ndarray:
    """The scores of a kernel as integers, its flat reduction axis first."""
    kernel = plan.plan.kernels[index]
    codes = np.empty(kernel.shape, np.int32)
    for window, part in _scores(plan, index):
        codes[window] = np.rint(part * (_CODES / largest))
    return np.ascontiguousarray(kernel.flat(codes))


class _KernelNow:
    """One kernel as it is ordered now: what lies where on its reduction axis, and what each stripe keeps."""

    def __init__(self, codes: np.ndarray, n: int, keep: int):
        self.n, self.keep = n, keep
        self.codes = codes
        self.at = np.arange(len(codes))
        self.kept = np.zeros(-(-len(codes) // n), np.int64)
        self.refresh(np.arange(len(self.kept)))

    def move(self, positions: np.ndarray, order: np.ndarray) -> None:
        self.at[positions] = self.at[positions[:, order]]
        self.refresh(np.unique(positions // self.n))

    def refresh(self, stripes: np.ndarray) -> None:
        for stripe in stripes:
            self.kept[stripe] = _kept(self.codes, self.at, stripe, self.n, self.keep)


class _SwapsOfGroup:
    """The swaps of two channels of a group."""

    def __init__(
        self, plan: ModelPlan, group: Group, states: dict[int, _KernelNow], effort: str, order: np.ndarray
    ) -> None:
        n = plan.pattern.block
        self.order = order
        self.states = [(states[i], group.positions_in(i, plan.plan.kernels)) for i in group.kernels]
        first, second = np.triu_indices(group.size, 1)
        apart = np.zeros(len(first), bool)
        for _, positions in self.states:
            stripes = np.sort(positions // n, axis=0)
            apart |= (stripes[:, first] != stripes[:, second]).any(0)
        work = sum(2 * n * positions.shape[0] * state.codes.shape[1] for state, positions in self.states)
        pairs = np.flatnonzero(apart)
        pairs = pairs[:: max(1, math.ceil(len(pairs) * work / _WORK[effort]))]
        self.first, self.second = first[pairs], second[pairs]

    def improve(self) -> bool:
        """Makes the swaps that gain most, no two of them in one stripe; whether there was one."""
        gains = np.zeros(len(self.first), np.int64)
        for state, positions in self.states:
            _gains(state.codes, state.at, state.kept, positions, self.first, self.second, state.n, state.keep, gains)
        touched = [np.zeros(len(state.kept), bool) for state, _ in self.states]
        found = False
        for pair in np.argsort(-gains, kind="stable"):
            if gains[pair] <= 0:
                break
            both = [self.first[pair], self.second[pair]]
            stripes = [np.unique(positions[:, both] // state.n) for state, positions in self.states]
            if any(seen[own].any() for seen, own in zip(touched, stripes, strict=True)):
                continue
            for seen, own, (state, positions) in zip(touched, stripes, self.states, strict=True):
                seen[own] = True
                state.at[positions[:, both]] = state.at[positions[:, both[::-1]]]
                state.refresh(own)
            self.order[both] = self.order[both[::-1]]
            found = True
        return found


@jit
def _kept(codes, at, stripe, n, keep):
    """What the mask keeps of one stripe, over all rows."""
    first, last = stripe * n, min(stripe * n + n, len(at))
    top = np.zeros(keep, np.int64)
    total = 0
    for r in range(codes.shape[1]):
        for q in range(keep):
            top[q] = 0
        for p in range(first, last):
            value = np.int64(codes[at[p], r])
            for q in range(keep):
                if value > top[q]:
                    top[q], value = value, top[q]
        for q in range(keep):
            total += top[q]
    return total


@jit
def _gains(codes, at, kept, positions, first, second, n, keep, gains):
    """Adds to `gains` what each swap of the channels `first` and `second` would gain; `at` is as before afterwards."""
    copies = positions.shape[0]
    stripes = np.empty(2 * copies, np.int64)
    for pair in range(len(first)):
        a, b = first[pair], second[pair]
        count = 0
        for c in range(copies):
            p, q = positions[c, a], positions[c, b]
            at[p], at[q] = at[q], at[p]
            for stripe in (p // n, q // n):
                known = False
                for s in range(count):
                    known = known or stripes[s] == stripe
                if not known:
                    stripes[count] = stripe
                    count += 1
        for s in range(count):
            gains[pair] += _kept(codes, at, stripes[s], n, keep) - kept[stripes[s]]
        for c in range(copies):
            p, q = positions[c, a], positions[c, b]
            at[p], at[q] = at[q], at[p]
