"""The axes that inputs leave open beside the batch: sizes for them, and which of them must be of one size.

A graph is looked at with the sizes of its open axes filled in. Where two axes are independent they get different sizes:
a graph that is only ever seen with sequences of one length does not show what it does with two.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import tensorflow as tf

from tfmot_asp.graph.inputs import has_open_batch

Place = tuple[str, int]
"""An input's name, and one of its axes."""
Group = tuple[Place, ...]
"""Places that must be of one size."""

PAIRS = ((16, 24), (64, 96), (224, 256))
"""Sizes to try in turn, each with another. Some models take no short sequence, some no long one, some multiples."""
LONG = (2048, 2560)
"""A further pair, for signals: no image gets so large."""
UNEVEN = (131, 172)
"""A pair without a common factor, and with other remainders by any power of two. A model that pads to a multiple of 32
does other things at these than at 128 and 160."""

_SIGNAL = 3  # axes of an input that may be as long as a signal
_BATCHES = (2, 3)
_MOST = 8  # places, of which all subsets would be tried


def places_of(specs: Sequence[tf.TensorSpec]) -> list[Place]:
    """The open axes of inputs, without those of a batch that all of them share."""
    batched = has_open_batch(specs)
    return [
        (str(spec.name), axis)
        for spec in specs
        for axis, size in enumerate(spec.shape)
        if size is None and not (batched and axis == 0)
    ]


def has_images(specs: Iterable[tf.TensorSpec]) -> bool:
    """Whether an input has more axes than a signal or a text."""
    return any(spec.shape.rank > _SIGNAL for spec in specs)


def pairs_for(specs: Iterable[tf.TensorSpec]) -> tuple[tuple[int, int], ...]:
    """Sizes to try for inputs, each with another, from small to large."""
    return PAIRS if has_images(specs) else (*PAIRS, LONG)


def sized(specs: Sequence[tf.TensorSpec], batch: int, sizes: Mapping[Place, int]) -> list[tf.TensorSpec]:
    """Inputs with a size for each open axis; those without one are the batch."""
    return [
        tf.TensorSpec(
            [
                sizes.get((str(spec.name), axis), batch) if size is None else size
                for axis, size in enumerate(spec.shape)
            ],
            spec.dtype,
            spec.name,
        )
        for spec in specs
    ]


def groups_of(specs: Sequence[tf.TensorSpec], fits: Callable[[list[tf.TensorSpec]], bool]) -> list[Group]:
    """Open axes in groups that change together.

    Axes are of one size if the shapes inside fit together only when they change together: it is looked at with some of
    them of another size than the rest.

    Args:
        specs: of all inputs.
        fits: whether the graph takes inputs of these sizes.
    """
    left = places_of(specs)
    if len(left) <= 1 or len(left) > _MOST:
        return [(place,) for place in left]

    def fit(otherwise: int, other: Mapping[Place, int]) -> bool:
        return fits(sized(specs, _BATCHES[0], {**dict.fromkeys(places_of(specs), otherwise), **other}))

    pair = next((pair for pair in (*PAIRS, LONG) if all(fit(size, {}) for size in pair)), None)
    groups: list[Group] = []
    while left:
        group = (left[0],) if pair is None else _together(fit, pair, left)
        groups.append(group)
        left = [place for place in left if place not in group]
    return groups


def _together(fit: Callable[[int, Mapping[Place, int]], bool], pair: tuple[int, int], places: list[Place]) -> Group:
    """The smallest group of the first place that may be of another size than the rest."""
    first, rest = places[0], places[1:]
    for count in range(len(rest) + 1):
        for others in itertools.combinations(rest, count):
            if fit(pair[0], dict.fromkeys((first, *others), pair[1])):
                return (first, *others)
    return (first,)


def at_two_sizes(
    specs: Sequence[tf.TensorSpec], groups: Sequence[Group]
) -> Iterator[tuple[list[tf.TensorSpec], list[tf.TensorSpec]]]:
    """Inputs at two sizes of each open axis and the batch, in the order in which to try them.

    Groups differ in both, as far as they can, the largest in one being the smallest in the other. At last all are of
    one size.

    Args:
        specs: of all inputs.
        groups: of their open axes.
    """
    for apart, pair in itertools.product((True, False) if len(groups) > 1 else (False,), (UNEVEN, *PAIRS, LONG)):
        numbers = range(1, len(groups) + 1)
        factors = (numbers, reversed(numbers)) if apart else ([1] * len(groups),) * 2
        first, second = (
            {place: size * factor for group, factor in zip(groups, of_each, strict=True) for place in group}
            for size, of_each in zip(pair, factors, strict=True)
        )
        yield sized(specs, _BATCHES[0], first), sized(specs, _BATCHES[1], second)
