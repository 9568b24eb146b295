"""The variables that an optimizer keeps for a weight, and which axes of the weight each of them has.

Momentum, second moments, moving averages: they have the weight's shape and are reordered with it, so that training goes
on as the unpermuted model's would. Adafactor keeps the sums over its last two axes (Shazeer & Stern, 2018).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from tfmot_asp.keras_models.holders import models_holding
from tfmot_asp.keras_models.variables import underlying_variable

_NOT_SLOTS = frozenset({"_trainable_variables", "_variables", "_tracked", "_overwrite_variable_with_gradient"})


def optimizers_of(model: Any, optimizer: Any = None) -> list[Any]:
    """The optimizers that may keep something for the weights of a model, each once.

    Args:
      model: which may have been compiled, or be part of models that were.
      optimizer: one that a loop of the user's own trains the model with, a list of them, or None.

    Raises:
      TypeError: if `optimizer` is none.
    """
    given = list(optimizer) if isinstance(optimizer, (list, tuple)) else [] if optimizer is None else [optimizer]
    for item in given:
        if not hasattr(item, "apply_gradients"):
            raise TypeError(
                f"optimizer must be an optimizer of tf_keras or Keras 3, or a list of them; got {item!r:.80}"
            )
    holders = [model, *(models_holding(model) if model is not None else ())]
    return list(_optimizers([*given, *(getattr(holder, "optimizer", None) for holder in holders)]))


def slots_of(
    optimizers: Iterable[Any], variable: Any, runs: Iterable[tuple[int, ...]] = ()
) -> Iterator[tuple[Any, dict[int, int]]]:
    """The slots of `variable`, a plain `tf.Variable`.

    Args:
      optimizers: as `optimizers_of` gives them.
      variable: a weight.
      runs: axes of it that are reordered as one, of which a slot must have all or none.

    Yields:
      The slot and, for each axis of the weight that the slot has, the slot's axis.

    Raises:
      ValueError: if the optimizer keeps something for it that cannot be reordered along with it.
    """
    for optimizer in optimizers:
        for name, slot in _kept_for(optimizer, variable):
            slot = underlying_variable(slot)
            axes = _axes(optimizer, name, tuple(slot.shape), tuple(variable.shape))
            if axes is None or any(0 < len(axes.keys() & set(run)) < len(run) for run in runs):
                raise ValueError(
                    f"optimizer {type(optimizer).__name__} keeps {name!r} of shape {tuple(slot.shape)} for "
                    f"{variable.name!r} of shape {tuple(variable.shape)}, which cannot be reordered along with it: "
                    "permute before training, or compile the model anew"
                )
            yield slot, axes


def _axes(optimizer: Any, name: str, slot: tuple[int, ...], weight: tuple[int, ...]) -> dict[int, int] | None:
    if slot == weight:
        return {axis: axis for axis in range(len(weight))}
    if math.prod(slot) == 1:
        return {}
    rank = len(weight)
    if name == "_r" and slot == weight[:-1]:
        return {axis: axis for axis in range(rank - 1)}
    if name == "_c" and slot == (*weight[:-2], weight[-1]):
        return {**{axis: axis for axis in range(rank - 2)}, rank - 1: rank - 2}
    return None


def _optimizers(optimizer: Any) -> Iterator[Any]:
    """The optimizer and those that it wraps, each once."""
    queue, seen = [optimizer], set()
    while queue:
        item = queue.pop(0)
        if item is None or id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, (list, tuple)):
            queue += list(item)
        elif isinstance(item, dict):
            queue += list(item.values())
        elif hasattr(item, "apply_gradients") or hasattr(item, "optimizer"):
            yield item
            queue += [value for value in _attributes(item).values() if _may_hold_optimizers(value)]


def _may_hold_optimizers(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_may_hold_optimizers(v) for v in value.values())
    if isinstance(value, (list, tuple)):
        return any(hasattr(v, "apply_gradients") or hasattr(v, "optimizer") for v in value)
    return hasattr(value, "apply_gradients")


def _kept_for(optimizer: Any, variable: Any) -> Iterable[tuple[str, Any]]:
    if hasattr(optimizer, "get_slot_names"):  # tf_keras legacy
        slots = getattr(optimizer, "_slots", {}).get(getattr(variable, "_unique_id", None), {})
        return list(slots.items())
    tracked = _tracked(optimizer)
    position = next((i for i, key in enumerate(tracked) if _is(key, variable)), None)
    if position is None:
        return []
    kept = []
    for name, value in _attributes(optimizer).items():
        if name in _NOT_SLOTS or not isinstance(value, (list, tuple)) or len(value) != len(tracked):
            continue
        slot = value[position]
        if hasattr(slot, "assign"):
            kept.append((name, slot))
    return kept


def _tracked(optimizer: Any) -> list[Any]:
    """What the optimizer is built for, in the order of its slots: variables, or tf_keras' keys of them."""
    index = getattr(optimizer, "_index_dict", None)
    if isinstance(index, dict):
        return sorted(index, key=index.__getitem__)
    return list(getattr(optimizer, "_trainable_variables", ()))


def _is(key: Any, variable: Any) -> bool:
    if isinstance(key, str):
        return key == getattr(variable, "_unique_id", None)
    return underlying_variable(key) is variable


def _attributes(thing: Any) -> dict[str, Any]:
    try:
        return vars(thing)
    except TypeError:
        return {}
