"""Models without weights: their variables have shapes and types, and take no memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf
from tensorflow.python.ops import resource_variable_ops

_SMALL = 1 << 12  # elements of variables that are made as ever: seeds, counters, tables of a few rows


@contextlib.contextmanager
def without_weights() -> Iterator[None]:
    """Within it models of either Keras are built without weights: they can be traced, but not run.

    Example:
        >>> with without_weights():
        ...     model = build_a_model_larger_than_memory()
    """
    with tf.variable_creator_scope(_creator):
        yield


def _creator(make: Callable[..., Any], **options: Any) -> Any:
    shape, dtype = options.get("shape"), options.get("dtype")
    value = options.get("initial_value")
    if value is not None:
        with tf.Graph().as_default():  # nothing is computed in a graph that does not run
            spec = tf.convert_to_tensor(value() if callable(value) else value, dtype)
        shape, dtype = spec.shape, spec.dtype
    shape = tf.TensorShape(shape)
    if not shape.is_fully_defined() or shape.num_elements() <= _SMALL:
        return make(**options)
    return resource_variable_ops.UninitializedVariable(
        trainable=bool(options.get("trainable", True)), shape=shape, dtype=dtype, name=options.get("name") or "variable"
    )
