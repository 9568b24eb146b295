"""The exporters' keywords by the names that users know from other tools."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

ALIASES = {
    "quantize": "precision",
    "dtype": "precision",  # NumPy, TensorFlow
    "precision_mode": "precision",  # TF-TRT
    "representative_dataset": "calibration_data",  # tf.lite
    "calibration_input_fn": "calibration_data",  # TF-TRT
}


def takes_aliases(exporter: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Lets a function take those of its arguments that ``ALIASES`` has by either name; None by an alias is no answer.

    Raises:
        TypeError: from the function, if an argument is given by two names.
    """
    own = inspect.signature(exporter).parameters
    names = {alias: name for alias, name in ALIASES.items() if name in own and alias not in own}

    @functools.wraps(exporter)
    def call(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        for alias in kwargs.keys() & names.keys():
            value, name = kwargs.pop(alias), names[alias]
            if name in kwargs:
                raise TypeError(f"{exporter.__name__}() got {name}= and {alias}=, which are the same: give {name}=")
            if value is not None:
                kwargs[name] = value
        return exporter(*args, **kwargs)

    return call
