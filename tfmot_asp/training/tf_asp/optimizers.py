"""``AspOptimizerWrapperV2``: TF-ASP's optimizer wrapper, for tf_keras' current and legacy optimizers.

The wrapper permutes the model when it is made, computes the masks at the first step, and hands all else to the
optimizer inside. Masks hold by the kernels' constraints, which that optimizer applies; see ``constraints.py``.
"""

from __future__ import annotations

import os
from typing import Any

import tensorflow as tf
import tf_keras

from tfmot_asp.hardware.allowed_kernels import allowed_kernels
from tfmot_asp.hardware.rule import TF_ASP_KINDS, PruneForSparseTensorCores
from tfmot_asp.keras_models.checks import check_built
from tfmot_asp.keras_models.constraints import is_masked
from tfmot_asp.keras_models.kernels import Kernel
from tfmot_asp.keras_models.quantized import check_not_quantized
from tfmot_asp.keras_models.which_keras import is_keras3
from tfmot_asp.training.tf_asp import messages
from tfmot_asp.training.tf_asp.first_step import FirstStepMasks
from tfmot_asp.training.trained import prune_trained_model
from tfmot_asp.types import CalibrationData, InputShapes, Policy

_OWN = ("_optimizer", "_asp", "_wrapper_name")
_Delegating: Any = tf.__internal__.tracking.DelegatingTrackableMixin


