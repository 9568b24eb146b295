"""Tables as text: the one renderer of all reports, and how their cells are written."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

WIDTH = 120
_LEAST = 40
_NAME = 36


def table(header: Sequence[str], rows: Sequence[Sequence[str]], width: int = WIDTH) -> list[str]:
    """Lines of a table with columns padded to equal width. Nothing is cut.

    The first column is for names: a long one has a line of its own, above the rest of its row. The last column is for
    text: where a line would be longer than ``width``, it goes on below itself.

    Args:
        header: names of the columns, two at least.
        rows: as many cells each.
        width: of a line, which is exceeded if the other columns leave less than 40 to the last.
    """
    rows = [[visible(cell) for cell in row] for row in rows]
    cells = [line for row in rows for line in ([row] if len(row[0]) <= _NAME else [(row[0],), ("", *row[1:])])]
    columns = list(zip(header, *(row for row in cells if len(row) > 1), strict=True))
    left = "".join(f"{{:<{max(map(len, column))}}}  " for column in columns[:-1])
    start = len(left.format(*header))
    lines = []
    for name, *rest in [header, *cells]:
        if not rest:
            lines.append(name)
            continue
        text = textwrap.wrap(rest[-1], max(width - start, _LEAST), break_long_words=False, break_on_hyphens=False)
        lines.append(f"{left.format(name, *rest[:-1])}{text[0] if text else ''}".rstrip())
        lines += [" " * start + more for more in text[1:]]
    return lines


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
