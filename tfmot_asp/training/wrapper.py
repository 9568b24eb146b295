"""The pruning wrapper: tfmot's ``PruneLowMagnitude`` with an m by n mask along each kernel's true reduction axis.

When are weights sparse? tfmot masks in the forward pass and when an epoch ends, so between an optimizer step and the
next forward pass its weights are dense, and so is every checkpoint taken there. Here the mask is also the kernel
variable's *constraint*, which Keras optimizers apply as part of each update: the pattern holds after every step, not
only after every epoch, and the forward pass has nothing left to do except when the mask changes.

What differs from tfmot for ``sparsity_m_by_n``:

- the schedule counts. tfmot ignores it and masks at step 1. Here a constant schedule masks once, at its ``begin_step``,
  and any other approaches the pattern: at sparsity s the share s / (m / n) of the stripes is masked, those that
  lose the least magnitude first. After the last update the masks are frozen;
- masks are bool, one byte per weight, and come from the stored float32 weights, also under mixed precision;
- the ``UpdatePruningStep`` callback is optional.
"""

from __future__ import annotations

import inspect
import logging
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_model_optimization.python.core.keras.compat import keras
from tensorflow_model_optimization.python.core.keras.utils import smart_cond
from tensorflow_model_optimization.python.core.sparsity.keras import (
    prune_registry,
    pruning_impl,
    pruning_schedule,
    pruning_wrapper,
)

from tfmot_asp import masks
from tfmot_asp.keras_models.constraints import assign, attach_mask, detach_mask, in_cross_replica_context
from tfmot_asp.keras_models.kernels import kernels_of
from tfmot_asp.keras_models.layouts import ATTENTION_KINDS, kind_of
from tfmot_asp.keras_models.variables import underlying_variable
from tfmot_asp.pattern import Pattern, PatternLike
from tfmot_asp.training import schedule

logger = logging.getLogger(__name__)


