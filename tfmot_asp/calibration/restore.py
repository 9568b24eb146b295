"""All or nothing: whatever stops a change of a model's weights, they are put back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from tfmot_asp.graph.trace import variables_of
from tfmot_asp.keras_models.constraints import detach_mask
from tfmot_asp.keras_models.kernels import Kernel
from tfmot_asp.keras_models.slots import optimizers_of, slots_of
from tfmot_asp.keras_models.variables import read, underlying_variable


@contextlib.contextmanager
def all_or_nothing(model: Any, kernels: Iterable[Kernel], optimizer: Any = None) -> Iterator[None]:
    """Puts a model's variables, and its optimizer's, back to what they are now if the block inside does not end well.

    Args:
        model: Keras model or layer.
        optimizer: another that trains the model, or several.
        kernels: of it that have no mask now, and have none afterwards either if the block fails.
    """
    variables = [underlying_variable(variable) for variable in variables_of(model)]
    optimizers = optimizers_of(model, optimizer)
    variables += [slot for variable in list(variables) for slot, _ in slots_of(optimizers, variable)]
    values = [read(variable) for variable in variables]
    try:
        yield
    except BaseException:  # Ctrl-C included
        _put_back(variables, values)
        for kernel in kernels:
            detach_mask(kernel.variable)
        raise


def _put_back(variables: Sequence[Any], values: Sequence[np.ndarray]) -> None:
    """Writes old values back, to the end, however often Ctrl-C is pressed meanwhile."""
    for variable, value in zip(variables, values, strict=False):
        while True:
            try:
                variable.assign(value)
                break
            except KeyboardInterrupt:
                continue
