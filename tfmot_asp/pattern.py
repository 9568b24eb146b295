"""The sparsity pattern: how many zeros in every block of consecutive weights along the reduction axis.

The same pattern has two names: tfmot writes (zeros, block), as in ``sparsity_m_by_n=(1, 4)``; the field writes "N:M",
N kept of M, as in "3:4". Both mean one zero in every four weights. Whatever takes a pattern here takes either, and
messages, tables and reports write it in one way: ``2:4``, or ``3:4 (1 zero in every 4)`` where the two names differ.
"""

from __future__ import annotations

import operator
import re
from typing import Any, NamedTuple

PatternLike = tuple[int, int] | str
"""What ``Pattern.of`` takes: a ``Pattern``, tfmot's pair (zeros, block), or the field's text "N:M"."""

_TEXT = re.compile(r"([0-9]{1,9}):([0-9]{1,9})( \(.*\))?")


class _Pair(NamedTuple):
    zeros: int
    block: int


class Pattern(_Pair):
    """A sparsity pattern: ``zeros`` of every ``block`` consecutive weights along the reduction axis are zero.

    It is a tuple, equal to tfmot's (zeros, block), and goes into JSON as that list. ``str()`` is how it is written
    everywhere; ``Pattern.of`` reads that again.

    Args:
        zeros: in each block, tfmot's m.
        block: weights in a block, tfmot's n.

    Raises:
        ValueError: unless 0 < zeros < block.

    Example:
        >>> Pattern.of("2:4") == (2, 4)
        True
        >>> str(Pattern(zeros=1, block=4))
        '3:4 (1 zero in every 4)'
    """

    __slots__ = ()

    def __new__(cls, zeros: int, block: int) -> Pattern:
        """Checks the two numbers."""
        if not 0 < zeros < block:
            raise ValueError(f"a pattern needs 0 < zeros < block, got {zeros} zeros in every {block}")
        return super().__new__(cls, zeros, block)

    @classmethod
    def of(cls, pattern: Any, name: str = "sparsity_m_by_n") -> Pattern:
        """The pattern that is meant.

        Args:
            pattern: a ``Pattern``; two integers (zeros, block), as tfmot's ``sparsity_m_by_n`` has them; or text "N:M",
                N kept of every M, or as ``str()`` of a pattern writes it.
            name: what the caller's argument is called, for the error message.

        Raises:
            ValueError: for anything else, and unless at least one weight of a block is zero and one is kept.
        """
        if isinstance(pattern, Pattern):
            return pattern
        try:
            if isinstance(pattern, str):
                return cls._read(pattern.strip())
            if isinstance(pattern, bytes) or any(isinstance(value, bool) for value in pattern):
                raise TypeError
            zeros, block = (operator.index(value) for value in pattern)
            return cls(zeros, block)
        except (TypeError, ValueError):
            raise ValueError(
                f"{name} must be two integers (zeros, block) with 0 < zeros < block, such as (2, 4) for two zeros in "
                f"every four consecutive values, or the text 'N:M', N kept of every M, such as '2:4'; got {pattern!r}"
            ) from None

    @classmethod
    def _read(cls, text: str) -> Pattern:
        found = _TEXT.fullmatch(text)
        if found is None:
            raise ValueError
        kept, block = int(found[1]), int(found[2])
        pattern = cls(block - kept, block)
        if found[3] and text != str(pattern):
            raise ValueError
        return pattern

    @property
    def kept(self) -> int:
        """Weights in a block that may differ from zero: the field's N."""
        return self.block - self.zeros

    @property
    def sparsity(self) -> float:
        """Share of zeros, 0 to 1."""
        return self.zeros / self.block

    def kept_of(self, length: int) -> int:
        """How many of that many consecutive weights the pattern keeps; the last block may be incomplete."""
        return length // self.block * self.kept + min(self.kept, length % self.block)

    def __str__(self) -> str:
        short = f"{self.kept}:{self.block}"
        if self.kept == self.zeros:
            return short
        return f"{short} ({self.zeros} zero{'s' * (self.zeros > 1)} in every {self.block})"


TWO_FOUR = Pattern(2, 4)
"""The pattern of sparse Tensor Cores, the default everywhere."""
