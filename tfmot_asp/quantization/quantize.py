"""Quantization-aware training of a 2:4 model with tfmot's scheme, 2:4 after every step.

tfmot's ``Default8BitPrunePreserveQuantizeScheme`` keeps zeros by a mask inside its weight quantizer. That leaves gaps,
each found by running tfmot 0.8.1, which are closed here:

- layers without an 8-bit scheme (Conv1D, Conv3D, EinsumDense, attention, ...) raise; here they stay float, are named,
  and stay 2:4;
- a Dense or Conv2D in front of a *ReLU layer* loses its weight quantizer, and its zeros with it;
- a Conv2D or Dense in front of a Concatenate gets a weight quantizer without the mask;
- the mask is no part of what is saved: a model that is loaded and trained on turns dense.

The pattern is held by the kernels' constraints, as everywhere in this package, whatever a quantizer does.
"""

from __future__ import annotations

import logging
from typing import Any

import tensorflow as tf
import tensorflow_model_optimization as tfmot
from tensorflow_model_optimization.python.core.keras.compat import keras
from tensorflow_model_optimization.python.core.quantization.keras import quantize_layer, quantize_wrapper

from tfmot_asp.keras_models.checks import check_built
from tfmot_asp.keras_models.kernels import Kernel, kernels_by_name, layers_with_kernels
from tfmot_asp.keras_models.plain import plain_model
from tfmot_asp.keras_models.quantized import quantized_layers
from tfmot_asp.keras_models.variables import read
from tfmot_asp.keras_models.which_keras import check_backend, is_keras3, is_keras_model
from tfmot_asp.keras_models.wrappers import check_not_wrapped
from tfmot_asp.masks import standing
from tfmot_asp.pattern import TWO_FOUR, Pattern, PatternLike
from tfmot_asp.quantization.quantization_report import quantization_report
from tfmot_asp.quantization.scheme import Scheme, why_float
from tfmot_asp.training.trained import PrunedModel

logger = logging.getLogger(__name__)


def quantize_model(
    to_quantize: Any,
    quantized_layer_name_prefix: str = "quant_",
    *,
    sparsity_m_by_n: PatternLike = TWO_FOUR,
) -> Any:
    """Prepares a 2:4 model for quantization-aware training (QAT) that keeps it 2:4.

    tfmot's ``quantize_annotate`` and ``quantize_apply`` with ``Default8BitPrunePreserveQuantizeScheme``, applied to
    what the scheme can quantize: Dense, Conv2D, DepthwiseConv2D, SeparableConv2D, Conv2DTranspose, batch norm behind
    them, ReLU, pooling and a few more. Kernels of other layers stay float; they are logged, and listed with the reason
    by ``quantization_report(model)``. The pattern of every kernel that has it now, quantized or not, holds after every
    training step, since a mask is made part of the kernel's constraint, and so it does in the int8 file that
    ``tfmot_asp.export.tflite(model, path, precision="int8")`` writes.

    A loaded model has no masks: see ``keep_sparsity``.

    Args:
        to_quantize: a built functional or sequential tf_keras model, pruned and fine-tuned, stripped or with its
            pruning wrappers. It is copied, and stays as it is.
        quantized_layer_name_prefix: what the names of quantized layers start with.
        sparsity_m_by_n: the pattern along the reduction axis, ``(zeros, block)`` or ``"N:M"``.

    Returns:
        A new, uncompiled model.

    Raises:
        ValueError: for a model of Keras 3, one that is subclassed, nested, not built or quantized already, one in which
            no kernel has the pattern, or one that tfmot cannot rebuild.

    Example:
        >>> sparse = tfmot_asp.strip_pruning(pruned)
        >>> quantized = tfmot_asp.quantize_model(sparse)
        >>> quantized.compile("adam", "sparse_categorical_crossentropy")
        >>> quantized.fit(images, labels)
        >>> tfmot_asp.export.tflite(quantized, "model.tflite", precision="int8")
    """
    pattern = Pattern.of(sparsity_m_by_n)
    _check_model(to_quantize)
    plain, _ = plain_model(to_quantize)
    before = _sparse_kernels(plain, pattern)
    if not before:
        raise ValueError(
            f"no kernel of {to_quantize.name!r} is {pattern}, so there is nothing to "
            "preserve: prune and fine-tune it first. tfmot.quantization.keras trains dense models quantization-aware"
        )
    quantized = _apply(plain, quantized_layer_name_prefix)
    after = _sparse_kernels(quantized, pattern)
    if len(after) < len(before):
        raise RuntimeError(
            f"of the {len(before)} sparse kernels of {to_quantize.name!r}, only {sorted(after)} are left after tfmot "
            "rebuilt the model"
        )
    PrunedModel(quantized, after, pattern)
    report = quantization_report(quantized, sparsity_m_by_n=pattern)
    if report.left_out:
        names = "; ".join(f"{kernel.name!r} ({kernel.reason})" for kernel in report.left_out)
        logger.warning(
            "%d of %d kernels of %r stay float, their zeros are kept: %s",
            len(report.left_out),
            len(report.layers),
            to_quantize.name,
            names,
        )
    return quantized


