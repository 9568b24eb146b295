"""What ``AspOptimizerWrapperV2`` says and how it permutes: TF-ASP's log levels, log lines and arguments.

TF-ASP logs through TensorFlow's own logger, so that ``tf.get_logger().setLevel(SHOW_PERMUTATION_MORE_INFO)`` chooses
how much of it is shown; these lines go there as well. Python shows level 30 and above by default.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from tfmot_asp.permutation.picture.drawn import DrawnOp
from tfmot_asp.permutation.report import PermutationReport
from tfmot_asp.types import InputShapes

SHOW_PRUNING_INFO = 30
SHOW_PERMUTATION_INFO = 29
SHOW_PERMUTATION_MORE_INFO = 28
SHOW_PERMUTATION_DEBUG_INFO = 10

_SEARCH_DEVICES = {"GPU": "auto", "CPU": "cpu"}


def log(level: int, message: str, *args: Any) -> None:
    """Logs a line as TF-ASP does."""
    tf.get_logger().log(level, f"[TF-ASP] {message}", *args)


def check_arguments(search_device: str, search_time_limit: float) -> str:
    """Translates TF-ASP's ``search_device`` to that of ``tfmot_asp.permute``.

    Raises:
        ValueError: for another device than ``"GPU"`` or ``"CPU"``, or a time limit that is not positive.
    """
    if search_device not in _SEARCH_DEVICES:
        raise ValueError(f"search_device must be 'GPU' (used where there is one) or 'CPU', got {search_device!r}")
    if not search_time_limit > 0:
        raise ValueError(f"search_time_limit must be a positive number of seconds, got {search_time_limit!r}")
    return _SEARCH_DEVICES[search_device]


def permute_options(
    model: Any, input_shapes: InputShapes | None, device: str, plot_to_file: str | os.PathLike[str] | None
) -> dict[str, Any]:
    """TF-ASP's arguments as options of ``tfmot_asp.permute``.

    Args:
        model: built tf_keras model.
        input_shapes: a shape, a list of shapes, or ``TensorSpec``s.
        device: as ``tfmot_asp.permute`` takes it.
        plot_to_file: where to draw the picture; a name without a suffix becomes a .png file.
    """
    if plot_to_file is not None and not os.path.splitext(os.fspath(plot_to_file))[1]:
        plot_to_file = f"{os.fspath(plot_to_file)}.png"
    if getattr(model, "_is_graph_network", False):
        input_shapes = None  # a functional model knows them, and TF-ASP's scripts may give only some of them
    elif input_shapes is not None:
        input_shapes = _plain_shapes(input_shapes)
    return {"input_shapes": input_shapes, "device": device, "plot_to_file": plot_to_file}


def log_permutation(report: PermutationReport, model_name: str) -> None:
    """Logs what was permuted in TF-ASP's words."""
    for level, line in log_lines(report, model_name):
        log(level, "%s", line)
    log_counts(report.permuted, report.prunable)


def log_counts(permuted: int, prunable: int) -> None:
    """Logs how many kernels were reordered along their input channels."""
    log(SHOW_PERMUTATION_INFO, "%d/%d variables (Conv2D or MatMul) are permuted!", permuted, prunable)


def log_lines(report: PermutationReport, model_name: str) -> Iterator[tuple[int, str]]:
    """The lines for each group of kernels that share an order, and for each op that was reordered.

    Args:
        report: of the permutation.
        model_name: which node names start with, as in the op graph: ``model/layer/Conv2D``.

    Yields:
        (level, line) pairs.
    """
    ops = report.outline.ops if report.outline is not None else ()
    names = ["/".join(part for part in (model_name, op.layer, op.name) if part) for op in ops]
    for number, group in enumerate(report.groups):
        takers = [name for name, op in zip(names, ops, strict=True) if "C" in op.axes and _has(op.takes, number)]
        if not takers:
            continue
        change = f"kept magnitude {group.retained_before:f} -> {group.retained_after:f}"
        yield SHOW_PERMUTATION_MORE_INFO, f"Permute-Siblings: {','.join(takers)} (Enabled: {change})"
        for name in takers:
            yield SHOW_PERMUTATION_MORE_INFO, f"Permute-C: node_name={name}"
        for name, op in zip(names, ops, strict=True):
            if _is_reordered_after(op) and _has(op.gives, number):
                yield SHOW_PERMUTATION_MORE_INFO, f"Permute-K: node_name={name}, permute_seq from {takers[0]}"
        yield SHOW_PERMUTATION_DEBUG_INFO, f"DEBUG permutation of {','.join(takers)}: {list(group.order)}"
    for layer in report.layers:
        if layer.reason:
            yield SHOW_PERMUTATION_DEBUG_INFO, f"DEBUG {layer.name} ({layer.kind}) {layer.status}: {layer.reason}"


def _is_reordered_after(op: DrawnOp) -> bool:
    """Whether weights of the op are reordered along its output channels."""
    return op.role == "applies" or (op.role == "gemm" and "K" in op.axes)


def _has(ranges: str, number: int) -> bool:
    """Whether ranges such as ``"0-4,7"`` hold a number."""
    for part in ranges.split(",") if ranges else ():
        first, _, last = part.partition("-")
        if int(first) <= number <= int(last or first):
            return True
    return False


def _plain_shapes(shapes: Any) -> Any:
    """Shapes and ``TensorSpec``s as ``permute`` takes them: a tuple for one input, a list for several."""
    if isinstance(shapes, (tf.TensorSpec, tf.TensorShape)):
        return tuple(tf.TensorShape(getattr(shapes, "shape", shapes)).as_list())
    if isinstance(shapes, (list, tuple)) and not all(size is None or isinstance(size, int) for size in shapes):
        several = [_plain_shapes(shape) for shape in shapes]
        return several[0] if len(several) == 1 else several
    return shapes