class AspOptimizerWrapperV2:
    """An optimizer that permutes a model, prunes it 2:4 at the first step, and keeps it so; TF-ASP's interface.

    A script that used TF-ASP runs with its import changed to ``import tfmot_asp as tf_asp``. The model is permuted at
    once (its function does not change). At the first ``apply_gradients`` the masks are computed from the weights, and
    frozen; from then on the pattern holds after every step. Dense and Conv2D kernels are pruned, by the rule of
    ``PruneForSparseTensorCores``, or by the policy that is given.

    The result is an instance of the same base class as ``optimizer``, ``tf_keras.optimizers.legacy.Optimizer`` or
    ``tf_keras.optimizers.Optimizer``, and stands in for it: ``iterations`` and hyperparameters (``lr``, ``beta_1``)
    are the inner optimizer's, to read and to set, and so is the format of checkpoints, in which the masks are added.
    A ``LossScaleOptimizer`` goes around it, not inside. What the optimizer keeps for the weights (momentum, moments) is
    permuted with them.

    Args:
        optimizer: the tf_keras optimizer to wrap, current or legacy. One that is wrapped for this model already is
            wrapped anew; one that is for another model then prunes both.
        model: the built tf_keras model that it trains.
        input_shapes: a shape such as ``(None, 224, 224, 3)``, a list of shapes, or ``TensorSpec``s; only needed for
            models that do not know their inputs.
        padding: prune Dense layers of any input size, counting the last stripe as padded with zeros.
        permute: whether to permute the model. One whose masks are in force already is left as it is.
        search_device: ``"GPU"`` uses one where there is one, ``"CPU"`` does not. The result is the same.
        search_time_limit: seconds, as TF-ASP had it; of no effect, since the search stops after a fixed amount of work
            so that its result depends on nothing else. Call ``tfmot_asp.permute(model, effort=...)`` and give
            ``permute=False`` here to choose.
        plot_to_file: where to draw which ops were permuted.
        name: of the optimizer.
        policy: which layers to prune, instead of ``padding``: anything with ``why(layer) -> str | None``, or a tfmot
            ``PruningPolicy``.
        calibration_data: samples without labels, as ``prune_trained_model`` takes them. The model's weights are then
            pruned on them at once, by reconstruction; the masks of the first step are those of these weights.

    Raises:
        ValueError: for a model that is none of tf_keras, not built, or holds NaN, or an optimizer that cannot be
            wrapped. The model is as it was.

    Example:
        >>> import tfmot_asp as tf_asp
        >>> optimizer = tf_keras.optimizers.legacy.SGD(0.2, momentum=0.9)
        >>> optimizer = tf_asp.AspOptimizerWrapperV2(optimizer, model, padding=True)
        >>> model.compile(optimizer, "mse")
    """

    _optimizer: Any
    _asp: FirstStepMasks

    def __new__(cls, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        """Makes an instance of the variant that suits the optimizer."""
        return object.__new__(_variant(optimizer) if cls is AspOptimizerWrapperV2 else cls)

    def __init__(
        self,
        optimizer: Any,
        model: Any,
        input_shapes: InputShapes | None = None,
        padding: bool = False,
        permute: bool = True,
        search_device: str = "GPU",
        search_time_limit: float = 60,
        plot_to_file: str | os.PathLike[str] | None = None,
        name: str | None = None,
        policy: Policy | None = None,
        calibration_data: CalibrationData | None = None,
    ) -> None:
        device = messages.check_arguments(search_device, search_time_limit)
        if policy is not None and padding:
            raise ValueError("padding=True is an option of the default policy: PruneForSparseTensorCores(padding=True)")
        policy = PruneForSparseTensorCores(padding=padding, kinds=TF_ASP_KINDS) if policy is None else policy
        options = {**messages.permute_options(model, input_shapes, device, plot_to_file), "optimizer": optimizer}
        kernels = _prunable_kernels(model, policy, options["input_shapes"])
        in_force = any(is_masked(kernel.variable) for kernel in kernels.values())
        permutation = None
        if permute and in_force:
            messages.log(
                messages.SHOW_PRUNING_INFO, "model %s is pruned already; it keeps its order of channels", model.name
            )
            messages.log_counts(0, len(kernels))
        elif kernels and calibration_data is not None:
            pruned = prune_trained_model(
                model, policy=policy, permute=options if permute else False, calibration_data=calibration_data
            )
            pruned.remove()
            permutation = pruned.permutation
        elif permute and kernels:
            from tfmot_asp.permutation.pipeline import permute as permute_model  # here: it takes time to import

            permutation = permute_model(model, policy=policy, **options)
        if permutation is not None:
            messages.log_permutation(permutation, str(model.name))
        if not kernels:
            messages.log(
                messages.SHOW_PRUNING_INFO, "model %s has no layer to prune: see sparsity_report(model)", model.name
            )
        if isinstance(optimizer, AspOptimizerWrapperV2) and optimizer._asp.model is model:
            optimizer = optimizer.inner_optimizer  # its masks are replaced by those that follow
        object.__setattr__(self, "_optimizer", optimizer)
        object.__setattr__(self, "_wrapper_name", name or type(self).__name__)
        _Delegating.__init__(self, optimizer)
        object.__setattr__(self, "_asp", FirstStepMasks(model, kernels))
        # In the checkpoint of the inner optimizer, beside its slots; those for another model stay there.
        number = 0
        while isinstance(optimizer, AspOptimizerWrapperV2):
            number, optimizer = number + 1, optimizer.inner_optimizer
        optimizer._track_trackable(self._asp, f"asp_masks_{number}" if number else "asp_masks", overwrite=True)

    @property
    def inner_optimizer(self) -> Any:
        """The optimizer that was wrapped."""
        return self._optimizer

    @property
    def iterations(self) -> Any:
        """The inner optimizer's step counter."""
        return self._optimizer.iterations

    @iterations.setter
    def iterations(self, variable: Any) -> None:
        self._optimizer.iterations = variable

    @property
    def learning_rate(self) -> Any:
        """The inner optimizer's learning rate."""
        return self._optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self._optimizer.learning_rate = value

    @property
    def lr(self) -> Any:
        """The inner optimizer's learning rate."""
        return self._optimizer.learning_rate

    @lr.setter
    def lr(self, value: Any) -> None:
        self._optimizer.learning_rate = value

    def get_slot(self, var: Any, slot_name: str) -> Any:
        """A slot variable of the inner optimizer, or a kernel's mask.

        Args:
            var: a variable that is being trained.
            slot_name: for ``"mask"`` the mask as it is now, a tensor of 0 and 1 of the variable's dtype (it is stored
                as one byte per weight).

        Raises:
            KeyError: for the mask of a variable that is not pruned.
        """
        return self._asp.read(var) if slot_name == "mask" else self._optimizer.get_slot(var, slot_name)

    def get_config(self) -> dict[str, Any]:
        """The inner optimizer's config, in TF-ASP's form. A model cannot be part of it."""
        return {"optimizer": tf_keras.optimizers.serialize(self._optimizer)}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        """The inner optimizer, as in TF-ASP: wrap it again, with the model, to go on training sparsely."""
        messages.log(
            messages.SHOW_PRUNING_INFO,
            "an optimizer's config holds no model: got the inner optimizer. To keep the model sparse while it trains "
            "on, compile it with AspOptimizerWrapperV2(optimizer, model, permute=False)",
        )
        inner = config["optimizer"]
        if isinstance(inner, (tf_keras.optimizers.Optimizer, tf_keras.optimizers.legacy.Optimizer)):
            return inner
        legacy = issubclass(cls, tf_keras.optimizers.legacy.Optimizer)
        return tf_keras.optimizers.deserialize(inner, custom_objects=custom_objects, use_legacy_optimizer=legacy)


@tf_keras.utils.register_keras_serializable(package="tfmot_asp")
class AspOptimizerWrapperV2Current(AspOptimizerWrapperV2, _Delegating, tf_keras.optimizers.Optimizer):
    """The variant for tf_keras' current optimizers. Whatever it does not define is the inner optimizer's."""

    def __getattr__(self, name: str) -> Any:
        if name in _OWN:
            raise AttributeError(name)
        return getattr(self._optimizer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if hasattr(self._optimizer, name):
            setattr(self._optimizer, name, value)
        else:
            object.__setattr__(self, name, value)

    @property
    def variables(self) -> Any:
        """The inner optimizer's variables."""
        return self._optimizer.variables

    def build(self, var_list: Any) -> Any:
        """Builds the inner optimizer."""
        return self._optimizer.build(var_list)

    def compute_gradients(self, loss: Any, var_list: Any, tape: Any = None) -> Any:
        """The inner optimizer's gradients."""
        return self._optimizer.compute_gradients(loss, var_list, tape)

    def aggregate_gradients(self, grads_and_vars: Any) -> Any:
        """Sums the gradients of all replicas."""
        return self._optimizer.aggregate_gradients(grads_and_vars)

    def apply_gradients(self, grads_and_vars: Any, *args: Any, **kwargs: Any) -> Any:
        """Computes the masks if this is the first step, and lets the inner optimizer update the variables."""
        grads_and_vars = list(grads_and_vars)
        self._asp.check_trained(variable for _, variable in grads_and_vars)
        self._asp.compute_if_due()
        return self._optimizer.apply_gradients(grads_and_vars, *args, **kwargs)

    def finalize_variable_values(self, var_list: Any) -> None:
        """Writes moving averages to the variables, if the inner optimizer keeps some."""
        self._optimizer.finalize_variable_values(var_list)

    def exclude_from_weight_decay(self, var_list: Any = None, var_names: Any = None) -> None:
        """Keeps variables out of the inner optimizer's weight decay."""
        self._optimizer.exclude_from_weight_decay(var_list, var_names)

    def set_weights(self, weights: Any) -> None:
        """Sets the inner optimizer's variables."""
        self._optimizer.set_weights(weights)

    def save_own_variables(self, store: Any) -> None:
        """Saves the inner optimizer's variables."""
        self._optimizer.save_own_variables(store)

    def load_own_variables(self, store: Any) -> None:
        """Loads the inner optimizer's variables."""
        self._optimizer.load_own_variables(store)


@tf_keras.utils.register_keras_serializable(package="tfmot_asp")
class AspOptimizerWrapperV2Legacy(AspOptimizerWrapperV2, _Delegating, tf_keras.optimizers.legacy.Optimizer):
    """The variant for tf_keras' legacy optimizers. Hyperparameters are the inner optimizer's."""

    @property
    def _hyper(self) -> Any:  # what Keras' attribute access looks hyperparameters up in
        return object.__getattribute__(self, "_optimizer")._hyper

    def _get_hyper(self, name: str, dtype: Any = None) -> Any:
        return self._optimizer._get_hyper(name, dtype)

    def _set_hyper(self, name: str, value: Any) -> None:
        self._optimizer._set_hyper(name, value)

    @property
    def _name(self) -> str:
        return self._wrapper_name

    @property
    def weights(self) -> Any:
        """The inner optimizer's variables."""
        return self._optimizer.weights

    def variables(self) -> Any:
        """The inner optimizer's variables."""
        return self._optimizer.variables()

    def get_weights(self) -> Any:
        """The values of the inner optimizer's variables."""
        return self._optimizer.get_weights()

    def set_weights(self, weights: Any) -> None:
        """Sets the inner optimizer's variables."""
        self._optimizer.set_weights(weights)

    def get_slot_names(self) -> list[str]:
        """The inner optimizer's slot variables: ``"mask"`` is none of them, checkpoints hold masks by another path."""
        return self._optimizer.get_slot_names()

    def add_slot(self, var: Any, slot_name: str, *args: Any, **kwargs: Any) -> Any:
        """Adds a slot to the inner optimizer."""
        return self._optimizer.add_slot(var, slot_name, *args, **kwargs)

    def apply_gradients(self, grads_and_vars: Any, *args: Any, **kwargs: Any) -> Any:
        """Computes the masks if this is the first step, and lets the inner optimizer update the variables."""
        grads_and_vars = list(grads_and_vars)
        self._asp.check_trained(variable for _, variable in grads_and_vars)
        self._asp.compute_if_due()
        return self._optimizer.apply_gradients(grads_and_vars, *args, **kwargs)

    def get_updates(self, loss: Any, params: Any) -> Any:
        """Not available: it belongs to TF 1 graphs."""
        raise NotImplementedError("AspOptimizerWrapperV2 works in eager mode and in tf.function; use apply_gradients")


def _delegate(name: str) -> Any:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._optimizer, name)(*args, **kwargs)

    method.__name__ = name
    return method


def _delegated_setting(name: str) -> property:
    def get(self: Any) -> Any:
        return getattr(self._optimizer, name)

    def put(self: Any, value: Any) -> None:
        setattr(self._optimizer, name, value)

    return property(get, put)


# What `minimize`, `LossScaleOptimizer` and checkpoints call beside `apply_gradients`.
for _method in (
    "_aggregate_gradients",
    "_compute_gradients",
    "_create_all_weights",
    "_create_hypers",
    "_create_or_restore_slot_variable",
    "_create_slots",
    "_prepare",
    "_restore_slot_variable",
    "_transform_gradients",
    "_transform_loss",
    "_transform_unaggregated_gradients",
):
    setattr(AspOptimizerWrapperV2Legacy, _method, _delegate(_method))
for _setting in ("clipnorm", "clipvalue", "global_clipnorm"):
    setattr(AspOptimizerWrapperV2Legacy, _setting, _delegated_setting(_setting))


def _variant(optimizer: Any) -> type:
    legacy = tf_keras.optimizers.legacy.Optimizer
    kind = type(optimizer).__name__
    if "LossScaleOptimizer" in kind:
        raise ValueError(
            f"wrap the other way round, {kind}(AspOptimizerWrapperV2(optimizer, model)): steps that overflow must not "
            "count as the first step"
        )
    if isinstance(optimizer, legacy):
        return AspOptimizerWrapperV2Legacy
    if isinstance(optimizer, tf_keras.optimizers.Optimizer):
        return AspOptimizerWrapperV2Current
    raise ValueError(
        f"AspOptimizerWrapperV2 wraps optimizers of tf_keras, current and legacy; got a {type(optimizer).__module__}."
        f"{kind}. For Keras 3, use tfmot_asp.prune_trained_model(model), which works with every optimizer of Keras"
    )


def _prunable_kernels(model: Any, policy: Policy, input_shapes: InputShapes | None) -> dict[str, Kernel]:
    """The kernels that the policy prunes, by name, each variable once."""
    if not isinstance(model, tf_keras.Model):
        hint = "; for Keras 3, use tfmot_asp.prune_trained_model(model)" if is_keras3(model) else ""
        raise ValueError(f"model must be a tf_keras model, got a {type(model).__name__}{hint}")
    check_built(model, "wrap its optimizer")
    check_not_quantized(model)
    return allowed_kernels(model, policy, input_shapes)[0]