def keep_sparsity(model: Any, *, sparsity_m_by_n: PatternLike = TWO_FOUR) -> PrunedModel:
    """Keeps the pattern of every kernel that has it now while the model trains on.

    For models whose masks are gone: loaded ones, and those that tfmot's own ``quantize_apply`` made. Nothing is pruned:
    kernels without the pattern are left alone.

    Args:
        model: a built model of tf_keras or Keras 3, prepared for quantization-aware training or not.
        sparsity_m_by_n: the pattern, ``(zeros, block)`` or ``"N:M"``.

    Returns:
        A ``PrunedModel``, as from ``prune_trained_model``. It may be dropped.

    Raises:
        TypeError: if ``model`` is no Keras model.
        ValueError: if it is not built, holds pruning wrappers, or no kernel has the pattern.

    Example:
        >>> with tfmot_asp.quantize_scope():
        ...     model = tf_keras.models.load_model("quantized.keras")
        >>> tfmot_asp.keep_sparsity(model)
        >>> model.fit(images, labels)
    """
    pattern = Pattern.of(sparsity_m_by_n)
    if not is_keras_model(model):
        raise TypeError(f"keep_sparsity takes a Keras model, got a {type(model).__name__}: {model!s:.80}")
    check_backend(model)
    check_built(model, "call keep_sparsity")
    check_not_wrapped(model, ", and the wrapper keeps its sparsity: train the model as it is")
    kernels = _sparse_kernels(model, pattern)
    if not kernels:
        raise ValueError(f"no kernel of {model.name!r} is {pattern}, so there is nothing to keep")
    return PrunedModel(model, kernels, pattern)


def quantize_scope(*custom_objects: dict[str, Any]) -> Any:
    """A scope in which models for quantization-aware training load: ``with quantize_scope(): load_model(path)``.

    tfmot's ``quantize_scope``, in which ``.keras`` files load too: with tfmot's own they fail, because its layers make
    their variables twice, or not before they are restored.

    Args:
        *custom_objects: dicts of further objects, by name.

    Example:
        >>> with tfmot_asp.quantize_scope({"MyLayer": MyLayer}):
        ...     quantized = tf_keras.models.load_model("quantized.keras")
    """
    return _Scopes(
        tfmot.quantization.keras.quantize_scope(*custom_objects),
        keras.utils.custom_object_scope({"QuantizeLayer": QuantizeLayer, "QuantizeWrapperV2": QuantizeWrapperV2}),
    )


class _Scopes:
    """Several context managers as one, which can be entered again."""

    def __init__(self, *scopes: Any) -> None:
        self._scopes = scopes

    def __enter__(self) -> _Scopes:
        for scope in self._scopes:
            scope.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for scope in reversed(self._scopes):
            scope.__exit__(*error)


