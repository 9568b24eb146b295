"""What a search returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tfmot_asp.pattern import Pattern
from tfmot_asp.reports.document import Document
from tfmot_asp.reports.readable import Readable


@dataclass(frozen=True, eq=False)
class SearchResult(Readable):
    """A channel order and what it is worth.

    Attributes:
        permutation: intp (columns,): ``new[:, j] = old[:, permutation[j]]``, that is ``new = old[:, permutation]``.
        retained_before: sum of the scores that the m by n mask keeps in the given order, in float64.
        retained_after: the same in the new order; never less than ``retained_before``.
        efficacy: per cent of what the best possible choice in each row would add (Pool & Yu, NeurIPS 2021).
        seconds: wall-clock time of the search, compilation on first use included.
        m_by_n: the pattern.
        effort: as asked for; "fast", "balanced" or "thorough".
        seed: as asked for.
        device: where it ran, "cpu" or "cuda".
        finished: False if ``time_limit`` cut the search short, and so the result depends on the machine's speed.

    Example:
        >>> result = tfmot_asp.search(matrix)
        >>> reordered = matrix[:, result.permutation]
    """

    permutation: npt.NDArray[np.intp]
    retained_before: float
    retained_after: float
    efficacy: float
    seconds: float
    m_by_n: Pattern
    effort: str
    seed: int
    device: str
    finished: bool = True

    def to_dict(self) -> dict[str, Any]:
        """The result as plain numbers, strings and lists, ready for JSON."""
        return {
            "permutation": self.permutation.tolist(),
            "retained_before": self.retained_before,
            "retained_after": self.retained_after,
            "efficacy": self.efficacy,
            "seconds": self.seconds,
            "sparsity_m_by_n": list(self.m_by_n),
            "effort": self.effort,
            "seed": self.seed,
            "device": self.device,
            "finished": self.finished,
        }

    def document(self) -> Document:
        gain = 100.0 * (self.retained_after / self.retained_before - 1.0) if self.retained_before else 0.0
        cut = "" if self.finished else ", cut short by time_limit"
        summary = (
            f"{len(self.permutation)} columns, {self.m_by_n}: efficacy {self.efficacy:.2f} %, retained magnitude "
            f"+{gain:.2f} % ({self.retained_before:.6g} -> {self.retained_after:.6g}), {self.seconds:.2f} s on "
            f"{self.device}, {self.effort}{cut}"
        )
        return Document([summary])
