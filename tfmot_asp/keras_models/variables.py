"""What a Keras variable holds: the ``tf.Variable`` underneath, and its value."""

from __future__ import annotations

import sys
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
