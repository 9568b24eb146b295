"""From a model to a permutation plan: pick the kernels, trace the model, group its channels. Changes nothing."""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_asp import masks
from tfmot_asp.graph.flat_graph import Graph
from tfmot_asp.graph.flatten import add_training, trace_function
from tfmot_asp.graph.inputs import example_shapes, input_names, input_specs, leaves_sizes_open
from tfmot_asp.graph.open_sizes import REFUSALS, pairs_of_sizes, run_once
from tfmot_asp.graph.trace import concrete_function, variables_of
from tfmot_asp.hardware.policy import estimate_gains, why_dense
from tfmot_asp.hardware.rule import PruneForSparseTensorCores
from tfmot_asp.keras_models.checks import check_built, check_finite
from tfmot_asp.keras_models.constraints import is_masked
from tfmot_asp.keras_models.kernels import Kernel, Scores, kernel_name, layers_with_kernels, scores_of
from tfmot_asp.keras_models.slots import optimizers_of, slots_of
from tfmot_asp.keras_models.variables import underlying_variable, view
from tfmot_asp.keras_models.which_keras import check_backend, is_keras_layer
from tfmot_asp.keras_models.windows import LARGE_WINDOW, WINDOW, windows
from tfmot_asp.keras_models.wrappers import check_not_wrapped
from tfmot_asp.pattern import TWO_FOUR, Pattern, PatternLike
from tfmot_asp.permutation.analysis import analyse
from tfmot_asp.permutation.axes import Axes, Runs
from tfmot_asp.permutation.groups import PermutationPlan, PlannedKernel, plan_groups
from tfmot_asp.permutation.merged_axes import merged_axes
from tfmot_asp.permutation.reorder import AxisMoves, Moves, reordered_window
from tfmot_asp.reason import Reason
from tfmot_asp.types import InputShapes, Policy

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class DenseLayer:
    """A layer with a kernel that the policy keeps dense, and its reason."""

    name: str
    kind: str
    reason: Reason


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ModelPlan:
    """A model with its plan.

    Attributes:
        function: the concrete function that was traced; running it is how the result is verified.
        graph: its ops and variables.
        axes: which positions of them move together, and which are pinned.
        plan: the groups.
        kinds: for each planned kernel the kind of its layer ("Dense", "Conv2D", ...).
        unused: kernels to be pruned that the traced function does not read.
        dense: the other layers that have a kernel.
        pattern: the sparsity pattern.
        outputs: how many of the graph's outputs are the model's own.
        free: whether the channels of these may move.
        scores: of planned kernels, by the position of their variable, where magnitudes are not what counts.
        stored: the values of variables, by their positions, where they are not in the model but in files.
    """

    function: Any
    graph: Graph
    axes: Axes
    plan: PermutationPlan
    kinds: tuple[str, ...]
    unused: tuple[DenseLayer, ...]
    dense: tuple[DenseLayer, ...]
    pattern: Pattern
    outputs: int = 0
    free: bool = False
    scores: Mapping[int, np.ndarray] = dataclasses.field(default_factory=dict)
    stored: Mapping[int, Any] | None = None

    def __repr__(self) -> str:
        return f"ModelPlan({len(self.plan.kernels)} kernels, {len(self.plan.groups)} groups, {self.graph})"

    def weight(self, variable: int) -> Any:
        """The current value of a variable: not a copy, and not to be written."""
        return view(self.graph.variables[variable]) if self.stored is None else self.stored[variable]

    def score(self, kernel: PlannedKernel) -> Any:
        """The score of each weight of a kernel, in its shape: what was given, else the weight itself."""
        given = self.scores.get(kernel.variable)
        return (self.weight(kernel.variable) if given is None else given).reshape(kernel.shape)

    def shape(self, variable: int) -> tuple[int, ...]:
        """The shape of a variable in the axes of the plan: those that are taken as one are one."""
        shape = self.graph.variables[variable].shape
        return tuple(math.prod(int(shape[axis]) for axis in run) for run in self.axes.runs(variable))

    def along(self, variable: int, moves: Moves) -> AxisMoves:
        """How a variable moves, in the axes of the plan."""
        runs = list(self.axes.runs(variable))
        return [(runs.index(axes), index) for axes, index in moves]

    def retained(self, kernel: PlannedKernel, moves: Moves = ()) -> tuple[float, float]:
        """How much of the scores of a kernel, reordered, the mask keeps, and how much there is in all."""
        score, along, kept, total = self.score(kernel), self.along(kernel.variable, moves), [], []
        elements = WINDOW if self.stored is None else LARGE_WINDOW
        for window in windows(kernel.shape, whole=kernel.reduction_axes, elements=elements):
            part = reordered_window(score, along, window)
            kept.append(masks.retained_magnitude(part, kernel.reduction_axes, self.pattern))
            total.append(float(np.abs(part.astype(np.float32)).sum(dtype=np.float64)))
        return math.fsum(kept), math.fsum(total)

    def fingerprint(self) -> dict[str, Any]:
        """What must agree for a permutation found on one model to fit another: its variables and its groups."""
        variables = [[str(v.dtype.name), *map(int, v.shape)] for v in self.graph.variables]
        digest = hashlib.sha256()
        for group in self.plan.groups:
            for place in group.places:
                digest.update(np.asarray([place.variable, place.axis, len(place.positions)], np.int64).tobytes())
                digest.update(place.positions.astype(np.int64).tobytes())
            digest.update(group.columns.astype(np.int64).tobytes())
        return {
            "variables": variables,
            "kernels": [[k.name, *k.shape] for k in self.plan.kernels],
            "groups": digest.hexdigest(),
            "merged": {str(variable): runs for variable, runs in sorted(self.axes.merged.items())},
        }


