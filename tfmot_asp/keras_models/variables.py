"""What a Keras variable holds: the ``tf.Variable`` underneath, and its value, copied or not."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np


def underlying_variable(variable: Any) -> Any:
    """Strips Keras' variable classes down to the ``tf.Variable`` (or distributed variable) that holds the numbers.

    Args:
        variable: a ``tf.Variable``, tf_keras ``AutoCastVariable`` or Keras 3 ``Variable``.

    Returns:
        The variable in its stored dtype. What is already plain comes back as it is.
    """
    if "AutoCast" in type(variable).__name__ and hasattr(variable, "_variable"):
        return variable._variable  # tf_keras mixed precision: reads of the outer one are cast to float16
    keras = sys.modules.get("keras")
    keras_variable = getattr(keras, "Variable", None)
    if keras_variable is not None and isinstance(variable, keras_variable):
        # Not `.value`: under an autocast scope that is a float16 tensor.
        return variable._value
    return variable


def read(variable: Any) -> np.ndarray:
    """The value of a variable, also of a distributed or Keras 3 one, in its stored dtype."""
    import tensorflow as tf

    return tf.convert_to_tensor(underlying_variable(variable)).numpy()


def view(variable: Any) -> np.ndarray:
    """The value of a variable as ``read`` gives it, but not copied where it is in this machine's memory; read-only.

    It stays what it was when the variable is written: TensorFlow then gives that memory of its own.
    """
    import tensorflow as tf

    values = np.asarray(tf.convert_to_tensor(underlying_variable(variable)))
    values.flags.writeable = False
    return values


_ALIGNED = 64  # bytes: what TensorFlow asks of memory that it takes over


def buffer(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """An array without values yet, in memory that ``handed_over`` need not copy."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.empty(size + _ALIGNED, np.uint8)
    start = -raw.ctypes.data % _ALIGNED
    return raw[start : start + size].view(dtype).reshape(shape)


def handed_over(array: np.ndarray) -> Any:
    """A tensor of an array of ``buffer``, in its memory: the array must not be written afterwards."""
    import tensorflow as tf

    return tf.raw_ops.Identity(input=array)  # tf.constant would copy


def assign(variable: Any, array: np.ndarray) -> None:
    """Writes an array of ``buffer`` to a variable, which takes over its memory: it must not be written afterwards."""
    import tensorflow as tf

    # Each replica of a distributed variable needs memory of its own.
    variable.assign(array if isinstance(variable, tf.distribute.DistributedValues) else handed_over(array))
