"""Einsum equations: which axes each operand has, and what becomes of them.

The one parser of them, for TensorFlow's ops, ONNX' nodes and Keras' layers; at the root of the package because the
rooms that read equations lie one above the other, and what they share must lie below all.
"""

from __future__ import annotations

from dataclasses import dataclass

ELLIPSIS = "..."


@dataclass(frozen=True)
class Equation:
    """An equation such as ``"...x,xy->...y"``.

    Axes have names: their letter, and for those that an ellipsis stands for ``"...1"``, ``"...2"`` and so on, counted
    from the last, as they broadcast.

    Attributes:
        operands: the term of each operand.
        output: the term of the result.
    """

    operands: tuple[str, ...]
    output: str

    def axes(self, operand: int, rank: int) -> tuple[str, ...]:
        """The names of an operand's axes."""
        return _axes(self.operands[operand], rank)

    def output_axes(self, rank: int) -> tuple[str, ...]:
        """The names of the result's axes."""
        return _axes(self.output, rank)

    def roles(self, operand: int, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What an operand's axes are for: those that are summed together with another operand's, and those that only
        this operand brings into the result. The others are batch, broadcast, or summed within the operand alone.

        Args:
            operand: which one.
            rank: its number of axes.

        Returns:
            Reduction axes and output axes.

        Example:
            >>> parse("abc,cde->abde").roles(1, rank=3)
            ((0,), (1, 2))
        """
        others = "".join(term for i, term in enumerate(self.operands) if i != operand)
        letters = [(i, name) for i, name in enumerate(self.axes(operand, rank)) if not name.startswith(ELLIPSIS)]
        reduction = tuple(i for i, letter in letters if letter in others and letter not in self.output)
        outputs = tuple(i for i, letter in letters if letter not in others and letter in self.output)
        return reduction, outputs


def parse(equation: str | bytes) -> Equation:
    """Reads an equation, as a string or as TensorFlow's attributes hold it.

    Without ``->`` the result has the letters that occur once, in alphabetical order, behind the ellipsis.

    Raises:
        ValueError: if it is none.
    """
    text = (equation.decode() if isinstance(equation, bytes) else equation).replace(" ", "")
    left, arrow, output = text.partition("->")
    terms = tuple(left.split(","))
    if not arrow:
        letters = left.replace(ELLIPSIS, "").replace(",", "")
        output = ELLIPSIS * (ELLIPSIS in left) + "".join(sorted(a for a in letters if letters.count(a) == 1))
    for term in (*terms, output):
        letters = term.replace(ELLIPSIS, "", 1)
        if letters and not (letters.isascii() and letters.isalpha()):
            raise ValueError(f"{text!r} is no einsum equation")
    return Equation(terms, output)


def _axes(term: str, rank: int) -> tuple[str, ...]:
    before, dots, after = term.partition(ELLIPSIS)
    width = rank - len(before) - len(after)
    if width < 0 or (width and not dots):
        raise ValueError(f"the term {term!r} of an einsum does not fit a tensor with {rank} axes")
    return (*before, *(f"{ELLIPSIS}{axis}" for axis in range(width, 0, -1)), *after)