def plan_model(
    model: Any,
    *,
    policy: Policy | None = None,
    input_shapes: InputShapes | None = None,
    sparsity_m_by_n: PatternLike = TWO_FOUR,
    scores: Scores | None = None,
    outputs: str = "pinned",
    optimizer: Any = None,
    merged: Mapping[int, Runs] | None = None,
    has_weights: bool = True,
    may_be_empty: bool = False,
) -> ModelPlan:
    """Plans the permutation of `model`. See :func:`tfmot_asp.permute` for the arguments and what it raises.

    `merged` says of which variables some axes are taken as one, as a plan's axes have it; by default those of
    `merged_axes` whose slots in the optimizers of the model can follow. Without `has_weights` its architecture is all
    that counts: no weight is read, and the model is not run. Of a model without a kernel to prune there is a plan only
    if it `may_be_empty`, for its picture.
    """
    pattern = Pattern.of(sparsity_m_by_n)
    chosen, dense = _kernels(model, policy, input_shapes)
    if not chosen and not may_be_empty:
        reasons = "; ".join(str(d.reason) for d in dense[:5]) + ("; ..." if len(dense) > 5 else "")
        raise ValueError(
            f"{_title(model)} has no layer that the policy would prune, so there is nothing to permute for. "
            + (f"The layers with kernels: {reasons}" if dense else "It has no Dense or convolution layer.")
        )
    planned = functools.partial(
        _planned,
        chosen=chosen,
        dense=dense,
        pattern=pattern,
        scores=scores,
        outputs=outputs,
        merged=merged,
        optimizers=optimizers_of(model, optimizer),
        has_weights=has_weights,
    )
    if input_shapes is None and leaves_sizes_open(model):
        return _planned_at_open_sizes(model, planned, has_weights)
    return planned(_traced(model, input_shapes))


def _planned_at_open_sizes(model: Any, planned: Callable[..., ModelPlan], runs: bool) -> ModelPlan:
    """A plan at sizes of our own choosing. It is sound if channels move alike at other sizes, which is tried.

    Args:
        model: that leaves sizes open.
        planned: ``_planned`` with all but the first of its arguments given.
        runs: whether the model has weights, and so can be run.

    Raises:
        ValueError: if the model cannot be traced at any of our sizes, or its channels move otherwise at each.
    """
    problem: Exception | None = None
    for size, other in pairs_of_sizes(model):
        try:
            traced = _running(model, size, runs)
        except REFUSALS as error:
            problem = problem or error
            continue
        plan = planned(traced)
        try:
            traced = _running(model, other, runs)
        except REFUSALS:  # it takes no other, as with a table of so many positions
            return plan
        if planned(traced, scores=None).fingerprint() == plan.fingerprint():
            logger.info("%s leaves sizes open: traced at %d", _title(model), size)
            return plan
        problem = ValueError(f"its channels are tied otherwise at size {other} than at {size}")
    raise ValueError(
        f"{_title(model)} leaves sizes of its inputs open, and none that was tried suits it: {problem}. Pass typical "
        f"ones, for example input_shapes={example_shapes(model)}"
    ) from problem


def _running(model: Any, size: int, runs: bool) -> tuple[Any, Graph]:
    """The function and graph at a size for open axes. That it can be traced is not enough: it is run, if it can be."""
    function, graph = _traced(model, None, size)
    if runs:
        run_once(function)
    return function, graph


