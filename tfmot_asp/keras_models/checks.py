"""What a model must be before anything is done with it: built, and with numbers for weights."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from tfmot_asp.keras_models.variables import underlying_variable, view
from tfmot_asp.keras_models.windows import windows


def check_built(model: Any, then: str) -> None:
    """Raises ValueError for a model or layer whose kernels do not exist yet.

    Args:
        model: a model or layer of tf_keras or Keras 3; what can be no otherwise, such as a ``tf.Module``, is built.
        then: what the caller wants to do, as in ``"export it"``.
    """
    if not getattr(model, "built", True):
        raise ValueError(
            f"{model.name!r} is not built, so its kernels do not exist yet: call it on a batch, or build it with "
            f"model.build(input_shape), then {then}"
        )


def check_count(value: Any, name: str, a_number: str, least: str) -> int:
    """Raises TypeError for what is no integer, which must be ``a_number``, and ValueError below 1, saying ``least``."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be {a_number}, got {value!r}") from None
    if number < 1 or isinstance(value, bool):
        raise ValueError(f"{name} must be {least}, got {value!r}")
    return number


def check_batch_size(batch_size: Any) -> int:
    """Raises TypeError or ValueError for what is no number of samples."""
    return check_count(batch_size, "batch_size", "a number of samples such as 1", "a number of samples, 1 or more")


def check_finite(kernels: Mapping[str, Any], others: Iterable[Any] = ()) -> None:
    """Raises ValueError, naming the weight, if a model holds what is no number.

    Args:
        kernels: variables by name, all of which must be finite: a mask chosen by magnitude means nothing otherwise.
        others: further variables of the model, kernels among them or not. NaN is nowhere allowed; infinity is in
            vectors and in what is not trained, which hold limits and masks, such as a causal mask of -inf.
    """
    import tensorflow as tf

    ids = {id(underlying_variable(variable)) for variable in kernels.values()}
    rest = [variable for variable in others if id(underlying_variable(variable)) not in ids]
    named = [(name, variable, False) for name, variable in kernels.items()]
    named += [(getattr(v, "path", None) or v.name, v, not v.trainable or len(v.shape) < 2) for v in rest]
    for name, variable, may_be_infinite in named:
        if not tf.as_dtype(variable.dtype).is_floating:
            continue
        values, bad = view(variable), 0
        for window in windows(values.shape):
            part = values[window]
            bad += int(np.count_nonzero(np.isnan(part) if may_be_infinite else ~np.isfinite(part)))
        if bad:
            raise ValueError(
                f"the weights of {name!r} hold {bad} NaN or infinite values out of {values.size}: check the training, "
                "or the checkpoint that they came from"
            )
