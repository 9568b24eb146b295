"""Which kernels of a model are trained in 8 bits, which stay float and why, and whether their pattern is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tfmot_asp.keras_models.constraints import mask_of
from tfmot_asp.keras_models.kernels import kernel_name, layers_with_kernels
from tfmot_asp.keras_models.variables import read
from tfmot_asp.keras_models.wrappers import holds_quantized, unwrap
from tfmot_asp.masks import standing
from tfmot_asp.pattern import TWO_FOUR, Pattern, PatternLike
from tfmot_asp.quantization.scheme import why_float
from tfmot_asp.reports.document import Document, Table
from tfmot_asp.reports.plain_data import plain
from tfmot_asp.reports.readable import Report


@dataclass(frozen=True)
class QuantizedKernel:
    """One kernel of a model that was prepared for quantization-aware training.

    Attributes:
        name: of the kernel, unique in the model: its layer's, with the attribute if the layer has several.
        kind: Keras class whose layout the kernel follows.
        attribute: which kernel of the layer.
        quantized: whether it is trained, and exported, in 8 bits.
        holds: whether it has the pattern; None for one without a reduction axis, or too short for it to ask for zeros.
        kept: whether training keeps the pattern (a mask is in force).
        reason: why it stays float; None if it is quantized.
    """

    name: str
    kind: str
    attribute: str
    quantized: bool
    holds: bool | None
    kept: bool
    reason: str | None


@dataclass(frozen=True)
class QuantizationReport(Report):
    """The kernels of a model, in 8 bits or not. ``str()`` is a table; ``to_dict()`` is plain data for JSON.

    Attributes:
        model: name of the model.
        sparsity_m_by_n: the pattern that was checked.
        layers: one row per kernel, in the model's order.

    Example:
        >>> report = tfmot_asp.quantization_report(tfmot_asp.quantize_model(sparse))
        >>> [(kernel.name, kernel.reason) for kernel in report.left_out]
    """

    model: str
    sparsity_m_by_n: Pattern
    layers: tuple[QuantizedKernel, ...]

    @property
    def kernels(self) -> tuple[QuantizedKernel, ...]:
        """The layers' other name."""
        return self.layers

    @property
    def left_out(self) -> tuple[QuantizedKernel, ...]:
        """The kernels that stay float."""
        return tuple(kernel for kernel in self.layers if not kernel.quantized)

    def to_dict(self) -> dict[str, Any]:
        """The report as dicts, lists, strings and numbers."""
        return {
            "model": self.model,
            "sparsity_m_by_n": list(self.sparsity_m_by_n),
            "layers": [plain(kernel) for kernel in self.layers],
        }

    def document(self) -> Document:
        rows = [
            (
                kernel.name,
                kernel.kind,
                "int8" if kernel.quantized else "float",
                {True: "yes", False: "no", None: "-"}[kernel.holds],
                "yes" if kernel.kept else "no",
                kernel.reason or "",
            )
            for kernel in self.layers
        ]
        summary = f"{self.model}: {len(self.layers) - len(self.left_out)} of {len(self.layers)} kernels in 8 bits"
        header = ("layer", "kind", "weights", str(self.sparsity_m_by_n), "kept", "why float")
        return Document([summary], [Table(header, rows)])


def quantization_report(model: Any, *, sparsity_m_by_n: PatternLike = TWO_FOUR) -> QuantizationReport:
    """Tells for every kernel of a model whether it is trained in 8 bits, why not, and whether it is 2:4.

    Args:
        model: a built tf_keras model: what ``quantize_model`` or tfmot's ``quantize_apply`` returned, or a loaded one.
        sparsity_m_by_n: the pattern, ``(zeros, block)`` or ``"N:M"``.

    Returns:
        A ``QuantizationReport``.

    Example:
        >>> print(tfmot_asp.quantization_report(quantized))
        convnet: 4 of 4 kernels in 8 bits
        <BLANKLINE>
        layer  kind    weights  2:4  kept  why float
        stem   Conv2D  int8     no   no
        conv   Conv2D  int8     yes  yes
        fc     Dense   int8     yes  yes
        head   Dense   int8     yes  yes
    """
    pattern = Pattern.of(sparsity_m_by_n)
    rows = []
    for name, layer, kernels in layers_with_kernels(model):
        held = {id(entry[0]) for entry in layer._weight_vars} if holds_quantized(layer) else set()
        for kernel in kernels:
            quantized = id(kernel.variable) in held
            found = standing(read(kernel.variable), kernel.layout.reduction_axes, pattern)
            holds = found.holds if found.asks else None
            reason = None if quantized else why_float(unwrap(layer)) or "its wrapper does not quantize weights"
            kept = mask_of(kernel.variable) is not None
            title = kernel_name(name, kernel.attribute)
            rows.append(QuantizedKernel(title, kernel.layout.kind, kernel.attribute, quantized, holds, kept, reason))
    return QuantizationReport(str(model.name), pattern, tuple(rows))
