"""What a Keras config asks for: the objects and the variables that are built from it, counted before they are made."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

from tfmot_asp.graph import budget


def spend_on_objects(config: Any) -> None:
    """Asks for the memory of all layers and other objects that Keras would build from a config.

    Those of a model inside a model are counted for each of its calls: each is a copy of its graph, and models in models
    that are called twice on each level would have no end.

    Raises:
        OverBudgetError: if that is too much.
    """
    places: list[tuple[Any, int]] = [(config, 0)]  # each with the index of what it is in
    for index, (node, _) in enumerate(places):  # which grows as it is read; a file may nest as deep as it likes
        values = node.values() if isinstance(node, dict) else node if isinstance(node, (list, tuple)) else ()
        places += [(value, index) for value in values if isinstance(value, (dict, list, tuple))]
    counts = [0] * len(places)
    for index in range(len(places) - 1, -1, -1):
        node, parent = places[index]
        if isinstance(node, dict) and "class_name" in node:
            calls = node.get("inbound_nodes")
            counts[index] = (counts[index] + 1) * (max(1, len(calls)) if isinstance(calls, list) else 1)
        if index:
            counts[parent] += counts[index]
    budget.spend(counts[0] * budget.KERAS_OBJECT, f"the {counts[0]:,} layers and other objects of its config")


@contextlib.contextmanager
def counted_variables() -> Iterator[None]:
    """A scope in which every variable asks for its memory before it is made.

    Raises:
        OverBudgetError: from within Keras, which may make another error of it; ``budget.reading`` undoes that.
    """
    import tensorflow as tf

    def create(next_creator: Any, **options: Any) -> Any:
        shape, dtype = _described(options)
        if shape is not None:
            dims = [size or 0 for size in shape]
            width = tf.as_dtype(dtype).size or 1 if dtype is not None else 4
            budget.spend(math.prod(dims) * width, f"a variable of shape {tuple(dims)}")
        return next_creator(**options)

    with tf.variable_creator_scope(create):
        yield


def _described(options: dict[str, Any]) -> tuple[list[int | None] | None, Any]:
    """Shape and dtype of a variable that is about to be made; None for what cannot be told."""
    import tensorflow as tf

    value, shape, dtype = options.get("initial_value"), options.get("shape"), options.get("dtype")
    if shape is None and callable(value):  # Keras 3 gives an initializer alone: see what it would make, and do not
        with contextlib.suppress(Exception), tf.__internal__.FuncGraph("size").as_default():
            value = value()
    if shape is None:
        shape = getattr(value, "shape", None)
    shape = None if shape is None else tf.TensorShape(shape)
    return None if shape is None or shape.rank is None else shape.as_list(), dtype or getattr(value, "dtype", None)
