"""Probe inputs: what a function is run on to see that another one computes the same."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_asp.graph.inputs import has_open_batch
from tfmot_asp.graph.open_axes import pairs_for, places_of, sized

logger = logging.getLogger(__name__)

NamedArrays = dict[str, np.ndarray]


def draw(
    shape: Sequence[int], dtype: tf.DType, generator: np.random.Generator, *, largest: int = 1, uniform: bool = False
) -> np.ndarray:
    """A random value: floats are normal, or uniform in [0, 1); integers are from 0 to `largest`; strings are empty.

    0 and 1 are indices that every table of embeddings has, and 0 is one that every model takes.
    """
    if dtype.is_floating or dtype.is_complex:
        values = generator.random(shape, np.float32) if uniform else generator.standard_normal(shape)
        return values.astype(dtype.as_numpy_dtype)
    if dtype == tf.string:
        return np.full(shape, b"")
    return generator.integers(0, largest + 1, shape).astype(dtype.as_numpy_dtype)


def random_inputs(function: Any) -> list[Any]:
    """Fixed random inputs of a concrete function with static shapes, in the order of its own; floats in [0, 1)."""
    rng = np.random.default_rng(0)
    placeholders = function.inputs[: len(function.inputs) - len(function.captured_inputs)]
    return [tf.constant(draw(p.shape, p.dtype, rng, uniform=True), p.dtype) for p in placeholders]


def probes(function: Any, batches: Sequence[int] = (1,)) -> list[tuple[NamedArrays, NamedArrays]]:
    """Random inputs for a function, and its outputs for them.

    If the function refuses integers from {0, 1}, they are all 0; then floats are 0 too (they may be token ids, Keras'
    default type). Open axes get sizes of their own if the function takes that, else one size, larger until outputs are
    finite: what an average has nothing to average over is NaN.

    Args:
        function: a ``ConcreteFunction`` that takes its inputs, none of them strings, by name and returns a dict.
        batches: sizes of the batch, if the first axis of all inputs is open.

    Returns:
        Pairs of inputs and expected outputs by name; none, with a warning, if no input can be made up.
    """
    specs = list(function.structured_input_signature[0])
    if any(spec.shape.rank is None or spec.dtype == tf.string for spec in specs):
        logger.warning("Outputs are not compared: no input can be made up for strings, or without a number of axes")
        return []
    problem: Exception | None = None
    for largest, floats in ((1, True), (0, True), (0, False)):
        infinite: list[tuple[NamedArrays, NamedArrays]] = []
        for inputs in _sized_inputs(specs, batches):
            generator = np.random.default_rng(0)
            try:
                made = [{spec.name: _value(spec, largest, floats, generator) for spec in batch} for batch in inputs]
                found = [(batch, outputs_of(function, batch)) for batch in made]
            except (tf.errors.OpError, ValueError) as error:
                problem = error
                continue
            if all(np.isfinite(y).all() for _, outputs in found for y in outputs.values() if y.dtype.kind in "fc"):
                return found
            infinite = infinite or found
        if infinite:
            return infinite
    logger.warning("Outputs are not compared: no random input suits the model (%s)", _gist(problem))
    return []


def _sized_inputs(specs: Sequence[tf.TensorSpec], batches: Sequence[int]) -> list[list[list[tf.TensorSpec]]]:
    """Static inputs in the order in which to try them, each for all batch sizes."""
    places = places_of(specs)
    batches = batches if has_open_batch(specs) else batches[:1]
    sizes = [size for size, _ in pairs_for(specs)] if places else [1]
    return [
        [sized(specs, batch, {p: size * (n + 1 if apart else 1) for n, p in enumerate(places)}) for batch in batches]
        for size, apart in itertools.product(sizes, (True, False) if len(places) > 1 else (False,))
    ]


def outputs_of(function: Any, batch: NamedArrays) -> NamedArrays:
    """A function's outputs as arrays."""
    found = function(**{name: tf.constant(value) for name, value in batch.items()})
    return {name: np.asarray(value) for name, value in found.items()}


def _value(spec: tf.TensorSpec, largest: int, floats: bool, generator: np.random.Generator) -> np.ndarray:
    if spec.dtype.is_floating and not floats:
        return np.zeros(spec.shape, spec.dtype.as_numpy_dtype)
    return draw(spec.shape, spec.dtype, generator, largest=largest)


def _gist(error: Exception | None) -> str:
    """What an error says in one line: TensorFlow puts where the op was made before it, and names the op after it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line, after in itertools.pairwise(lines) if after.startswith("[[")]
    return (said or lines or [""])[0]
