"""Slow, obvious oracles for masks: one stripe at a time, by sorting."""

import itertools
import math

import numpy as np


def stripes(shape, reduction_axes, n):
    """Index tuples of every stripe, position by position along the flattened reduction axes."""
    axes = (reduction_axes,) if np.isscalar(reduction_axes) else tuple(reduction_axes)
    axes = tuple(axis % len(shape) for axis in axes)
    rest = [axis for axis in range(len(shape)) if axis not in axes]
    along = list(itertools.product(*[range(shape[axis]) for axis in axes]))
    for fixed in itertools.product(*[range(shape[axis]) for axis in rest]):
        for start in range(0, len(along), n):
            stripe = []
            for position in along[start : start + n]:
                index = [0] * len(shape)
                for axis, value in zip((*rest, *axes), (*fixed, *position), strict=True):
                    index[axis] = value
                stripe.append(tuple(index))
            yield stripe


def mask(score, reduction_axes, m_by_n):
    m, n = m_by_n
    score = np.asarray(score).astype(np.float64)
    result = np.zeros(score.shape, bool)
    for stripe in stripes(score.shape, reduction_axes, n):
        values = [-math.inf if math.isnan(score[index]) else score[index] for index in stripe]
        best = sorted(range(len(stripe)), key=lambda i: (-values[i], i))[: n - m]
        for i in best:
            result[stripe[i]] = True
    return result


def violations(weight, reduction_axes, m_by_n):
    m, n = m_by_n
    weight = np.asarray(weight)
    return sum(
        sum(weight[index] != 0 for index in stripe) > n - m for stripe in stripes(weight.shape, reduction_axes, n)
    )
