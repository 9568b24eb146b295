"""Sizes for the axes that a model leaves open: the length of a text, the sides of an image."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfmot_asp.graph.inputs import input_specs, leaves_sizes_open
from tfmot_asp.graph.open_axes import has_images, pairs_for
from tfmot_asp.graph.probes import random_inputs
from tfmot_asp.graph.trace import concrete_function

REFUSALS = (TypeError, ValueError, tf.errors.OpError)
"""What a model raises that does not take a size."""

_TYPICAL_TEXT, _TYPICAL_IMAGE = 128, 224


def pairs_of_sizes(model: Any) -> list[tuple[int, int]]:
    """Sizes to try for the open axes of a model, each with another, from small to large."""
    return [*pairs_for(_inputs(model))]


def typical_size(model: Any) -> int | None:
    """A size as in use for the open axes of a model, that it runs at; None if it has no such axes, or refuses all."""
    if not leaves_sizes_open(model):
        return None
    typical = _TYPICAL_IMAGE if has_images(_inputs(model)) else _TYPICAL_TEXT
    for size in dict.fromkeys([typical, *(size for size, _ in pairs_of_sizes(model))]):
        try:
            run_once(concrete_function(model, input_specs(model, batch_size=1, open_size=size)))
        except REFUSALS:
            continue
        return size
    return None


def run_once(function: Any) -> None:
    """Runs a concrete function on random inputs: that a model can be traced at a size is not enough."""
    function._call_flat(random_inputs(function), function.captured_inputs)


def _inputs(model: Any) -> list[tf.TensorSpec]:
    return [spec for spec in tf.nest.flatten(input_specs(model, open_size=1)) if isinstance(spec, tf.TensorSpec)]
