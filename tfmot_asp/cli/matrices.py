"""``tfmot-asp search``: the channel order of one array, without a model and without TensorFlow."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import numpy as np

from tfmot_asp.cli.options import read_array
from tfmot_asp.cli.terminal import Console
from tfmot_asp.cli.writing import check_output
from tfmot_asp.files import replacing
from tfmot_asp.reports.document import Document
from tfmot_asp.reports.table import Marked

logger = logging.getLogger(__name__)


def search(arguments: argparse.Namespace, console: Console) -> int:
    """Searches the order of an array's channels, and writes it if ``-o`` is given."""
    if arguments.output is not None:
        check_output(arguments.output, arguments.weights, force=arguments.force, formats=(".npy",))
    array = read_array(arguments.weights)
    axis = _axis(array, arguments.axis, arguments.weights)
    matrix = np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis])
    from tfmot_asp.permutation.search import search as search_order

    logger.info("Searching an order of %d columns in %d rows.", matrix.shape[1], matrix.shape[0])
    result = search_order(
        matrix,
        m_by_n=arguments.pattern,
        device=arguments.device,
        effort=arguments.effort,
        seed=arguments.seed,
        progress=console.progress,
        time_limit=arguments.time_limit,
    )
    lines = []
    if arguments.output is not None:
        _save(result.permutation, arguments.output)
        lines.append(f"Wrote {arguments.output}: new = np.take(old, permutation, axis={axis})")
    else:
        lines.append(Marked(" ".join(map(str, result.permutation)), "whole"))
    output = None if arguments.output is None else str(arguments.output)
    data = {"weights": str(arguments.weights), "rows": matrix.shape[0], "output": output, **result.to_dict()}
    console.result(Document.joined(result.document(), Document(lines)), data)
    return 0


def _axis(array: Any, axis: int | None, path: Path) -> int:
    """Which axis of the array holds the channels."""
    if isinstance(array, dict):
        raise ValueError(f"{str(path)!r} holds several arrays ({', '.join(array) or 'none'}); save one as an .npy file")
    if array.ndim < 2:
        raise ValueError(
            f"{str(path)!r} has the shape {array.shape}: a matrix of weights is needed, or a kernel and its --axis"
        )
    if axis is None and array.ndim > 2:
        raise ValueError(
            f"{str(path)!r} has the shape {array.shape}: say with --axis which of its {array.ndim} axes holds the "
            f"channels that are summed over (in Keras the last but one, --axis {array.ndim - 2})"
        )
    axis = 1 if axis is None else axis
    if not -array.ndim <= axis < array.ndim:
        raise ValueError(f"--axis {axis}: {str(path)!r} has the shape {array.shape}, so only {array.ndim} axes")
    return axis % array.ndim


def _save(permutation: np.ndarray, output: Path) -> None:
    with replacing(output, overwrite=True, what="a permutation") as written, written.open("wb") as file:
        np.save(file, permutation.astype(np.int64))
