"""TF-ASP's count of pruned layers."""

from __future__ import annotations

import logging
import math
from typing import Any

from tfmot_asp.pattern import TWO_FOUR
from tfmot_asp.reports.sparsity import sparsity_report
from tfmot_asp.training.tf_asp.messages import SHOW_PRUNING_INFO

logger = logging.getLogger(__name__)

# TF-ASP calls a layer pruned if its share of zeros is this close to what the pattern gives.
_ZERO_RATIO_TOLERANCE = 0.003


def check_pruned_layers(model: Any, show_all: bool = False, check_structured: bool = False) -> tuple[int, int]:
    """Counts the Conv2D and Dense layers that are pruned, like TF-ASP's function of this name.

    A layer counts as pruned if its share of zeros is within 0.003 of what the 2:4 pattern gives: one half, or a little
    less where the input channels are no multiple of 4. Logs the count, at level ``SHOW_PRUNING_INFO`` (30).

    Args:
        model: a built model of tf_keras or Keras 3.
        show_all: log a line per layer as well.
        check_structured: in these lines, tell whether 2:4 really holds along the reduction axis.

    Returns:
        ``(pruned, total)``, the number of pruned layers and of all Conv2D and Dense layers.

    Raises:
        ValueError: as ``sparsity_report``.

    Example:
        >>> pruned, total = tfmot_asp.check_pruned_layers(model, show_all=True, check_structured=True)
    """
    pruned = total = 0
    for row in sparsity_report(model, batch_size=None).layers:
        if row.kind not in ("Conv2D", "Dense"):
            continue
        total += 1
        length = math.prod(row.shape[axis] for axis in row.reduction_axes)
        kept = TWO_FOUR.kept_of(length)
        pruned += int(kept < length and abs(row.zeros - (1 - kept / length)) < _ZERO_RATIO_TOLERANCE)
        if show_all:
            structured = f" Structured={row.holds}" if check_structured else ""
            logger.log(
                SHOW_PRUNING_INFO,
                "[TF-ASP] layer=%s, type=%s, shape=%s: zero_ratio=%f%s",
                row.name,
                row.kind,
                row.shape,
                row.zeros,
                structured,
            )
    logger.log(SHOW_PRUNING_INFO, "[TF-ASP] %d/%d layers (Conv2D or Dense) are pruned!", pruned, total)
    return pruned, total
