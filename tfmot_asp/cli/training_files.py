"""``tfmot-asp strip`` and ``quantize``: models that were trained with wrappers, or are to be."""

from __future__ import annotations

import argparse
import dataclasses

from tfmot_asp.cli.commands import load, write, written
from tfmot_asp.cli.terminal import Console
from tfmot_asp.cli.writing import MODEL_FORMATS, check_output


def strip(arguments: argparse.Namespace, console: Console) -> int:
    """Takes the pruning wrappers off a model."""
    check_output(arguments.output, arguments.model, force=arguments.force, formats=MODEL_FORMATS)
    model = load(arguments)
    from tfmot_asp.keras_models.which_keras import is_keras3

    if is_keras3(model):
        raise ValueError(f"{str(arguments.model)!r} is of Keras 3, whose models have no pruning wrappers")
    import tfmot_asp
    from tfmot_asp.training.strip import wrappers_in

    count = len(wrappers_in(model))
    if not count:
        raise ValueError(f"{str(arguments.model)!r} has no pruning wrappers")
    stripped = tfmot_asp.strip_pruning(model)
    report = dataclasses.replace(tfmot_asp.sparsity_report(stripped, batch_size=None), notes=())
    write(stripped, arguments)
    console.result(
        written(arguments, report.document().with_line(f"{count} pruning wrapper{'s' * (count != 1)} taken off")),
        {"output": str(arguments.output), "wrappers": count, "sparsity": report.to_dict()},
    )
    return 0


def quantize(arguments: argparse.Namespace, console: Console) -> int:
    """Prepares a 2:4 model for quantization-aware training."""
    check_output(arguments.output, arguments.model, force=arguments.force, formats=MODEL_FORMATS)
    model = load(arguments)
    import tfmot_asp

    quantized = tfmot_asp.quantize_model(model, sparsity_m_by_n=arguments.pattern)
    report = tfmot_asp.quantization_report(quantized, sparsity_m_by_n=arguments.pattern)
    write(quantized, arguments)
    data = {"output": str(arguments.output), "quantization": report.to_dict()}
    console.result(written(arguments, report.document()), data)
    console.note(
        "Now train it: load it with tfmot_asp.loading.load_model, call tfmot_asp.keep_sparsity(model), and fit."
    )
    return 0
