"""``prune_low_magnitude`` with tfmot's signature: permute a model, then wrap what sparse Tensor Cores can use."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow_model_optimization as tfmot
from tensorflow_model_optimization.python.core.keras.compat import keras
from tensorflow_model_optimization.python.core.sparsity.keras import pruning_wrapper

from tfmot_asp.hardware.left_dense import left_dense
from tfmot_asp.hardware.policy import estimate_gains, no_prunable_layer_message, why_dense
from tfmot_asp.hardware.rule import PruneForSparseTensorCores
from tfmot_asp.keras_models.checks import check_finite
from tfmot_asp.keras_models.kernels import LayerWithKernels, kernel_name, kernels_by_name, kernels_of
from tfmot_asp.keras_models.layers import NamedLayer
from tfmot_asp.keras_models.quantized import check_not_quantized
from tfmot_asp.keras_models.which_keras import is_keras3
from tfmot_asp.keras_models.wrappable import check_structure, outer_layers
from tfmot_asp.pattern import TWO_FOUR, Pattern, PatternLike
from tfmot_asp.training import schedule
from tfmot_asp.training.wrapper import PruneLowMagnitude
from tfmot_asp.types import CalibrationData, InputShapes, Policy, Schedule

logger = logging.getLogger(__name__)

# The keywords that every layer of tf_keras takes.
_OF_KERAS_LAYERS = (
    "name", "dtype", "trainable", "dynamic", "input_shape", "input_dim", "batch_input_shape", "batch_size", "weights",
    "activity_regularizer", "autocast", "implementation",
)  # fmt: skip


def prune_low_magnitude(
    to_prune: Any,
    pruning_schedule: Schedule | None = None,
    block_size: tuple[int, int] = (1, 1),
    block_pooling_type: str = "AVG",
    pruning_policy: Policy | None = None,
    sparsity_m_by_n: PatternLike | None = TWO_FOUR,
    permute: bool | Mapping[str, Any] = True,
    *,
    policy: Policy | None = None,
    calibration_data: CalibrationData | None = None,
    **kwargs: Any,
) -> Any:
    """Prepares a model, layer or list of layers to be pruned while it trains: 2:4 by default.

    A model is first permuted (its function does not change, but more weight magnitude survives), then each layer that
    the policy allows is wrapped. Train the result with ``fit`` as usual, then call ``strip_pruning``. As in tfmot, the
    wrapped model shares its layers, and so its weights, with the model that came in, and has no optimizer: compile it.

    Args:
        to_prune: a built functional or sequential tf_keras model, a layer, or a list of layers. Layers given one by one
            are wrapped as asked for, without a policy.
        pruning_schedule: a tfmot ``PruningSchedule``. None prunes once, at the first training step; a constant
            schedule does so at its ``begin_step``; others raise the share of masked stripes along with their sparsity.
        block_size: tfmot's block pattern, for ``sparsity_m_by_n=None``.
        block_pooling_type: tfmot's ``"AVG"`` or ``"MAX"``, for ``block_size``.
        pruning_policy: which layers of a model to wrap: a tfmot ``PruningPolicy``, or anything with
            ``why(layer) -> str | None``; by default ``PruneForSparseTensorCores()``.
        sparsity_m_by_n: the pattern along the reduction axis: ``(zeros, block)``, tfmot's pair, or the text ``"N:M"``,
            N kept of every M. None behaves as tfmot's own function: unstructured or block sparsity, no permutation, no
            default policy.
        permute: whether to permute a model first, in place. A mapping is passed to ``tfmot_asp.permute`` as keyword
            arguments, as in ``permute={"effort": "thorough", "seed": 1}``. For its report, call ``tfmot_asp.permute``
            yourself and give False here.
        policy: the same as ``pruning_policy``, by the name that it has everywhere else in this package.
        calibration_data: samples without labels, as ``prune_trained_model`` takes them. The model's weights are then
            pruned on them at once, by reconstruction, and training starts from there with the masks of these weights.
        **kwargs: of Keras' layers, such as ``name``: passed to the wrapper when ``to_prune`` is a single layer, and
            ignored otherwise, as in tfmot.

    Returns:
        The model, layer or list with pruning wrappers (subclasses of tfmot's ``PruneLowMagnitude``).

    Raises:
        TypeError: for a keyword that is none of these, or two policies.
        ValueError: if there is nothing to prune, or what came in cannot be pruned; nothing is changed then.

    Example:
        >>> pruned = tfmot_asp.prune_low_magnitude(model)
        >>> pruned.compile("adam", "sparse_categorical_crossentropy")
        >>> pruned.fit(images, labels, callbacks=[tfmot_asp.UpdatePruningStep()])
        >>> model = tfmot_asp.strip_pruning(pruned)
    """
    _check_keywords(kwargs)
    if policy is not None and pruning_policy is not None:
        raise TypeError("policy and pruning_policy are the same argument; give one of them")
    policy = pruning_policy if policy is None else policy
    _check_type(to_prune)
    if calibration_data is not None and (sparsity_m_by_n is None or not isinstance(to_prune, keras.Model)):
        raise ValueError("calibration_data is for a whole model and an m by n pattern")
    check_not_quantized(to_prune)
    if sparsity_m_by_n is None:
        if isinstance(permute, Mapping):
            raise ValueError("permute=... applies to an m by n pattern; with sparsity_m_by_n=None nothing is permuted")
        if policy is not None and not hasattr(policy, "ensure_model_supports_pruning"):
            raise TypeError(f"with sparsity_m_by_n=None the policy must be a tfmot PruningPolicy, got {policy!r}")
        return tfmot.sparsity.keras.prune_low_magnitude(
            to_prune,
            pruning_schedule=pruning_schedule or schedule.default_schedule(None),
            block_size=block_size,
            block_pooling_type=block_pooling_type,
            pruning_policy=policy,
            **kwargs,
        )
    pattern = Pattern.of(sparsity_m_by_n)
    schedule.check_schedule(pruning_schedule, pattern)
    if not isinstance(permute, (bool, Mapping)):
        raise TypeError(f"permute must be True, False or a mapping of permute()'s options, got {permute!r}")
    options = {
        "pruning_schedule": pruning_schedule,
        "block_size": block_size,
        "block_pooling_type": block_pooling_type,
        "sparsity_m_by_n": pattern,
    }
    if not isinstance(to_prune, keras.Model):
        schedule.warn_of_excess(pruning_schedule, pattern, stacklevel=2)
        if getattr(policy, "min_gain", None) is not None:
            logger.warning("layers given one by one are wrapped as asked for: min_gain is a gain within a model")
    if isinstance(to_prune, (list, tuple)):
        return [_wrap_explicit(layer, options) for layer in to_prune]
    if not isinstance(to_prune, keras.Model):
        return _wrap_explicit(to_prune, {**options, **kwargs})

    policy = PruneForSparseTensorCores() if policy is None else policy
    shapes = permute.get("input_shapes") if isinstance(permute, Mapping) else None
    chosen = _layers_to_wrap(to_prune, policy, shapes)
    _check_finite(chosen)
    schedule.warn_of_excess(pruning_schedule, pattern, stacklevel=2)
    with _without_a_trace(to_prune) as wrappers:
        wrapped = _wrap_model(to_prune, {id(layer) for _, layer in chosen}, options, wrappers)
        _prune_or_permute(to_prune, chosen, calibration_data, policy, pattern, permute)
    if left := left_dense(to_prune, policy, {id(layer) for _, layer in chosen}):
        logger.warning("%s", left.line(to_prune))
    return wrapped


def prune_scope() -> Any:
    """A scope in which models with pruning wrappers load: ``with prune_scope(): keras.models.load_model(path)``.

    Models wrapped by tfmot load as well. Our own also load without it once ``tfmot_asp.prune_low_magnitude`` has been
    looked up, since the wrapper is registered with Keras.

    Example:
        >>> pruned.save("pruned.keras")
        >>> with tfmot_asp.prune_scope():
        ...     pruned = tf_keras.models.load_model("pruned.keras")
    """
    return keras.utils.custom_object_scope(
        {"PruneLowMagnitude": PruneLowMagnitude, "tfmot_asp>PruneLowMagnitude": PruneLowMagnitude}
    )


def _check_keywords(given: Mapping[str, Any]) -> None:
    """Raises TypeError for what neither this package nor tfmot nor Keras has a use for, as Python does."""
    own = [name for name in inspect.signature(prune_low_magnitude).parameters if name not in ("to_prune", "kwargs")]
    for name in given:
        if name not in _OF_KERAS_LAYERS:
            close = difflib.get_close_matches(name, [*own, *_OF_KERAS_LAYERS], n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise TypeError(
                f"prune_low_magnitude got an unexpected keyword argument {name!r}{hint}. It takes {', '.join(own)}, "
                f"and for the wrapper of a single layer Keras' {', '.join(_OF_KERAS_LAYERS)}."
            )


def _check_type(to_prune: Any) -> None:
    """Raises the errors for what is no tf_keras layer, model or list of layers."""
    is_list = isinstance(to_prune, (list, tuple))
    for item in to_prune if is_list else [to_prune]:
        if is_keras3(item):
            raise ValueError(
                f"{item.name!r} ({type(item).__name__}) belongs to Keras 3, which tfmot's wrappers do not support. Use "
                "tfmot_asp.prune_trained_model(model), which takes Keras 3 models as they are, or build it with "
                "tf_keras: import tf_keras, or set TF_USE_LEGACY_KERAS=1 before importing TensorFlow."
            )
        if not isinstance(item, keras.layers.Layer):
            raise ValueError(
                "prune_low_magnitude takes a tf_keras functional or sequential model, a layer, or a list of layers; "
                f"got a {type(item).__name__}{' in the list' if is_list else ''}: {item!s:.80}"
            )
        if is_list and isinstance(item, keras.Model):
            raise ValueError(
                f"The list holds the model {item.name!r}; give models one by one, not in a list of layers."
            )


def _wrap_explicit(layer: Any, options: dict[str, Any]) -> Any:
    if isinstance(layer, pruning_wrapper.PruneLowMagnitude):
        return layer
    if isinstance(layer, keras.layers.InputLayer):
        return type(layer).from_config(layer.get_config())
    if layer.built:
        _check_finite([NamedLayer(layer.name, layer)])
    return PruneLowMagnitude(layer, **options)


def _layers_to_wrap(model: Any, policy: Policy, input_shapes: InputShapes | None) -> list[NamedLayer]:
    """The layers of a model that a policy allows, after all checks that a policy or its absence calls for."""
    check_structure(model)
    estimate_gains(policy, model, input_shapes)
    if not isinstance(policy, PruneForSparseTensorCores) and hasattr(policy, "ensure_model_supports_pruning"):
        policy.ensure_model_supports_pruning(model)
    # tfmot asks its policies about every layer; others are asked about those with kernels, as by the other doors.
    asked = [
        (named, why_dense(policy, named.layer))
        for named in outer_layers(model)
        if hasattr(policy, "allow_pruning") or kernels_of(named.layer)
    ]
    chosen = [named for named, reason in asked if reason is None]
    if not chosen:
        left = left_dense(model, policy, ())
        raise ValueError(no_prunable_layer_message(model, [reason for _, reason in left.by_policy], left.remedy))
    return chosen


def _check_finite(chosen: Sequence[NamedLayer]) -> None:
    check_finite({kernel_name(name, k.attribute): k.variable for name, layer in chosen for k in kernels_of(layer)})


def _wrap_model(model: Any, chosen: set[int], options: dict[str, Any], wrappers: dict[int, Any]) -> Any:
    """A clone of the model with wrappers around the chosen layers; all layers are shared with the original.

    Fills ``wrappers``, by the ids of the layers in them.
    """

    def wrap(layer: Any) -> Any:
        if isinstance(layer, keras.Model):
            return keras.models.clone_model(layer, input_tensors=None, clone_function=wrap)
        if id(layer) not in chosen or isinstance(layer, pruning_wrapper.PruneLowMagnitude):
            return layer
        # A layer that several nested models share gets one wrapper, hence one mask.
        if id(layer) not in wrappers:
            wrappers[id(layer)] = PruneLowMagnitude(layer, **options)
        return wrappers[id(layer)]

    return wrap(model)


@contextlib.contextmanager
def _without_a_trace(model: Any) -> Iterator[dict[int, PruneLowMagnitude]]:
    """Takes back what wrapping does to the layers of a model, unless it comes to a good end.

    Yields:
        A dict for the wrappers that are made.
    """
    layers = list(model._flatten_layers())
    nodes = [(kept, list(kept)) for layer in layers for kept in (layer._inbound_nodes, layer._outbound_nodes)]
    wrappers: dict[int, PruneLowMagnitude] = {}
    try:
        yield wrappers
    except BaseException:  # Ctrl-C during the search included
        for wrapper in wrappers.values():
            wrapper.release()
        for kept, before in nodes:
            kept[:] = before
        raise


def _prune_or_permute(
    model: Any,
    chosen: Sequence[NamedLayer],
    data: CalibrationData | None,
    policy: Policy,
    pattern: Pattern,
    permute: bool | Mapping[str, Any],
) -> None:
    """Prunes the weights on data, after which the wrappers' masks find the same zeros; without, permutes them."""
    if data is None and not permute:
        return
    if any(isinstance(layer, pruning_wrapper.PruneLowMagnitude) for _, layer in outer_layers(model)):
        if data is not None:
            raise ValueError(f"{model.name!r} holds pruning wrappers already: calibrate it when it is wrapped first")
        logger.warning(
            "Model %r already holds pruning wrappers: it is not permuted, since that would break their masks.",
            model.name,
        )
    elif data is not None:
        from tfmot_asp.calibration.in_place import DataOptions, prune_in_place  # here: it takes time to import
        from tfmot_asp.calibration.restore import all_or_nothing

        layers = [LayerWithKernels(name, layer, tuple(kernels_of(layer))) for name, layer in chosen]
        kernels = kernels_by_name(layers, masked=True)
        with all_or_nothing(model, ()):
            done = prune_in_place(model, kernels, DataOptions(data), policy=policy, pattern=pattern, permute=permute)
        logger.info("%s", done.calibration)
    else:
        from tfmot_asp.permutation import permute as reorder  # here: it takes time to import

        given = permute if isinstance(permute, Mapping) else {}
        logger.info("%s", reorder(model, **{"policy": policy, "sparsity_m_by_n": pattern, **given}))
