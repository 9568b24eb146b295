"""Slow, obvious float64 versions of each step of pruning with data, in plain (unscaled) coordinates."""

from __future__ import annotations

import itertools

import numpy as np


def moments(pruned: np.ndarray, dense: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """H and D, row by row."""
    size = pruned.shape[1]
    gram, drift = np.zeros((size, size)), np.zeros((size, size))
    for x_pruned, x_dense, weight in zip(pruned.astype(float), dense.astype(float), weights, strict=True):
        gram += weight * np.outer(x_pruned, x_pruned)
        drift += weight * np.outer(x_pruned, x_dense - x_pruned)
    return gram / weights.sum(), drift / weights.sum()


def damped(gram: np.ndarray, damping: float = 0.01) -> np.ndarray:
    mean = np.trace(gram) / len(gram)
    return gram + damping * mean * np.eye(len(gram)) if mean else np.eye(len(gram))


def stripes(rows: int, n: int, segments: int) -> list[list[int]]:
    length = rows // segments
    return [
        [segment * length + row for row in range(first, min(first + n, length))]
        for segment in range(segments)
        for first in range(0, length, n)
    ]


def keeps_pattern(mask: np.ndarray, m: int, n: int, segments: int) -> bool:
    """Exactly n - m of each stripe are kept, or all where it is shorter."""
    counts = [(mask[stripe].sum(0), min(n - m, len(stripe))) for stripe in stripes(len(mask), n, segments)]
    return all((count == expected).all() for count, expected in counts)


def obs_mask(matrix: np.ndarray, target: np.ndarray, m: int, n: int, segments: int) -> np.ndarray:
    """Row by row, column by column: each error goes to all rows after its own, by the inverse of what is left."""
    mask = np.zeros(target.shape, bool)
    for column in range(target.shape[1]):
        weights = target[:, column].astype(float)
        for stripe in stripes(len(target), n, segments):
            # The pivots of the stripe's rows: each is conditioned on the rows after it only.
            pivots = [np.linalg.inv(matrix[row:, row:])[0, 0] for row in stripe]
            order = np.argsort([-(weights[row] ** 2) / p for row, p in zip(stripe, pivots, strict=True)], kind="stable")
            mask[[stripe[i] for i in order[: n - m]], column] = True
            for row in stripe:
                if not mask[row, column]:
                    inverse = np.linalg.inv(matrix[row:, row:])
                    weights[row:] -= weights[row] / inverse[0, 0] * inverse[:, 0]
    return mask


def refit(matrix: np.ndarray, target: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The exact least squares of each column on its support."""
    pull, weight = matrix @ target, np.zeros(target.shape)
    for column in range(target.shape[1]):
        kept = np.flatnonzero(mask[:, column])
        weight[kept, column] = np.linalg.solve(matrix[np.ix_(kept, kept)], pull[kept, column])
    return weight


def loss(matrix: np.ndarray, weight: np.ndarray, target: np.ndarray) -> float:
    difference = weight.astype(float) - target
    return float(np.sqrt(np.sum(difference * (matrix @ difference)) / np.sum(target * (matrix @ target))))


def best_mask(matrix: np.ndarray, target: np.ndarray, m: int, n: int) -> np.ndarray:
    """The mask of least loss after the refit, by trying all, for one column."""
    best, least = np.zeros(target.shape, bool), np.inf
    choices = [itertools.combinations(s, min(n - m, len(s))) for s in stripes(len(target), n, 1)]
    for rows in itertools.product(*choices):
        mask = np.zeros(target.shape, bool)
        mask[list(itertools.chain(*rows))] = True
        found = loss(matrix, refit(matrix, target, mask), target)
        if found < least:
            best, least = mask, found
    return best


def swapped(matrix: np.ndarray, target: np.ndarray, mask: np.ndarray, m: int, n: int, segments: int) -> np.ndarray:
    """The mask after the best swap within a stripe, one after the other, until none lowers the loss; each refitted."""
    mask = mask.copy()
    for column in range(target.shape[1]):
        wanted, found = target[:, [column]], mask[:, [column]]
        least = loss(matrix, refit(matrix, wanted, found), wanted)
        while True:
            best = found
            for stripe in stripes(len(target), n, segments):
                for dropped, added in itertools.permutations(stripe, 2):
                    if found[dropped] and not found[added]:
                        tried = found.copy()
                        tried[dropped], tried[added] = False, True
                        lost = loss(matrix, refit(matrix, wanted, tried), wanted)
                        if lost < least:
                            best, least = tried, lost
            if best is found:
                break
            found = best
        mask[:, column] = found[:, 0]
    return mask
