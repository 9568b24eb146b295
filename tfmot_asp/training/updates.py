"""When masks change: the steps of a layer, each counted once, and what is due at each of them.

A step is counted by the layer's first call under training. A layer that is called in inference mode while it trains
(``base(x, training=False)``, as in transfer learning) has no such call: then the update of its weights counts the step.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_model_optimization.python.core.sparsity.keras import pruning_impl

from tfmot_asp import masks
from tfmot_asp.keras_models.constraints import assign, in_cross_replica_context
from tfmot_asp.keras_models.variables import underlying_variable
from tfmot_asp.pattern import Pattern
from tfmot_asp.training import schedule


class CallsOfAStep:
    """Tells the first call of a layer within a training step from the others: a shared layer has several.

    A step ends when an optimizer updates the weights. It is enough to know this while Python runs: a step that is
    traced has its calls and its updates traced in that order.
    """

    def __init__(self) -> None:
        self._marks: dict[int, tuple[Any, int]] = {}  # by thread: a step of several replicas is traced by one each
        self._newest: Any = None  # the graph of the last call that counted
        self._calls = self._updates = 0
        self._seen: dict[tuple[int, int], int] = {}

    def is_first(self, trains: bool) -> bool:
        """Whether there was no call since the last update.

        Args:
            trains: whether updates are to be expected. If not, calls count as one step each in eager mode, and as one
                per traced function.
        """
        graph, thread = tf.compat.v1.get_default_graph(), threading.get_ident()
        last, updates = self._marks.get(thread, (lambda: None, -1))
        if last() is graph and updates == self._updates and (trains or not tf.executing_eagerly()):
            return False
        self._newest = weakref.ref(graph)
        self._marks[thread] = self._newest, self._updates
        self._calls += 1
        return True

    def updated(self, index: int) -> bool | None:
        """To be called with each update of the weight of that index.

        Returns:
            Whether its step was counted by a call in the same graph; None if no call has been counted so far at all.
        """
        self._updates += 1
        key = threading.get_ident(), index
        seen, self._seen[key] = self._seen.get(key, 0), self._calls
        if self._newest is None:
            return None
        graph = tf.compat.v1.get_default_graph()
        while graph is not None and graph is not self._newest():  # an update within a tf.cond of the step, for one
            graph = getattr(graph, "outer_graph", None)
        return graph is not None and self._calls > seen


class MByNPruning(pruning_impl.Pruning):
    """Mask updates for one wrapped layer.

    Args:
        step: the variable that counts training steps, -1 before the first unless a callback has set it to 0.
        updated_at: for each weight, a variable with the step of its last update; -1 before the first.
        pruning_vars: (weight, mask, threshold) variables, as tfmot keeps them.
        reduction_axes: for each weight, the axes along which the pattern runs.
        pruning_schedule: tfmot's ``PruningSchedule``.
        pattern: in the kernels.
    """

    def __init__(
        self,
        step: Any,
        updated_at: list[Any],
        pruning_vars: list[tuple[Any, Any, Any]],
        reduction_axes: list[tuple[int, ...]],
        pruning_schedule: Any,
        pattern: Pattern,
    ) -> None:
        super().__init__(lambda: step, pruning_vars, pruning_schedule, (1, 1), "AVG", sparsity_m_by_n=pattern)
        self.calls = CallsOfAStep()
        self._step = step
        self._pattern = pattern
        self._updated_at = updated_at
        self._reduction_axes = reduction_axes
        self._stored = [underlying_variable(weight) for weight, _, _ in pruning_vars]
        self._due = schedule.Due(pruning_schedule, pattern)

    def count_step(self) -> Any:
        """Goes on to the next step, and does what the schedule has for it."""
        if not self._pruning_vars:
            return tf.no_op("no_update")
        return in_cross_replica_context(self._count_step)

    def updated(self, index: int) -> None:
        """Counts the step whose update of a weight this is, unless a call of the layer has done so."""
        counted = self.calls.updated(index)
        if counted:
            return
        last = self._updated_at[index]

        def count(strategy: Any) -> Any:
            here = tf.maximum(self._step.read_value(), 0)
            # Either no call has counted a step since this weight's last update, or there was nothing at all before.
            missed = tf.equal(last.read_value(), here)
            if counted is None:
                newest = tf.reduce_max([other.read_value() for other in self._updated_at])
                missed = tf.logical_or(missed, newest < 0)
            done = tf.cond(missed, lambda: self._count_step(strategy), lambda: tf.no_op("counted"))
            with tf.control_dependencies(None if tf.executing_eagerly() else [done]):
                return assign(strategy, last, tf.maximum(self._step.read_value(), 0))

        in_cross_replica_context(count)

    def conditional_mask_update(self) -> Any:
        """Computes new masks and applies them to the weights, if the schedule has an update due at this step."""
        if not self._pruning_vars:
            return tf.no_op("no_update")
        return in_cross_replica_context(self._update_if_due)

    def weight_mask_op(self) -> Any:
        """Writes zeros to all masked weights (tfmot's name; its callback calls this when an epoch ends)."""

        def write(strategy: Any) -> Any:
            return tf.group(
                [
                    assign(strategy, stored, masks.apply_mask(stored.read_value(), mask.read_value()))
                    for stored, (_, mask, _) in zip(self._stored, self._pruning_vars, strict=True)
                ]
            )

        return in_cross_replica_context(write)

    def complete_masks(self) -> bool:
        """Computes the full pattern for every mask that leaves more than it allows. Returns whether any did."""
        completed = False
        for stored, axes, (_, mask, _) in zip(self._stored, self._reduction_axes, self._pruning_vars, strict=True):
            current = np.asarray(mask.read_value())
            if masks.violations(current, axes, self._pattern):
                score = np.abs(masks.apply_mask(np.asarray(stored.read_value()), current))
                # A position already masked must stay so even where all the kept ones are zero too.
                score = np.where(current, score.astype(np.float64), -1.0)
                mask.assign(masks.m_by_n_mask(score, axes, self._pattern))
                completed = True
        return completed

    def add_pruning_summaries(self) -> None:
        """Adds summaries of the mask sparsities and thresholds (tfmot's, for bool masks)."""
        tf.summary.scalar("sparsity", self._pruning_schedule(self._step_fn())[1])
        for _, mask, threshold in self._pruning_vars:
            tf.summary.scalar(mask.name + "/sparsity", 1.0 - tf.reduce_mean(tf.cast(mask, tf.float32)))
            tf.summary.scalar(threshold.name + "/threshold", threshold)

    def _count_step(self, strategy: Any) -> Any:
        # A step counter of -1 means that no callback reset it: the first step is step 1 all the same.
        step = assign(strategy, self._step, tf.maximum(self._step.read_value() + 1, 1))
        with tf.control_dependencies(None if tf.executing_eagerly() else [step]):
            return self._update_if_due(strategy)

    def _update_if_due(self, strategy: Any) -> Any:
        due = self._due.at(self._step.read_value())
        return tf.cond(due, lambda: self._update_masks(strategy), lambda: tf.no_op("no_update"))

    def _update_masks(self, strategy: Any) -> Any:
        pattern = self._pattern
        fraction = self._due.fraction(self._step.read_value())
        written = []
        for stored, axes, (_, mask, threshold) in zip(
            self._stored, self._reduction_axes, self._pruning_vars, strict=True
        ):
            weight = stored.read_value()
            score = tf.abs(weight)
            if fraction is None:
                new_mask = masks.m_by_n_mask(score, axes, pattern)
            else:
                new_mask = masks.partial_m_by_n_mask(score, axes, pattern, fraction)
            largest_dropped = tf.reduce_max(tf.where(new_mask, tf.zeros_like(score), score))
            written += [
                assign(strategy, mask, new_mask),
                assign(strategy, threshold, largest_dropped),
                assign(strategy, stored, masks.apply_mask(weight, new_mask)),
            ]
        return tf.group(written)
