"""Reference searches, written plainly in NumPy as the published descriptions go; slow, and meant to be read.

J. Pool, C. Yu, "Channel Permutations for N:M Sparsity", NeurIPS 2021, describes greedy channel swaps and the exhaustive
search over groups of stripes that is applied greedily, best group first.
"""

from __future__ import annotations

import itertools

import numpy as np

Matrix = np.ndarray
Order = np.ndarray


def retained(scores: Matrix, n: int = 4, keep: int = 2) -> float:
    """Sum that the mask keeps; the number of columns must be a multiple of n."""
    stripes = np.abs(scores.astype(np.float64)).reshape(len(scores), -1, n)
    return float(np.sort(stripes, axis=2)[..., n - keep :].sum())


def efficacy(scores: Matrix, order: Order, n: int = 4, keep: int = 2) -> float:
    """Per cent of the gap between the given order and the best half of each row."""
    given = retained(scores, n, keep)
    columns = scores.shape[1]
    ideal = np.sort(np.abs(scores.astype(np.float64)), axis=1)[:, columns - columns * keep // n :].sum()
    return float(100.0 * (retained(scores[:, order], n, keep) - given) / (ideal - given))


def random_orders(scores: Matrix, tries: int, seed: int = 0) -> Order:
    """The best of some random orders."""
    random = np.random.default_rng(seed)
    best = np.arange(scores.shape[1])
    for _ in range(tries):
        order = random.permutation(scores.shape[1])
        if retained(scores[:, order]) > retained(scores[:, best]):
            best = order
    return best


def _stripes_value(scores: Matrix, stripes: np.ndarray, keep: int = 2) -> np.ndarray:
    """What each stripe keeps; stripes is (count, n) of column numbers."""
    values = scores[:, stripes]  # rows, count, n
    n = stripes.shape[1]
    return np.partition(values, n - keep, axis=2)[..., n - keep :].sum(axis=(0, 2))


def channel_swaps(scores: Matrix) -> Order:
    """Greedy pairwise swaps: the best of all swaps, again and again, until none helps."""
    scores = np.abs(scores)
    columns = scores.shape[1]
    order = np.arange(columns)
    pairs = [(a, b) for a in range(columns) for b in range(a + 1, columns) if a // 4 != b // 4]
    gains = np.full((columns, columns), -np.inf)

    def value(a: int, b: int) -> float:
        i, j = a // 4, b // 4
        swapped = order.copy()
        swapped[a], swapped[b] = order[b], order[a]
        both = [4 * i, 4 * j]
        new = np.stack([swapped[first : first + 4] for first in both])
        old = np.stack([order[first : first + 4] for first in both])
        return float((_stripes_value(scores, new) - _stripes_value(scores, old)).sum())

    for a, b in pairs:
        gains[a, b] = value(a, b)
    while True:
        a, b = np.unravel_index(np.argmax(gains), gains.shape)
        if gains[a, b] <= 1e-9:
            return order
        order[a], order[b] = order[b], order[a]
        changed = {int(a) // 4, int(b) // 4}
        for p, q in pairs:  # only swaps that touch a changed stripe have a new gain
            if p // 4 in changed or q // 4 in changed:
                gains[p, q] = value(p, q)


def stripe_groups(scores: Matrix, window: int) -> Order:
    """Exhaustive search of all groups of ``window`` columns (whole stripes), the group with the largest gain first.

    For each group every way to deal its columns out to its stripes is tried. Groups are applied in order of their gain,
    each stripe at most once a round, and only groups with a changed stripe are searched again.
    """
    scores = np.abs(scores)
    columns, size = scores.shape[1], window // 4
    order = np.arange(columns)
    subsets = list(itertools.combinations(range(window), 4))
    number = {subset: k for k, subset in enumerate(subsets)}
    subset_array = np.array(subsets)
    splits = np.array(list(_splits(tuple(range(window)), number)))
    groups = np.array(list(itertools.combinations(range(columns // 4), size)))
    gain = np.zeros(len(groups))
    choice = np.zeros(len(groups), int)
    stale = np.ones(len(groups), bool)
    given = [number[tuple(range(4 * k, 4 * k + 4))] for k in range(size)]
    while True:
        for g in np.flatnonzero(stale):
            members = np.concatenate([order[4 * s : 4 * s + 4] for s in groups[g]])
            values = _stripes_value(scores, members[subset_array])
            totals = values[splits].sum(axis=1)
            choice[g] = int(np.argmax(totals))
            gain[g] = totals[choice[g]] - values[given].sum()
        stale[:] = False
        used: set[int] = set()
        for g in np.argsort(-gain, kind="stable"):
            if gain[g] <= 1e-9:
                break
            if used & set(groups[g].tolist()):
                continue
            members = np.concatenate([order[4 * s : 4 * s + 4] for s in groups[g]])
            for s, subset in zip(groups[g], splits[choice[g]], strict=True):
                order[4 * s : 4 * s + 4] = members[subset_array[subset]]
            used |= set(groups[g].tolist())
        if not used:
            return order
        stale = np.isin(groups, list(used)).any(axis=1)


def _splits(members: tuple[int, ...], number: dict[tuple[int, ...], int]):
    """Ways to deal members out to stripes, as lists of subset numbers: 35 for 8 columns, 5775 for 12."""
    if not members:
        yield []
        return
    for rest in itertools.combinations(members[1:], 3):
        stripe = (members[0], *rest)
        others = tuple(c for c in members if c not in stripe)
        for more in _splits(others, number):
            yield [number[stripe], *more]
