"""A matrix product with a constant operand, as readers of all formats find it. Needs no TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Gemm:
    """One matrix product with a constant operand.

    Attributes:
        op: name of the op in the graph.
        type: of that op, as its format calls it.
        weight_name: name of the variable or constant that the weight comes from.
        weight: the array that the product reads; None if it could not be computed.
        reduction_axes: the weight's axes that are summed over, flattened row-major; empty for depthwise convolution.
        output_axes: the weight's axes that become output channels.
        groups: number of groups of a grouped convolution.
        problem: why ``weight`` is None.
    """

    op: str
    type: str
    weight_name: str
    weight: np.ndarray | None
    reduction_axes: tuple[int, ...]
    output_axes: tuple[int, ...]
    groups: int = 1
    problem: str | None = None
