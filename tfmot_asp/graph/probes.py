"""Probe inputs: what a function is run on to see that another one computes the same."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_asp.graph.inputs import has_open_batch

logger = logging.getLogger(__name__)

# Tried in turn for open axes other than the batch: some models take no short sequence, some no long one.
OPEN_SIZES = (16, 64, 224)

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


def probes(
    function: Any, batches: Sequence[int] = (1,), open_sizes: Sequence[int] = OPEN_SIZES
) -> list[tuple[NamedArrays, NamedArrays]]:
    """Random inputs for a function, and its outputs for them.

    If the function refuses integers from {0, 1}, they are all 0; then floats are 0 too (they may be token ids, Keras'
    default type).

    Args:
        function: a ``ConcreteFunction`` that takes its inputs, none of them strings, by name and returns a dict.
        batches: sizes of the batch, if the first axis of all inputs is open.
        open_sizes: tried in turn for all other open axes; if there are none, such a function is not run.

    Returns:
        Pairs of inputs and expected outputs by name; none, with a warning, if no input can be made up.
    """
    specs = list(function.structured_input_signature[0])
    sizes = batches if has_open_batch(specs) else (1,)
    problem: Exception | None = None
    for (largest, floats), open_size in itertools.product(((1, True), (0, True), (0, False)), open_sizes or (None,)):
        generator = np.random.default_rng(0)
        try:
            made = [
                {spec.name: _value(spec, size, open_size, largest, floats, generator) for spec in specs}
                for size in sizes
            ]
            return [(batch, outputs_of(function, batch)) for batch in made]
        except (tf.errors.OpError, ValueError) as error:
            problem = error
    logger.warning("Outputs are not compared: no random input suits the model (%s)", _gist(problem))
    return []


def outputs_of(function: Any, batch: NamedArrays) -> NamedArrays:
    """A function's outputs as arrays."""
    found = function(**{name: tf.constant(value) for name, value in batch.items()})
    return {name: np.asarray(value) for name, value in found.items()}


def _value(
    spec: tf.TensorSpec, size: int, open_size: int | None, largest: int, floats: bool, generator: np.random.Generator
) -> np.ndarray:
    if spec.shape.rank is None or spec.dtype == tf.string:
        raise ValueError(f"no value can be made up for {spec}")
    if open_size is None and None in spec.shape[1:]:
        raise ValueError(f"the input {spec.name!r} leaves its shape {spec.shape} open")
    opened = [size, *[open_size or 0] * (spec.shape.rank - 1)]
    shape = [given if dim is None else int(dim) for given, dim in zip(opened, spec.shape, strict=False)]
    if spec.dtype.is_floating and not floats:
        return np.zeros(shape, spec.dtype.as_numpy_dtype)
    return draw(shape, spec.dtype, generator, largest=largest)


def _gist(error: Exception | None) -> str:
    """What an error says in one line: TensorFlow puts where the op was made before it, and names the op after it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line, after in itertools.pairwise(lines) if after.startswith("[[")]
    return (said or lines or [""])[0]
