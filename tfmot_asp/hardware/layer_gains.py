"""What each layer of a model gains on a GPU if it is 2:4, for the policy's ``min_gain``.

The gain of a kernel depends on how many positions it is called on, which the model decides: its products are found in a
trace of the model, and remembered by the kernel's variable.
"""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tfmot_asp.hardware.cost_model import cost_model
from tfmot_asp.hardware.product_times import ProductTime, product_times, why_no_sparse_kernel
from tfmot_asp.keras_models.checks import check_batch_size
from tfmot_asp.keras_models.kernels import Kernel, layers_with_kernels
from tfmot_asp.types import InputShapes, StrPath

logger = logging.getLogger(__name__)


class _Seen(NamedTuple):
    variable: weakref.ref[Any]  # alive as long as the id that it is found by is its own
    times: tuple[ProductTime, ...]
    inputs: tuple[tuple[int, ...], ...]


class LayerGains:
    """The gains of the layers of the model that was looked at last.

    Args:
        min_gain: the least that counts, 1.05 for 5 % less time.
        gpu, precision: as ``hardware.estimate`` takes them.
        batch_size: number of samples, where a model leaves it open.
        input_shapes: for models that leave theirs open.

    Raises:
        TypeError, ValueError, FileNotFoundError: if one of these is none.
    """

    def __init__(
        self, min_gain: float, gpu: StrPath, precision: str, batch_size: int, input_shapes: InputShapes | None
    ) -> None:
        self._min_gain = _checked_min_gain(min_gain)
        self._costs = cost_model(gpu, precision)
        self._batch_size, self._own_shapes = check_batch_size(batch_size), input_shapes
        self._seen: dict[int, _Seen] = {}
        self._model: Any = lambda: None
        self._shapes: InputShapes | None = None

    def estimate(self, model: Any, input_shapes: InputShapes | None) -> None:
        """Looks at a model, unless it was the last.

        Args:
            model: a built model or layer.
            input_shapes: used if the policy has none.

        Raises:
            ValueError: if the sizes of its products cannot be found.
        """
        from tfmot_asp.graph import kernel_work  # here: it imports TensorFlow

        kernels = [kernel for layer in layers_with_kernels(model) for kernel in layer.kernels]
        shapes = input_shapes if self._own_shapes is None else self._own_shapes
        known = self._model() is model and (shapes is None or shapes == self._shapes)
        if known and all(self._times(kernel) is not None for kernel in kernels):
            return
        try:
            work = kernel_work.measure(model, kernels, self._batch_size, shapes)
        except Exception as error:  # whatever a model's own code may raise
            raise ValueError(
                f"min_gain={self._min_gain:g} asks for the sizes of the products of model "
                f"{getattr(model, 'name', type(model).__name__)!r}, which are not known: {error} (the policy takes "
                "input_shapes too)"
            ) from error
        self._seen = {}
        for kernel, gemms in zip(kernels, work.gemms, strict=True):
            variable = kernel.tf_variable  # of tied ones, the first has the products of all
            times = product_times(kernel, gemms, self._costs)
            self._seen.setdefault(id(variable), _Seen(weakref.ref(variable), times, work.input_shapes))
        self._model, self._shapes = weakref.ref(model), shapes

    def why(self, kernels: Sequence[Kernel]) -> str | None:
        """Why a layer with these kernels gains too little; None if it gains enough.

        Raises:
            ValueError: if it is no layer of the model that was looked at.
        """
        seen = [self._times(kernel) for kernel in kernels]
        found = [one for one in seen if one is not None]
        if len(found) < len(seen):
            raise ValueError(
                f"min_gain={self._min_gain:g} is a gain in a model: how many rows the product of layer "
                f"{kernels[0].layer.name!r} has depends on what the model calls it on. Call "
                "policy.estimate_gains(model) first; every function that takes a model and a policy does that itself"
            )
        precision = self._costs.precision
        obstacles = [why_no_sparse_kernel(kernel, precision) for kernel in kernels]
        asked = f"min_gain={self._min_gain:g}"
        if all(obstacles):
            return f"has no 2:4 kernel in {precision}, so it gains nothing for {asked}: {obstacles[0]}"
        times = [time for one in found for time in one.times]
        dense = sum(time.dense_us for time in times)
        if not dense:
            return f"has no product that could be counted when the model is called, so it gains nothing for {asked}"
        if dense >= self._min_gain * sum(time.best_us for time in times):
            return None
        sparse = sum(time.dense_us if time.sparse_us is None else time.sparse_us for time in times)
        shapes = ", ".join(map(str, found[0].inputs))
        return (
            f"gains x{dense / sparse:.2f} on {self._costs.gpu} in {precision} ({dense:.1f} us dense, {sparse:.1f} us "
            f"2:4, for inputs of shape {shapes}), less than {asked}"
        )

    def _times(self, kernel: Kernel) -> _Seen | None:
        variable = kernel.tf_variable
        seen = self._seen.get(id(variable))
        return seen if seen is not None and seen.variable() is variable else None


def _checked_min_gain(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise TypeError(f"min_gain must be a factor such as 1.05, or None for no limit; got {value!r}")
    if not (math.isfinite(value) and value >= 1):
        raise ValueError(f"min_gain must be 1 or more, a factor such as 1.05 for 5 % less time; got {value!r}")
    return float(value)
