"""Tables as text: the one renderer of all reports, and how their cells are written."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import NamedTuple

WIDTH = 120
_GAP = "  "
_BELOW = "    "  # before text that stands below its row

Paint = Callable[[str, str], str]
"""Gives a text, and its mood, as a terminal shows it."""


class Marked(str):
    """A text that is more than text.

    Attributes:
        mood: ``"good"`` or ``"bad"`` news, a ``"header"``, or ``"whole"``: to be copied, so never wrapped.
    """

    mood: str

    def __new__(cls, text: str, mood: str = "") -> Marked:
        marked = super().__new__(cls, text)
        marked.mood = mood
        return marked


def plain(text: str, mood: str) -> str:
    """The paint of what is no terminal: none."""
    return text


def painted(text: str, paint: Paint, mood: str | None = None) -> str:
    """A text in the colour of its mood, or of the one that is given."""
    mood = getattr(text, "mood", mood)
    return paint(text, mood) if mood else text


class _Layout(NamedTuple):
    """Where cells stand.

    Attributes:
        longest: a name longer than this has a line of its own, above the rest of its row.
        widths: of the columns.
        below: width of the lines below a row, where texts of the last column stand that are longer than it; None: they
            go on below themselves.
    """

    longest: int
    widths: tuple[int, ...]
    below: int | None


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = WIDTH, paint: Paint = plain
) -> list[str]:
    """Lines of a table with columns padded to equal width. Nothing is cut, and no word is broken.

    The first column is for names, the last one for text. Where a row would be longer than a line, texts go on below
    themselves, or long names have a line of their own above their row, or long texts one below it: whatever takes the
    fewest lines. If that does not do, all cells go on below themselves.

    Args:
        header: names of the columns, two at least.
        rows: as many cells each.
        width: of a line, which is exceeded only where words leave no other way; None: a row is a line.
        paint: of headers and marked cells.
    """
    cells = [[visible(cell) for cell in row] for row in (header, *rows)]
    layout = _layout(cells, width)
    lines = _lines([Marked(cell, "header") for cell in cells[0]], layout, paint)
    return lines + [line for row in cells[1:] for line in _lines(row, layout, paint)]


def _layout(rows: Sequence[Sequence[str]], width: int | None) -> _Layout:
    """The layout of the fewest lines; of several, that with the most on one line."""
    columns = [list(column) for column in zip(*rows, strict=True)]
    names, *middle, texts = columns
    natural = tuple(max(map(len, column)) for column in columns)
    if width is None or _total(natural) <= width:
        return _Layout(natural[0], natural, None)
    tight = tuple(max(_word(title), *map(len, cells), 0) for title, *cells in middle)  # headers go on below themselves
    least = max(max(map(_word, texts)), min(natural[-1], width // 5))
    best: tuple[int, _Layout] | None = None
    for longest in sorted({*map(len, names), 0}, reverse=True):
        for sizes in (natural[1:-1], tight):
            rest = width - _total((longest, *sizes, 0))
            layouts = [_Layout(longest, (longest, *sizes, rest), None)] if rest >= least else []
            if rest >= -len(_GAP):
                layouts.append(_Layout(longest, (longest, *sizes, max(rest, 0)), width - len(_BELOW)))
            for layout in layouts:
                count = sum(_height(row, layout) for row in rows)
                if best is None or count < best[0]:
                    best = count, layout
    return best[1] if best else _squeezed(middle, tight, width)


def _squeezed(middle: Sequence[Sequence[str]], sizes: Sequence[int], width: int) -> _Layout:
    """Where nothing else does: names and texts on lines of their own, and between them columns that are wrapped."""
    widths, words = [0, *sizes, 0], [0, *(max(map(_word, column)) for column in middle), 0]
    while _total(widths) - len(_GAP) > width and (wide := [i for i, n in enumerate(widths) if n > words[i]]):
        widths[max(wide, key=widths.__getitem__)] -= 1
    return _Layout(0, tuple(widths), width - len(_BELOW))


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def _word(text: str) -> int:
    return max(map(len, text.split()), default=0)


def _height(row: Sequence[str], layout: _Layout) -> int:
    """About how many lines a row takes."""
    name, *cells, text = row
    _, *sizes, last = layout.widths
    above = len(name) > layout.longest
    lines = max((-(-len(cell) // size) for cell, size in zip(cells, sizes, strict=True)), default=1)
    if len(text) <= last:
        return above + max(lines, 1)
    if layout.below is None:
        return above + max(lines, -(-len(text) // last))
    return above + max(lines, 1) + -(-len(text) // layout.below)


def _lines(row: Sequence[str], layout: _Layout, paint: Paint) -> list[str]:
    """The lines of one row."""
    lines, cells, below = [], list(row), ""
    if len(row[0]) > layout.longest:
        lines, cells[0] = [painted(row[0], paint)], ""
    if layout.below is not None and len(row[-1]) > layout.widths[-1]:
        below, cells[-1] = row[-1], ""
    parts = [wrapped(cell, size) for cell, size in zip(cells, layout.widths, strict=True)]
    for line in zip_longest(*parts, fillvalue=""):
        shown = zip(line, layout.widths, strict=True)
        lines.append(_GAP.join(painted(part, paint) + " " * (size - len(part)) for part, size in shown).rstrip())
    return lines + [_BELOW + painted(part, paint) for part in wrapped(below, layout.below) if part]


def wrapped(text: str, width: int | None, indent: str = "") -> list[str]:
    """A text in lines, at its spaces; one at least. ``indent`` stands before all but the first."""
    mood = getattr(text, "mood", None)
    if width is None or len(text) <= width or mood == "whole":
        return [text]
    lines = textwrap.wrap(text, max(width, 1), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return [Marked(line, mood) if mood else line for line in lines] or [""]


def visible(text: str) -> str:
    """Text, such as a name from a file, without what a terminal would obey; a new line is such, too."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def percent(share: float | None, digits: int = 1) -> str:
    """A share of 0 to 1 for reading, right-aligned: `` 69.4%``; ``-`` if there is none."""
    return ("-" if share is None else f"{100 * share:.{digits}f}%").rjust(digits + 5)


def sizes_of(shape: Sequence[int]) -> str:
    """A shape for reading: ``3x3x16x32``."""
    return "x".join(map(str, shape))


def axes_of(axes: Sequence[int]) -> str:
    """Axes for reading: ``0,1``; ``-`` if there are none."""
    return ",".join(map(str, axes)) or "-"


def count_of(number: int) -> str:
    """A large number for reading: ``3.86 G``."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}" if number < 1000 * size else f"{number / size:,.0f} {unit}"
    return str(number)