@keras.utils.register_keras_serializable(package="tfmot_asp")
class PruneLowMagnitude(pruning_wrapper.PruneLowMagnitude):
    """Wraps a layer so that its kernels are pruned while it trains.

    A subclass of tfmot's wrapper of the same name: ``isinstance`` checks, ``UpdatePruningStep``, ``PruningSummaries``
    and ``strip_pruning`` of tfmot work on it. With ``sparsity_m_by_n=None`` it is tfmot's wrapper.

    Args:
        layer: the layer to wrap, built or not.
        pruning_schedule: when to mask, a tfmot ``PruningSchedule``. None means once, at the first training step.
        block_size: tfmot's block pattern; only without ``sparsity_m_by_n``.
        block_pooling_type: ``"AVG"`` or ``"MAX"``, for ``block_size``.
        sparsity_m_by_n: the pattern along the reduction axis, ``(zeros, block)`` or ``"N:M"``.
        **kwargs: passed to the Keras layer constructor.

    Raises:
        ValueError: for a layer without a known kernel, a pattern that makes no sense, a schedule that stops short of
            it, or both ``block_size`` and ``sparsity_m_by_n``.

    Example:
        >>> model = tf_keras.Sequential([tf_keras.Input((64,)), tfmot_asp.PruneLowMagnitude(layers.Dense(32))])
    """

    def __init__(
        self,
        layer: Any,
        pruning_schedule: Any = None,
        block_size: tuple[int, int] = (1, 1),
        block_pooling_type: str = "AVG",
        sparsity_m_by_n: PatternLike | None = None,
        **kwargs: Any,
    ) -> None:
        pattern = None if sparsity_m_by_n is None else Pattern.of(sparsity_m_by_n)
        if pattern is not None:
            if tuple(block_size) != (1, 1):
                raise ValueError(
                    f"block_size={tuple(block_size)} and sparsity_m_by_n={pattern} are two different patterns; "
                    "give one of them"
                )
            schedule.check_schedule(pruning_schedule, pattern)
            _check_wrappable(layer)
            if isinstance(layer, keras.layers.Layer):
                kwargs.setdefault("dtype", layer.dtype_policy)  # the wrapper casts the inputs on the layer's behalf
        super().__init__(
            layer,
            pruning_schedule=pruning_schedule or schedule.default_schedule(pattern),
            block_size=block_size,
            block_pooling_type=block_pooling_type,
            sparsity_m_by_n=pattern,
            **kwargs,
        )

    def build(self, input_shape: Any) -> None:
        """Builds the wrapped layer, its masks and thresholds, and ties the masks to the kernels' constraints."""
        if self.sparsity_m_by_n is None:
            super().build(input_shape)
            return
        keras.layers.Wrapper.build(self, input_shape)
        _build_projections(self.layer)
        pruning_vars, reduction_axes = [], []
        for index, (weight, axes) in enumerate(_prunable_weights(self.layer)):
            suffix = f"_{index}" if index else ""  # checkpoints know variables by these names
            mask = self.add_weight(
                f"mask{suffix}",
                shape=weight.shape,
                initializer="ones",
                dtype=tf.bool,
                trainable=False,
                aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
            )
            threshold = self.add_weight(
                f"threshold{suffix}",
                shape=[],
                initializer="zeros",
                dtype=underlying_variable(weight).dtype,
                trainable=False,
                aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
            )
            pruning_vars.append((weight, mask, threshold))
            reduction_axes.append(axes)
        self._set_pruning_vars(pruning_vars)
        self.pruning_step = self.add_weight(
            "pruning_step",
            shape=[],
            initializer=keras.initializers.Constant(-1),
            dtype=tf.int64,
            trainable=False,
        )
        self.pruning_obj = MByNPruning(
            lambda: self.pruning_step,
            self.pruning_vars,
            reduction_axes,
            self.pruning_schedule,
            self.sparsity_m_by_n,
        )
        self._attach()

    def call(self, inputs: Any, training: Any = None, **kwargs: Any) -> Any:
        """Updates the masks if a training step is due for it, then calls the wrapped layer."""
        if self.sparsity_m_by_n is None:
            return super().call(inputs, training=training, **kwargs)
        if training is None:
            training = keras.backend.learning_phase()

        def advance() -> Any:
            self._attach()  # another wrapper around the same layer may have put its own masks in place
            trains = any(weight.trainable for weight in self.prunable_weights) and self.layer.trainable
            if not self.pruning_obj.calls.is_first(trains):
                return tf.no_op("counted")
            # A step counter of -1 means that no callback reset it: the first step is step 1 all the same.
            step = self.pruning_step.assign(tf.maximum(self.pruning_step + 1, tf.constant(1, tf.int64)))
            with tf.control_dependencies([step]):
                return self.pruning_obj.conditional_mask_update()

        smart_cond(training, advance, lambda: tf.no_op("no_update"))
        if "training" in inspect.signature(self.layer.call).parameters:
            kwargs["training"] = training
        return self.layer.call(inputs, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """tfmot's config plus ``sparsity_m_by_n``, which tfmot forgets."""
        return {**super().get_config(), "sparsity_m_by_n": self.sparsity_m_by_n}

    def set_weights(self, weights: list[np.ndarray]) -> None:
        """Sets the wrapped layer's weights, masked by the current masks."""
        super().set_weights(weights)
        if self.sparsity_m_by_n is not None and self.built:
            self.pruning_obj.weight_mask_op()

    def finish_pruning(self) -> None:
        """Brings every kernel into the full pattern now, whatever the schedule says, and masks it.

        Before any training this is one-shot pruning. After training to the end of the schedule it changes nothing;
        after training that stopped short of it, the log says so.
        """
        if self.sparsity_m_by_n is None or not self.built:
            return
        steps = max(0, int(keras.backend.get_value(self.pruning_step)))
        if self.pruning_obj.complete_masks() and steps:
            logger.warning(
                "Layer %r had not reached its pattern %s after %d training steps; its masks were completed now. "
                "Train longer, or shorten the schedule, for better accuracy.",
                self.layer.name,
                Pattern.of(self.sparsity_m_by_n),
                steps,
            )
        self.pruning_obj.weight_mask_op()

    @tf.__internal__.tracking.no_automatic_dependency_tracking
    def _set_pruning_vars(self, pruning_vars: list[tuple[Any, Any, Any]]) -> None:
        # Untracked: the kernels belong to the wrapped layer, and Keras would save them a second time as ours.
        self.pruning_vars = pruning_vars
        self.prunable_weights = [weight for weight, _, _ in pruning_vars]

    def _attach(self) -> None:
        for weight, mask, _ in self.pruning_vars:
            attach_mask(weight, mask, applied=self.pruning_obj.calls.updated)

    def release(self) -> None:
        """Unties the masks from the kernels: the wrapped layer trains densely again."""
        for weight, _, _ in self.pruning_vars if self.sparsity_m_by_n is not None else ():
            detach_mask(weight)


class CallsOfAStep:
    """Tells the first call of a layer within a training step from the others: a shared layer has several.

    A step ends when an optimizer updates the weights. It is enough to know this while Python runs: a step that is
    traced has its calls and its updates traced in that order.
    """

    def __init__(self) -> None:
        self._graphs: dict[int, Any] = {}  # by thread, since a step of several replicas is traced by one thread each

    def is_first(self, trains: bool) -> bool:
        """Whether there was no call since the last update.

        Args:
            trains: whether updates are to be expected. If not, calls count as one step each in eager mode, and as one
                per traced function.
        """
        graph = tf.compat.v1.get_default_graph()
        last = self._graphs.get(threading.get_ident())
        if last is not None and last() is graph and (trains or not tf.executing_eagerly()):
            return False
        self._graphs[threading.get_ident()] = weakref.ref(graph)
        return True

    def updated(self) -> None:
        """To be called with each update."""
        self._graphs.clear()


class MByNPruning(pruning_impl.Pruning):
    """Mask updates for one wrapped layer.

    Args:
        step_fn: gives the variable that counts training steps.
        pruning_vars: (weight, mask, threshold) variables, as tfmot keeps them.
        reduction_axes: for each weight, the axes along which the pattern runs.
        steps: the tfmot ``PruningSchedule``.
        pattern: in the kernels.
    """

    def __init__(
        self,
        step_fn: Callable[[], Any],
        pruning_vars: list[tuple[Any, Any, Any]],
        reduction_axes: list[tuple[int, ...]],
        steps: Any,
        pattern: Pattern,
    ) -> None:
        super().__init__(step_fn, pruning_vars, steps, (1, 1), "AVG", sparsity_m_by_n=pattern)
        self.calls = CallsOfAStep()
        self._reduction_axes = reduction_axes
        self._stored = [underlying_variable(weight) for weight, _, _ in pruning_vars]
        self._once = isinstance(steps, pruning_schedule.ConstantSparsity)
        self._first_step = max(1, int(getattr(steps, "begin_step", 1)))

    def conditional_mask_update(self) -> Any:
        """Computes new masks and applies them to the weights, if the schedule has an update due at this step."""
        if not self._pruning_vars:
            return tf.no_op("no_update")

        def update(strategy: Any) -> Any:
            step = self._step_fn()
            due = tf.equal(step, self._first_step)
            if not self._once:
                due = tf.logical_or(due, self._pruning_schedule(step)[0])
            return tf.cond(due, lambda: self._update_masks(strategy), lambda: tf.no_op("no_update"))

        return in_cross_replica_context(update)

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
            if masks.violations(current, axes, self._sparsity_m_by_n):
                score = np.abs(masks.apply_mask(np.asarray(stored.read_value()), current))
                # A position already masked must stay so even where all the kept ones are zero too.
                score = np.where(current, score.astype(np.float64), -1.0)
                mask.assign(masks.m_by_n_mask(score, axes, self._sparsity_m_by_n))
                completed = True
        return completed

    def add_pruning_summaries(self) -> None:
        """Adds summaries of the mask sparsities and thresholds (tfmot's, for bool masks)."""
        tf.summary.scalar("sparsity", self._pruning_schedule(self._step_fn())[1])
        for _, mask, threshold in self._pruning_vars:
            tf.summary.scalar(mask.name + "/sparsity", 1.0 - tf.reduce_mean(tf.cast(mask, tf.float32)))
            tf.summary.scalar(threshold.name + "/threshold", threshold)

    def _update_masks(self, strategy: Any) -> Any:
        pattern = Pattern.of(self._sparsity_m_by_n)
        written = []
        for stored, axes, (_, mask, threshold) in zip(
            self._stored, self._reduction_axes, self._pruning_vars, strict=True
        ):
            weight = stored.read_value()
            score = tf.abs(weight)
            if self._once:
                new_mask = masks.m_by_n_mask(score, axes, pattern)
            else:
                sparsity = tf.cast(self._pruning_schedule(self._step_fn())[1], tf.float64)
                fraction = sparsity / pattern.sparsity
                # A schedule that ends at 0.333 for 2:3 means the whole pattern.
                whole = sparsity >= pattern.sparsity - schedule.SPARSITY_TOLERANCE
                fraction = tf.where(whole, tf.ones_like(fraction), fraction)
                new_mask = masks.partial_m_by_n_mask(score, axes, pattern, fraction)
            largest_dropped = tf.reduce_max(tf.where(new_mask, tf.zeros_like(score), score))
            written += [
                assign(strategy, mask, new_mask),
                assign(strategy, threshold, largest_dropped),
                assign(strategy, stored, masks.apply_mask(weight, new_mask)),
            ]
        return tf.group(written)


def _check_wrappable(layer: Any) -> None:
    """Makes sure that tfmot's constructor takes the layer; its own registry knows exact classes only."""
    if not isinstance(layer, keras.layers.Layer) or hasattr(layer, "get_prunable_weights"):
        return  # what is no layer gets tfmot's error
    if prune_registry.PruneRegistry.supports(layer):
        return
    if kind_of(layer) is None:
        raise ValueError(
            f"Layer {layer.name!r} of type {type(layer).__name__} has no kernel that is known. Define a method "
            "get_prunable_weights on it that lists the weights to prune, or leave it out."
        )
    layer.get_prunable_weights = lambda: [weight for weight, _ in _prunable_weights(layer)]


def _build_projections(layer: Any) -> None:
    """Builds the projections of an attention layer that was made from its config: Keras does so at the first call."""
    if kind_of(layer) not in ATTENTION_KINDS or kernels_of(layer):
        return
    query = getattr(layer, "_query_shape", None)
    if query is None:
        raise ValueError(
            f"Layer {layer.name!r} of type {type(layer).__name__} has not been called, so its projections do not exist "
            "yet. Call it once (or build the model around it), then wrap it."
        )
    heads = (*query[:-1], layer._num_heads, layer._value_dim)
    for projection, shape in (
        (layer._query_dense, query),
        (layer._key_dense, layer._key_shape),
        (layer._value_dense, layer._value_shape),
        (layer._output_dense, heads),
    ):
        # The name scopes that a call would open: variable names, and so checkpoints, stay the same.
        with tf.name_scope(projection.name):
            projection.build(tf.TensorShape(shape))


def _prunable_weights(layer: Any) -> list[tuple[Any, tuple[int, ...]]]:
    """The weights of a built layer to prune, each with its reduction axes."""
    kernels = [kernel for kernel in kernels_of(layer) if kernel.layout.reduction_axes]
    by_identity = {id(kernel.tf_variable): kernel.layout.reduction_axes for kernel in kernels}
    if not hasattr(type(layer), "get_prunable_weights") and kind_of(layer) is not None:
        return [(kernel.variable, kernel.layout.reduction_axes) for kernel in kernels]
    found = []
    for weight in layer.get_prunable_weights():
        axes = by_identity.get(id(underlying_variable(weight)))
        if axes is None:
            if isinstance(layer, keras.layers.Embedding) or len(weight.shape) < 2:
                raise ValueError(
                    f"Layer {layer.name!r} of type {type(layer).__name__} asks to prune a weight of shape "
                    f"{tuple(weight.shape)}, which no matrix product reads along a reduction axis; sparsity_m_by_n "
                    "does not apply to it. Leave the layer out, or use sparsity_m_by_n=None."
                )
            axes = (len(weight.shape) - 2,)  # (..., inputs, outputs): the layout of all of Keras' own kernels
        found.append((weight, axes))
    return found
