"""Makes plain data to draw of a plan: each op with what it does to the channels of the plan's groups.

Constants, variable reads and whatever is computed from weights alone are folded into the ops that use them, ops that
only hand a tensor on are left out.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_asp.graph.flat_graph import Op, Tensor
from tfmot_asp.graph.ops import CHOICES, DEPTHWISE, LOOPS, product_of
from tfmot_asp.keras_models.kernels import layers_with_kernels
from tfmot_asp.permutation.axes import Nested
from tfmot_asp.permutation.picture.drawn import DrawnOp, Outline
from tfmot_asp.permutation.picture.scopes import Scopes
from tfmot_asp.permutation.plan import ModelPlan

_HANDS_ON = (
    "Identity",
    "IdentityN",
    "StopGradient",
    "PreventGradient",
    "Cast",
    "Snapshot",
    "EnsureShape",
    "CheckNumerics",
)


def outline(plan: ModelPlan, model: Any = None, *, planned: bool = False) -> Outline:
    """Describes a planned model for drawing.

    Args:
        plan: of the model, with its axes.
        model: for the names of its layers, which the graph knows only as name scopes. The picture's labels depend on
            names; nothing else does.
        planned: whether the plan is all there is: nothing was permuted.
    """
    builder = _Builder(plan, Scopes(plan, model), _why_dense(plan, model))
    ops = builder.run()
    movable, kernels = plan.plan.movable, plan.plan.kernels
    name = getattr(model, "name", None) or (type(model).__name__ if model is not None else "model")
    permuted, groups = sum(m > 0 for m in movable), len(plan.plan.groups)
    kernel_word = "kernel" if len(kernels) == 1 else "kernels"
    done = "would be permuted" if planned else "permuted"
    title = f"{permuted} of {len(kernels)} prunable {kernel_word} {done}, in {groups} group{'s' * (groups != 1)}"
    if not kernels:
        title = "no kernel would be pruned"
    if planned:
        title = f"plan, nothing was changed: {title}"
    return Outline(f"{name}: {title}", tuple(ops), planned)


def _why_dense(plan: ModelPlan, model: Any) -> dict[int, str]:
    """Of a model without prunable kernels: why each kernel stays dense, by the position of its variable."""
    if plan.plan.kernels or model is None:
        return {}
    reasons = {layer.name: layer.reason.why for layer in plan.dense}
    found = {}
    for layer in layers_with_kernels(model):
        for kernel in layer.kernels:
            if (variable := plan.graph.variable_index(kernel.variable)) is not None and layer.name in reasons:
                found[variable] = reasons[layer.name]
    return found


class _Builder:
    """Walks the ops once, in execution order."""

    def __init__(self, plan: ModelPlan, scopes: Scopes, why_dense: dict[int, str]):
        self.plan = plan
        self.axes = plan.axes
        self.scopes = scopes
        self.why_dense = why_dense
        self.carried = _Carried(plan)
        self.pins = _pins_by_op(plan, self.carried)
        self.kernel_of = {k.variable: i for i, k in enumerate(plan.plan.kernels)}
        self.drawn: list[DrawnOp] = []
        self._nested: dict[int, list[Any]] = {}
        self.sources: dict[int, tuple[int, ...]] = {}  # id of a tensor -> drawn ops that it comes from
        self.weights: dict[int, frozenset[int]] = {}  # id of a tensor made of weights alone -> the variables
        self.causes: dict[int, list[str]] = {}  # id of such a tensor -> pins made on the way

    def run(self) -> list[DrawnOp]:
        graph = self.plan.graph
        # What only a training step computes is in the graph for its variables, on inputs of its own: not drawn.
        training = {id(t) for op in graph.ops if op.training for t in (*op.inputs, *op.outputs)}
        training -= {id(t) for op in graph.ops if not op.training for t in (*op.inputs, *op.outputs)}
        for i, tensor in enumerate(t for t in graph.inputs if id(t) not in training):
            self._end(tensor, "Input", tensor.name or f"input {i}")
            self.sources[id(tensor)] = (len(self.drawn) - 1,)
        for op in graph.ops:
            if not op.training:
                self._op(op)
        for i, tensor in enumerate(t for t in graph.outputs if id(t) not in training):
            self._end(tensor, "Output", f"output {i}")
        return self.drawn

    def _end(self, tensor: Tensor, kind: str, name: str) -> None:
        stays = self.carried.blocks(self._axes_of(tensor))
        groups = self.carried.groups(self._axes_of(tensor))
        role = "pins" if stays else "passes" if groups else "still"
        note = f"the model's {kind.lower()} keeps its order" if stays else ""
        inputs = self.sources.get(id(tensor), ())
        self.drawn.append(DrawnOp("", name, kind, role, inputs, ranges(groups), ranges(groups), note=note))

    def _op(self, op: Op) -> None:
        variables: set[int] = set()
        causes = list(self.pins.get(op.name, ()))
        sources: dict[int, None] = {}
        for tensor in op.inputs:
            if tensor.variable is not None:
                variables.add(tensor.variable)
            variables.update(self.weights.get(id(tensor), ()))
            causes += self.causes.get(id(tensor), ())
            if tensor.value is not None and tensor.op is not None:
                causes += self.pins.get(tensor.op.name, ())
            sources.update(dict.fromkeys(self.sources.get(id(tensor), ())))
        if not sources:  # made of weights and constants: drawn with the op that uses it
            for tensor in op.outputs:
                self.weights[id(tensor)] = frozenset(variables)
                self.causes[id(tensor)] = causes
            return
        if op.type in _HANDS_ON and not variables and not causes:
            for i, tensor in enumerate(op.outputs):
                source = op.inputs[i if op.type == "IdentityN" else 0]
                self.sources[id(tensor)] = self.sources.get(id(source), ())
            return
        if not op.outputs and not causes:
            return  # writes state that no output depends on
        self.drawn.append(self._drawn(op, tuple(sources), variables, list(dict.fromkeys(causes))))
        for tensor in op.outputs:
            self.sources[id(tensor)] = (len(self.drawn) - 1,)

    def _drawn(self, op: Op, sources: tuple[int, ...], variables: set[int], causes: list[str]) -> DrawnOp:
        data = [a for t in op.inputs if id(t) in self.sources for a in self._axes_of(t)]
        takes = self.carried.groups(data)
        gives = self.carried.groups([a for t in op.outputs for a in self._axes_of(t)])
        per_axis = [g for g in map(self.carried.groups_on, self._variable_axes(variables)) if g]
        layer, name = self.scopes.place(op.name)
        kernels = [self.kernel_of[v] for v in sorted(variables) if v in self.kernel_of]
        product = product_of(op)
        gemm = product is not None and product.kind != DEPTHWISE and bool(variables)
        axes, note, sparse = "", "; ".join(causes), False
        role = "applies" if per_axis else "passes" if takes or gives else "still"
        if gemm and kernels:
            takes, axes, note = self._kernel(kernels[0], gives, note)
            role, sparse = "gemm", True
        elif gemm and not note:
            note = next((self.why_dense[v] for v in sorted(variables) if v in self.why_dense), "")
        if gemm and not kernels and per_axis:
            axes = _letters(per_axis, takes, gives)
            role = "gemm" if axes else "applies"
        if causes:
            role = "pins"
        return DrawnOp(layer, name, op.type, role, sources, ranges(takes), ranges(gives), axes, sparse, note)

    def _kernel(self, index: int, gives: set[int], note: str) -> tuple[set[int], str, str]:
        """Groups on the reduction axis of a planned kernel, its permuted axes as letters, and why the rest stays."""
        kernel, plan = self.plan.plan.kernels[index], self.plan.plan
        rank = len(kernel.shape)
        summed = [self.axes.variable_axes[kernel.variable, a] for a in kernel.reduction_axes]
        others = [self.axes.variable_axes[kernel.variable, a] for a in range(rank) if a not in kernel.reduction_axes]
        takes = self.carried.groups(summed)
        letters = [letter for letter, on in (("K", self.carried.groups(others)), ("C", takes)) if on]
        reason = plan.reasons[index]
        if reason is not None and not note:
            moves, size = plan.movable[index], kernel.reduction_size
            if reason.op is not None:
                op = reason.op._replace(name=self.scopes.below_root(reason.op.name))
                reason = dataclasses.replace(reason, op=op)
            note = f"{size - moves} of {size} ({reason})" if moves else str(reason)
        return takes, ",".join(letters), note

    def _axes_of(self, tensor: Tensor) -> Sequence[Any]:
        if tensor.dtype == tf.variant:
            return self.axes.listed(tensor)
        if tensor.shape is None or tensor.value is not None or tensor.is_resource:
            return ()
        found = self._nested.get(id(tensor))
        if found is None:
            axes = self.axes.nested(tensor)
            found = self._nested[id(tensor)] = [a.ids.ravel() if isinstance(a, Nested) else a for a in axes]
        return found

    def _variable_axes(self, variables: Iterable[int]) -> list[Any]:
        found = [(v, a) for v in variables for a in range(len(self.axes.runs(v)))]
        return [self.axes.variable_axes[key] for key in found]


class _Carried:
    """Which groups an axis carries, and whether it holds channels that a prunable kernel sums over but cannot move."""

    def __init__(self, plan: ModelPlan):
        axes, classes = plan.axes, plan.axes.classes()
        group_of = np.full(len(classes.pinned), -1, np.int64)
        for index, group in reversed(list(enumerate(plan.plan.groups))):  # of what moves at two levels, the inner
            for place in group.places:
                group_of[classes.of[axes.variable_axes[place.variable, place.axis][place.positions]]] = index
        summed = [
            axes.variable_axes[kernel.variable, axis]
            for kernel, reason in zip(plan.plan.kernels, plan.plan.reasons, strict=True)
            if reason is not None  # else all its channels move: what is pinned of it (heads) blocks nothing
            for axis in kernel.reduction_axes
        ]
        self._group = group_of[classes.of]
        self._blocked = (classes.pinned & classes.holding(summed))[classes.of]
        # Axes are handed on from op to op as the same array: look at each once.
        self._seen: dict[int, tuple[Any, frozenset[int], bool]] = {}

    def groups(self, axes: Iterable[Any]) -> set[int]:
        return {g for ids in axes if ids is not None for g in self._look(ids)[1]}

    def groups_on(self, axis: Any) -> set[int]:
        return self.groups([axis])

    def blocks(self, axes: Iterable[Any]) -> bool:
        return any(self._look(ids)[2] for ids in axes if ids is not None)

    def _look(self, ids: np.ndarray) -> tuple[Any, frozenset[int], bool]:
        found = self._seen.get(id(ids))
        if found is None:
            groups = frozenset(np.unique(self._group[ids]).tolist()) - {-1}
            # The array itself is kept too, so that no other can get its id.
            found = self._seen[id(ids)] = ids, groups, bool(self._blocked[ids].any())
        return found


def _letters(per_axis: Sequence[set[int]], takes: set[int], gives: set[int]) -> str:
    """K and C of a kernel that is not pruned, from the groups on its axes; "" if each channel makes its own output."""
    makes, sums = [bool(on & gives) for on in per_axis], [bool(on & takes) for on in per_axis]
    if len(per_axis) == 1 and makes[0] and sums[0]:
        return ""  # a depthwise convolution written as a grouped one
    return ",".join(letter for letter, found in (("K", any(makes)), ("C", any(sums))) if found)


def _pins_by_op(plan: ModelPlan, carried: _Carried) -> dict[str, list[str]]:
    """For each op that keeps channels of a prunable kernel in place, by name: why. A loop does what its body does."""
    notes: dict[str, dict[str, None]] = {}
    calls = {op.name for op in plan.graph.ops if op.type in (*LOOPS, *CHOICES)}
    for ids, reason in plan.axes.pins():
        if reason.op is not None and carried.blocks([ids]):
            scopes = itertools.accumulate(reason.op.name.split("/"), "{}/{}".format)
            name = next((scope for scope in scopes if scope in calls), reason.op.name)
            notes.setdefault(name, {})[reason.why] = None
    return {name: list(texts) for name, texts in notes.items()}


def ranges(numbers: Iterable[int]) -> str:
    """Writes a set of numbers as ranges: {0, 1, 2, 5} as "0-2,5"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