def _planned(
    traced: tuple[Any, Graph],
    *,
    chosen: list[tuple[str, Kernel]],
    dense: list[DenseLayer],
    pattern: Pattern,
    scores: Scores | None,
    outputs: str,
    merged: Mapping[int, Runs] | None,
    optimizers: list[Any],
    has_weights: bool,
) -> ModelPlan:
    function, graph = traced
    if merged is None:
        merged = {i: runs for i, runs in merged_axes(graph).items() if _follow(optimizers, graph.variables[i], runs)}
    kernels, kinds, unused = [], [], []
    seen: set[int] = set()
    given: dict[int, np.ndarray] = {}
    for name, kernel in chosen:
        variable = graph.variable_index(kernel.variable)
        if variable is None:
            reason = Reason("the model's inference function", f"does not use {name!r}")
            unused.append(DenseLayer(name, kernel.layout.kind, reason))
        elif variable not in seen:
            seen.add(variable)
            kernels.append(_planned_kernel(name, variable, kernel, merged.get(variable)))
            kinds.append(kernel.layout.kind)
            if scores is not None:
                given[variable] = np.fmax(scores_of(name, kernel, scores), 0)
    if has_weights:
        check_finite({k.name: graph.variables[k.variable] for k in kernels}, graph.variables)
    count = sum(tf.is_tensor(t) for t in tf.nest.flatten(function.structured_outputs[0]))
    axes = analyse(graph, free=count if outputs == "free" else 0, merged=merged)
    plan = plan_groups(axes, kernels, pattern.block)
    return ModelPlan(
        function, graph, axes, plan, tuple(kinds), tuple(unused), tuple(dense), pattern, count, outputs == "free", given
    )


def _planned_kernel(name: str, variable: int, kernel: Kernel, runs: Runs | None) -> PlannedKernel:
    """A kernel in the axes of the plan: those that are taken as one are one."""
    summed = kernel.layout.reduction_axes
    if runs is None:
        return PlannedKernel(name, variable, kernel.shape, summed)
    shape = tuple(math.prod(kernel.shape[axis] for axis in run) for run in runs)
    return PlannedKernel(name, variable, shape, tuple(i for i, run in enumerate(runs) if run[0] in summed))


def _follow(optimizers: list[Any], variable: Any, runs: Runs) -> bool:
    """Whether the slots of a variable can be reordered along such axes; True if along none: that is for `apply`."""

    def can(runs: Runs) -> bool:
        try:
            collections.deque(slots_of(optimizers, underlying_variable(variable), runs), maxlen=0)
        except ValueError:
            return False
        return True

    return can(runs) or not can(())


def _traced(model: Any, input_shapes: InputShapes | None, open_size: int | None = None) -> tuple[Any, Graph]:
    """The inference function and its graph; with the training step, where only that reads some of the variables."""
    specs, variables = input_specs(model, input_shapes, open_size=open_size), variables_of(model)
    function = concrete_function(model, specs)
    graph = trace_function(function, variables=variables)
    given = input_names(model, specs)
    if len(given) == len(graph.inputs):
        for tensor, name in zip(graph.inputs, given, strict=True):
            tensor.name = name
    unread = [
        v
        for v in variables
        if v.dtype.is_floating and v.shape.num_elements() not in (None, 1) and graph.variable_index(v) is None
    ]
    if unread:
        # Batch renormalization, spectral normalization, ...: state that inference does not read has to move along.
        try:
            graph = add_training(graph, concrete_function(model, specs, training=True), variables)
        except (TypeError, ValueError) as error:
            names = ", ".join(sorted(v.name for v in unread)[:3])
            logger.warning("inference does not read %s, and the training step could not be traced: %s", names, error)
    return function, graph


def _kernels(
    model: Any, policy: Policy | None, input_shapes: InputShapes | None
) -> tuple[list[tuple[str, Kernel]], list[DenseLayer]]:
    """The kernels that the policy prunes, with names, and the layers it does not."""
    import tensorflow as tf

    if isinstance(model, (list, tuple, str, dict)) or not (is_keras_layer(model) or isinstance(model, tf.Module)):
        raise TypeError(
            f"permute takes a Keras model or a tf.Module that holds Keras layers, got {type(model).__name__}; "
            "a path is loaded first with tf_keras.models.load_model"
        )
    check_backend(model)
    check_built(model, "permute it")
    check_not_wrapped(
        model,
        ": permuting now would move weights from under its mask. Permute the model first, then wrap it; "
        "prune_low_magnitude(permute=True) does both",
    )
    rule = policy if policy is not None else PruneForSparseTensorCores()
    estimate_gains(rule, model, input_shapes)
    chosen, dense = [], []
    for layer in layers_with_kernels(model):
        if any(is_masked(kernel.variable) for kernel in layer.kernels):
            raise ValueError(
                f"layer {layer.name!r} is being pruned already: permuting now would move weights from under its mask. "
                "Permute the model first, then prune it; prune_trained_model(permute=True) does both"
            )
        kernels = [k for k in layer.kernels if k.layout.reduction_axes]
        reason = why_dense(rule, layer.layer)
        if reason is None and kernels:
            chosen += [(kernel_name(layer.name, kernel.attribute), kernel) for kernel in kernels]
        else:
            kind = layer.kernels[0].layout.kind
            dense.append(DenseLayer(layer.name, kind, reason or Reason(repr(layer.name), "sums over no channels")))
    return chosen, dense


def _title(model: Any) -> str:
    return f"{type(model).__name__} {getattr(model, 'name', '')!r}"
