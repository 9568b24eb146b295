"""The types of arguments that many public functions share.

``Any`` stands in signatures for what is foreign: models, layers, variables and optimizers of tf_keras and Keras 3,
whose classes are not loaded here. A sparsity pattern's type is ``pattern.PatternLike``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy.typing as npt

StrPath: TypeAlias = str | os.PathLike[str]

Shape: TypeAlias = Sequence[int | None]


class TensorSpec(Protocol):
    """A shape and a type: ``tf.TensorSpec``, ``keras.InputSpec``, a Keras tensor."""

    @property
    def shape(self) -> Any:
        """With None for the batch."""

    @property
    def dtype(self) -> Any:
        """Of the elements; None for float32."""


InputShapes: TypeAlias = (
    Shape | TensorSpec | tuple[Shape, npt.DTypeLike] | Sequence["InputShapes"] | Mapping[str, "InputShapes"]
)
"""One shape such as ``(None, 224, 224, 3)``, with its type if that is not the model's own or float32, such as
``((None, 128), "int32")`` or a ``tf.TensorSpec``; or a list or dict of these as the model is called. A dict may have
the names of the arguments of the model's ``call`` as its keys."""

Batch: TypeAlias = npt.ArrayLike | Sequence[npt.ArrayLike] | Mapping[str, npt.ArrayLike]
CalibrationData: TypeAlias = Batch | Iterable[Batch] | Callable[[], Iterable[Batch]]
"""Typical inputs: one array (or one per input) with samples first, batches of these such as a ``tf.data.Dataset``, or a
function that gives batches."""


class LayerRule(Protocol):
    """A policy that says which layers stay dense, and why: ``PruneForSparseTensorCores``, or any like it."""

    def why(self, layer: Any, /) -> str | None:
        """The reason, or None if the layer is to be pruned."""


class PruningPolicy(Protocol):
    """tfmot's ``PruningPolicy``, which gives no reasons."""

    def allow_pruning(self, layer: Any, /) -> bool:
        """Whether the layer is to be pruned."""


Policy: TypeAlias = LayerRule | PruningPolicy


class Schedule(Protocol):
    """tfmot's ``PruningSchedule``."""

    def __call__(self, step: Any, /) -> tuple[Any, Any]:
        """Whether to prune in a step, and to which sparsity."""

    def get_config(self) -> dict[str, Any]:
        """To make it again."""
