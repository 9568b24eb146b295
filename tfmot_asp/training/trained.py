"""``prune_trained_model``: m by n masks on a trained model, without wrappers and without callbacks.

The mask becomes the kernel variable's constraint, which every Keras optimizer applies after each update. So the model
stays what it is, functional or subclassed, tf_keras or Keras 3, and so does the way it is trained: ``fit``,
``train_on_batch``, a loop of one's own. Needs no tfmot, so that Keras 3 users keep Keras 3.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_asp import masks
from tfmot_asp.calibration.calibration_report import CalibrationReport
from tfmot_asp.calibration.in_place import DataOptions, prune_in_place
from tfmot_asp.calibration.restore import all_or_nothing
from tfmot_asp.hardware.allowed_kernels import allowed_kernels
from tfmot_asp.hardware.policy import no_prunable_layer_message
from tfmot_asp.hardware.rule import PruneForSparseTensorCores
from tfmot_asp.keras_models.batch_norm import batch_norms
from tfmot_asp.keras_models.checks import check_built, check_finite
from tfmot_asp.keras_models.constraints import attach_mask, detach_mask, mask_of
from tfmot_asp.keras_models.holders import forget_traces
from tfmot_asp.keras_models.kernels import Kernel, Scores, scores_of
from tfmot_asp.keras_models.quantized import check_not_quantized
from tfmot_asp.keras_models.slots import optimizers_of
from tfmot_asp.keras_models.variables import read
from tfmot_asp.keras_models.which_keras import check_backend, is_keras_layer
from tfmot_asp.keras_models.wrappers import check_not_wrapped
from tfmot_asp.pattern import TWO_FOUR, Pattern, PatternLike
from tfmot_asp.reports.sparsity import sparsity_report
from tfmot_asp.reports.sparsity_report import SparsityReport
from tfmot_asp.training.kernel_masks import KernelMasks
from tfmot_asp.types import CalibrationData, InputShapes, Policy

logger = logging.getLogger(__name__)

# What the masks are called among a model's children in checkpoints.
_IN_CHECKPOINTS = "pruning_masks"


def prune_trained_model(
    model: Any,
    *,
    policy: Policy | None = None,
    permute: bool | Mapping[str, Any] = True,
    sparsity_m_by_n: PatternLike = TWO_FOUR,
    calibration_data: CalibrationData | None = None,
    method: str | None = None,
    effort: str = "balanced",
    scores: Scores | None = None,
    batch_norm: str = "relative",
    calibration_samples: int | None = None,
    optimizer: Any = None,
    progress: bool | None = None,
) -> PrunedModel:
    """Prunes a trained model in place, 2:4 by default, and keeps it sparse in whatever training follows.

    The model is permuted (its function does not change, but more of what counts survives), then half of the weights are
    set to zero, and masks are attached as the kernel variables' constraints. The pattern holds after every step of
    every Keras optimizer. It stays the same model object, compiled as it was.

    Give ``calibration_data``, a few hundred samples without labels, wherever the model is to be used before it is
    fine-tuned, and to start fine-tuning from a better place: kernel by kernel, masks are then chosen and the kept
    weights refitted so that what the kernel computes on the data changes least, and the statistics of batch
    normalizations follow. Without data the smallest weights go; a model is seldom good then before it is fine-tuned.

    Call it before the first call of a ``tf.function`` of your own that trains the model, since what is traced already
    knows nothing of the masks. Keras' own (``fit``, ``train_on_batch``) is traced anew, also in
    models that hold this one.

    After any error, and if it is interrupted at any time, the model is as it was.

    Args:
        model: a built model of tf_keras or Keras 3 (TensorFlow backend): functional, sequential, subclassed, nested.
        policy: which layers to prune: anything with ``why(layer) -> str | None``, or a tfmot ``PruningPolicy``. By
            default ``PruneForSparseTensorCores()``.
        permute: whether to permute the model first. A mapping is passed to ``tfmot_asp.permute`` as keyword arguments,
            as in ``permute={"effort": "thorough", "input_shapes": (None, 224, 224, 3)}``.
        sparsity_m_by_n: the pattern along each kernel's reduction axis: ``(zeros, block)``, tfmot's pair, or the text
            ``"N:M"``, N kept of every M.
        calibration_data: samples as the model is called on them, without labels or with (they are ignored). An array, a
            dict of arrays by input name, or a list of arrays where the model has several inputs; or batches of these,
            each x or (x, y[, sample_weight]): a list, a generator function, a ``tf.data.Dataset``, a Keras ``Sequence``
            or ``PyDataset``. Batches may differ in length. Positions that Keras masks, or whose sample weight is 0, are
            padding and do not count.
        method: ``"reconstruction"`` (with data the default) chooses masks and refits the kept weights;
            ``"activation"`` keeps weights as they are, those with the largest |w| times the norm of their input;
            ``"magnitude"`` (without data the default) those with the largest |w|.
        effort: how masks are chosen for a reconstruction: ``"fast"``, ``"balanced"`` or ``"thorough"``, which also
            distills the pruned model for a short while towards what the dense one computed on the data. The effort of
            the permutation's search is its own, in ``permute``.
        scores: gives the score of each weight of a ``Kernel`` (``.layer``, ``.tf_variable``, ``.layout``), an array of
            the kernel's shape, to choose masks and permute by. It is called on the dense model as it came in.
        batch_norm: ``"relative"`` moves the statistics of batch normalizations by what pruning changed on the data;
            ``"absolute"`` takes them from the data, for data that is plentiful and like that of training.
        calibration_samples: how many samples to use; None uses all. Of arrays they are spread evenly.
        optimizer: one, or a list of them, that has trained the model in a loop of your own: its slots are permuted with
            the weights. Those of compiled models that hold the model or its layers are anyway.
        progress: show progress bars; by default if stderr is a terminal.

    Returns:
        A ``PrunedModel``: its ``report``, ``calibration``, ``remove()`` and ``update_masks()``. It may be dropped.

    Raises:
        TypeError: if ``model`` is no Keras model or layer, or for another kind of ``permute`` or ``policy``.
        ValueError: if the model is not built, has no layer to prune, holds NaN or infinite weights, or is being pruned
            already; if the data has NaN or infinite values, or does not fit the model.

    Example:
        >>> pruned = tfmot_asp.prune_trained_model(model, calibration_data=images[:256])
        >>> print(pruned.calibration)
        >>> model.fit(images, labels)  # if it is to be better still
    """
    pattern = Pattern.of(sparsity_m_by_n)
    if not isinstance(permute, (bool, Mapping)):
        raise TypeError(f"permute must be True, False or a mapping of permute()'s options, got {permute!r}")
    options = DataOptions(calibration_data, method, effort, scores, batch_norm, calibration_samples, progress)
    policy = PruneForSparseTensorCores() if policy is None else policy
    shapes = permute.get("input_shapes") if isinstance(permute, Mapping) else None
    kernels = kernels_to_prune(model, policy, shapes)
    check_finite({name: kernel.variable for name, kernel in kernels.items()})
    if calibration_data is None:
        warn_of_batch_norms(model)
    optimizers_of(None, optimizer)  # raises if it is none
    if permute and optimizer is not None:
        permute = {**(permute if isinstance(permute, Mapping) else {}), "optimizer": optimizer}
    with all_or_nothing(model, kernels.values(), optimizer):
        done = prune_in_place(model, kernels, options, policy=policy, pattern=pattern, permute=permute)
        return PrunedModel(model, kernels, pattern, policy, done.permutation, done.masks, done.calibration, shapes)


def warn_of_batch_norms(model: Any) -> None:
    """Says, where a model that has batch normalizations is pruned without data, what that does and what helps."""
    if norms := batch_norms(model):
        logger.warning(
            "model %r has %d batch normalizations, and their statistics do not fit the pruned layers in front of them: "
            "it loses most of its accuracy until it is fine-tuned. Give calibration_data=..., a few hundred samples "
            "without labels, to prune it in one shot",
            model.name,
            len(norms),
        )


@dataclass(frozen=True)
class _Parts:
    """What a ``PrunedModel`` refers to but does not own: ``tf.Module`` tracks attributes, but not through this."""

    model: Any
    policy: Any
    permutation: Any
    kernels: dict[str, Kernel]
    calibration: CalibrationReport | None = None
    input_shapes: InputShapes | None = None


class PrunedModel(KernelMasks):
    """The masks of a model: what ``prune_trained_model`` returns.

    A ``tf.Module`` that owns the masks (bool variables, one byte per weight) and nothing else. Checkpoints of the model
    have them: ``tf.train.Checkpoint(model=model, optimizer=optimizer)`` and tf_keras' ``BackupAndRestore`` restore a
    run to the bit, into the same model built and pruned again. So does ``Checkpoint(masks=pruned)``. Masks recomputed
    from restored weights are the same too, unless a weight that is kept happens to be exactly zero.

    Training does not need this object: drop it, and the masks stay where they are.

    Attributes:
        sparsity_m_by_n: the pattern.
        masks: the mask of each kernel, by the kernel's name.

    Example:
        >>> pruned = tfmot_asp.prune_trained_model(model)
        >>> checkpoint = tf.train.Checkpoint(model=model, masks=pruned)
        >>> pruned.remove()  # after training: the model is plain again, and stays 2:4
    """

    def __init__(
        self,
        model: Any,
        kernels: Mapping[str, Kernel],
        sparsity_m_by_n: PatternLike,
        policy: Policy | None = None,
        permutation: Any = None,
        mask_values: Mapping[str, np.ndarray] | None = None,
        calibration: CalibrationReport | None = None,
        input_shapes: InputShapes | None = None,
    ) -> None:
        self._parts = _Parts(model, policy, permutation, dict(kernels), calibration, input_shapes)
        self.sparsity_m_by_n = Pattern.of(sparsity_m_by_n)
        # All that takes memory and time comes before the first change.
        super().__init__("masks", kernels, mask_values or {name: self._new_mask(name, None) for name in kernels})
        for name, kernel in kernels.items():
            attach_mask(kernel.variable, self.masks[name], model)
        self.apply_masks()
        forget_traces(model)
        self._track()

    @property
    def model(self) -> Any:
        """The model."""
        return self._parts.model

    @property
    def permutation(self) -> Any:
        """The ``PermutationReport``; None if the model was not permuted."""
        return self._parts.permutation

    @property
    def calibration(self) -> CalibrationReport | None:
        """What pruning with data did, per kernel and to the outputs; ``print`` it. None if there was no data."""
        return self._parts.calibration

    @property
    def report(self) -> SparsityReport:
        """The pattern in the model's weights as they are now; ``print`` it for a table."""
        return sparsity_report(
            self.model,
            policy=self._parts.policy,
            sparsity_m_by_n=self.sparsity_m_by_n,
            input_shapes=self._parts.input_shapes,
        )

    def apply_masks(self) -> None:
        """Writes zeros to all masked weights.

        Optimizers do this in each step. Call it after setting weights that are dense, such as a checkpoint from before
        pruning, to evaluate or save before the next step.
        """
        for name, kernel in self._parts.kernels.items():
            write_masked(kernel.tf_variable, self.masks[name])

    def update_masks(self, scores: Scores | None = None) -> None:
        """Computes all masks anew and applies them.

        Args:
            scores: gives the score of each weight of a ``Kernel`` (``.layer``, ``.tf_variable``, ``.layout``),
                an array of the kernel's shape. By default the magnitude of the current weights: since masked weights
                are zero, that changes a mask only after other weights have been set.

        Warns:
            UserWarning: if a mask would keep weights that pruning has set to zero: those values are gone.

        Raises:
            ValueError: for scores of another shape, or weights that are NaN or infinite. No mask has changed then.
        """
        check_finite({name: kernel.variable for name, kernel in self._parts.kernels.items()})
        values = {name: self._new_mask(name, scores) for name in self._parts.kernels}
        self._warn_of_zeros(values)
        for name, value in values.items():
            self.masks[name].assign(value)
        self.apply_masks()

    def remove(self) -> None:
        """Applies the masks a last time and takes them off: the weights stay sparse until the model trains again.

        A mask that another call has put in the place of one of these stays. Removing twice does nothing.
        """
        self.apply_masks()
        for name, kernel in self._parts.kernels.items():
            detach_mask(kernel.variable, self.masks[name])
        if self._parts.kernels:
            self._untrack()
            forget_traces(self.model)
        self._parts = dataclasses.replace(self._parts, kernels={})

    def __repr__(self) -> str:
        return f"<PrunedModel {self.model.name!r}: {len(self.masks)} kernels are {self.sparsity_m_by_n}>"

    def _trackable_children(self, save_type: Any = "checkpoint", **kwargs: Any) -> Any:
        # A SavedModel of the model is to be used or trained without this package, so it has no masks.
        return {} if save_type == "savedmodel" else super()._trackable_children(save_type, **kwargs)

    def _track(self) -> None:
        """Has checkpoints of the model include the masks."""
        taken = self.model._self_unconditional_dependency_names
        names = (f"{_IN_CHECKPOINTS}_{number}" if number else _IN_CHECKPOINTS for number in itertools.count())
        self.model._track_trackable(self, next(name for name in names if name not in taken))

    def _untrack(self) -> None:
        for name, child in list(self.model._self_unconditional_dependency_names.items()):
            if child is self:
                self.model._delete_tracking(name)

    def _warn_of_zeros(self, values: Mapping[str, np.ndarray]) -> None:
        revived = kept = 0
        for name, value in values.items():
            revived += int((value & ~read(self.masks[name]) & (read(self._parts.kernels[name].tf_variable) == 0)).sum())
            kept += int(value.sum())
        if revived:
            warnings.warn(
                f"{revived / kept:.0%} of the weights that these masks keep were set to zero by pruning, and stay zero "
                "until training moves them: the model is sparser than its pattern, and worse. Give the scores when "
                "pruning, prune_trained_model(model, scores=...), or set the dense weights again before "
                "update_masks(scores)",
                UserWarning,
                stacklevel=3,
            )

    def _new_mask(self, name: str, scores: Scores | None) -> np.ndarray:
        kernel = self._parts.kernels[name]
        score = scores_of(name, kernel, scores)
        if scores is None and hasattr(self, "_named"):
            # Among zeros, those that are kept now stay: training may bring a kept weight to exactly zero.
            score = np.where(read(self.masks[name]) | (score > 0), score, -1)
        return np.asarray(masks.m_by_n_mask(score, kernel.layout.reduction_axes, self.sparsity_m_by_n))


