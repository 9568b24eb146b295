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

import functools
import logging
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_model_optimization.python.core.keras.compat import keras
from tensorflow_model_optimization.python.core.keras.utils import smart_cond
from tensorflow_model_optimization.python.core.sparsity.keras import pruning_wrapper

from tfmot_asp.keras_models.constraints import attach_mask, detach_mask
from tfmot_asp.keras_models.variables import underlying_variable
from tfmot_asp.pattern import Pattern, PatternLike
from tfmot_asp.training import schedule
from tfmot_asp.training.prunable import build_projections, check_wrappable, prunable_weights
from tfmot_asp.training.updates import MByNPruning
from tfmot_asp.types import Schedule

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
        pruning_schedule: Schedule | None = None,
        block_size: tuple[int, int] = (1, 1),
        block_pooling_type: str = "AVG",
        sparsity_m_by_n: PatternLike | None = None,
        **kwargs: Any,
    ) -> None:
        pattern = None if sparsity_m_by_n is None else Pattern.of(sparsity_m_by_n)
        # tfmot's constructor asks this of a layer, and lends it to one that has none.
        self._lends_prunable_weights = "get_prunable_weights" not in getattr(layer, "__dict__", ())
        if pattern is not None:
            if tuple(block_size) != (1, 1):
                raise ValueError(
                    f"block_size={tuple(block_size)} and sparsity_m_by_n={pattern} are two different patterns; "
                    "give one of them"
                )
            schedule.check_schedule(pruning_schedule, pattern)
            check_wrappable(layer)
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
        self.supports_masking = self.layer.supports_masking

    def build(self, input_shape: Any) -> None:
        """Builds the wrapped layer, its masks and thresholds, and ties the masks to the kernels' constraints."""
        if self.sparsity_m_by_n is None:
            super().build(input_shape)
            return
        keras.layers.Wrapper.build(self, input_shape)
        build_projections(self.layer)
        pruning_vars, reduction_axes = [], []
        for index, (weight, axes) in enumerate(prunable_weights(self.layer)):
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
            self.pruning_step,
            self._steps_of_updates(len(pruning_vars)),
            self.pruning_vars,
            reduction_axes,
            self.pruning_schedule,
            Pattern.of(self.sparsity_m_by_n),
        )
        self._attach()

    def call(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Updates the masks if a training step is due for it, then calls the wrapped layer as if it stood alone.

        Keras hands ``training`` and ``mask`` to whatever takes ``**kwargs``; the layer gets them if it takes them.
        """
        training, mask = kwargs.pop("training", None), kwargs.pop("mask", None)
        spec = self.layer._call_spec
        if spec.arg_was_passed("training", args, kwargs):
            training = spec.get_arg_value("training", args, kwargs)
        elif "training" in spec.arg_names:
            kwargs["training"] = training
        if mask is not None and spec.expects_mask_arg and not spec.arg_was_passed("mask", args, kwargs):
            kwargs["mask"] = mask
        if self.sparsity_m_by_n is None:
            return super().call(inputs, *args, **{"training": training, **kwargs})
        if training is None:
            training = keras.backend.learning_phase()
        smart_cond(training, self._count_step, lambda: tf.no_op("no_update"))
        return self.layer(inputs, *args, **kwargs)

    @property
    def compute_mask(self) -> Any:
        """The wrapped layer's: a Keras mask passes as if it were not wrapped."""
        return self.layer.compute_mask

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

    @tf.__internal__.tracking.no_automatic_dependency_tracking
    def _steps_of_updates(self, count: int) -> list[Any]:
        """A variable for each weight, with the step of its last update: in checkpoints, but no weight of the layer."""
        self._updated_at = [
            tf.Variable(-1, trainable=False, dtype=tf.int64, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)
            for _ in range(count)
        ]
        for index, variable in enumerate(self._updated_at):
            self._track_trackable(variable, f"updated_at_{index}")
        return self._updated_at

    def _count_step(self) -> Any:
        self._attach()  # another wrapper around the same layer may have put its own masks in place
        trains = any(weight.trainable for weight in self.prunable_weights) and self.layer.trainable
        if not self.pruning_obj.calls.is_first(trains):
            return tf.no_op("counted")
        return self.pruning_obj.count_step()

    def _attach(self) -> None:
        for index, (weight, mask, _) in enumerate(self.pruning_vars):
            attach_mask(weight, mask, applied=functools.partial(self.pruning_obj.updated, index))

    def release(self) -> None:
        """Leaves the wrapped layer as it was before: without masks on its kernels, it trains densely again."""
        for weight, _, _ in self.pruning_vars if self.sparsity_m_by_n is not None else ():
            detach_mask(weight)
        if self._lends_prunable_weights and "get_prunable_weights" in vars(self.layer):
            del self.layer.get_prunable_weights