# Named as tfmot's: the names of classes are part of what is saved.
class QuantizeLayer(quantize_layer.QuantizeLayer):
    """tfmot's input quantizer, which is not built a second time when a loaded model calls it."""

    def build(self, input_shape: Any) -> None:
        """Makes the variables, once."""
        if not self.built:
            super().build(input_shape)
            self.built: bool = True


class QuantizeWrapperV2(quantize_wrapper.QuantizeWrapperV2):
    """tfmot's wrapper, which has the same variables in a loaded model as in the one that was saved.

    It lists those that the layer inside has when it is built itself, so that one is built first.
    """

    def build(self, input_shape: Any) -> None:
        """Makes the variables."""
        if not self.layer.built:
            with tf.name_scope(self.layer._name_scope()):
                self.layer.build(input_shape)
            self.layer.built = True
        super().build(input_shape)


def _check_model(model: Any) -> None:
    if is_keras3(model):
        raise ValueError(
            f"{model.name!r} ({type(model).__name__}) belongs to Keras 3; tfmot quantizes tf_keras models. Build it "
            "with tf_keras (or set TF_USE_LEGACY_KERAS=1 before importing TensorFlow), or quantize after training: "
            'tfmot_asp.export.tflite(model, path, precision="int8", calibration_data=...)'
        )
    if not isinstance(model, keras.Model):
        raise ValueError(f"quantize_model takes a tf_keras model, got a {type(model).__name__}: {model!s:.80}")
    check_built(model, "quantize it")
    if found := quantized_layers(model):
        raise ValueError(
            f"{model.name!r} is quantized already: layer {found[0][0]!r} {found[0][1]}. Train it as it is; if it was "
            "loaded, tfmot_asp.keep_sparsity(model) keeps its zeros"
        )
    if not (isinstance(model, keras.Sequential) or model._is_graph_network):
        raise ValueError(
            f"{model.name!r} is a subclassed {type(model).__name__}; tfmot quantizes functional and sequential models. "
            'Quantize after training: tfmot_asp.export.tflite(model, path, precision="int8", calibration_data=...)'
        )
    inner = next((layer for layer in model.layers if isinstance(layer, keras.Model)), None)
    if inner is not None:
        raise ValueError(
            f"{model.name!r} holds the model {inner.name!r}; tfmot quantizes no nested models. Connect its layers "
            "directly: head(backbone.output) instead of head(backbone(x)), keras.Model(backbone.input, ...)"
        )


def _sparse_kernels(model: Any, pattern: Pattern) -> dict[str, Kernel]:
    """The kernels that have the pattern, by name, each variable once; not those too short for it to ask for zeros."""
    return {
        name: kernel
        for name, kernel in kernels_by_name(layers_with_kernels(model)).items()
        if standing(read(kernel.variable), kernel.layout.reduction_axes, pattern).holds
    }


def _apply(model: Any, prefix: str) -> Any:
    """tfmot's two steps on a copy of the model, whose layers are connected in it and nowhere else."""
    annotate = tfmot.quantization.keras.quantize_annotate_layer
    try:
        copy = keras.models.clone_model(model)
        copy.set_weights(model.get_weights())
        names = {layer.name for layer in copy.layers if why_float(layer) is None}
        annotated = keras.models.clone_model(
            copy, clone_function=lambda layer: annotate(layer) if layer.name in names else layer
        )
        return tfmot.quantization.keras.quantize_apply(annotated, Scheme(), prefix)
    except (ValueError, TypeError, RuntimeError, AttributeError, KeyError, IndexError) as error:
        operators = [layer.name for layer in model.layers if "OpLambda" in type(layer).__name__]
        hint = (
            f"It computes with operators on tensors ({', '.join(map(repr, operators[:3]))}), which tfmot cannot "
            "rebuild: use layers such as Add, Multiply and Rescaling instead. "
            if operators
            else ""
        )
        raise ValueError(f"tfmot cannot quantize {model.name!r}. {hint}Its error: {error}") from error