def write_masked(variable: Any, mask: Any) -> None:
    """Writes zeros to the masked weights of a plain or distributed ``tf.Variable``."""
    variable.assign(masks.apply_mask(tf.convert_to_tensor(variable), tf.convert_to_tensor(mask)))


def kernels_to_prune(model: Any, policy: Policy, input_shapes: InputShapes | None = None) -> dict[str, Kernel]:
    """The kernels that the policy allows, by name, each variable once. Changes nothing.

    Raises:
        TypeError, ValueError: as ``prune_trained_model``.
    """
    if not is_keras_layer(model):
        raise TypeError(
            f"prune_trained_model takes a model or layer of tf_keras or Keras 3, got a {type(model).__name__}: "
            f"{model!s:.80}"
        )
    check_backend(model)
    check_not_quantized(model)
    check_built(model, "load the trained weights and prune it")
    check_not_wrapped(
        model,
        ". Either train the model as it is, or take the wrappers off first: model = tfmot_asp.strip_pruning(model)",
    )
    found, reasons = allowed_kernels(model, policy, input_shapes, masked=True)
    if not found:
        raise ValueError(no_prunable_layer_message(model, reasons))
    for name, kernel in found.items():
        if mask_of(kernel.variable) is not None:
            raise ValueError(
                f"the kernel of {name!r} has a mask already: the model is being pruned. Go on training it; to "
                "compute its masks anew, call update_masks() of what prune_trained_model returned, and to start "
                "over, its remove() first"
            )
    return found
