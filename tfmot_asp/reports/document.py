"""What a report shows, once for text, notebooks and terminals: a summary, then tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html import escape

from tfmot_asp.reports.table import WIDTH, Marked, Paint, painted, plain, table, visible, wrapped

_LEFT = "text-align:left;vertical-align:top"


@dataclass(frozen=True)
class Table:
    """Rows of text.

    Attributes:
        header: names of the columns: the first is for names, the last for text.
        rows: as many cells each.
        title: a line above it.
        below: lines below it, such as sources.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    below: Sequence[str] = ()


@dataclass(frozen=True)
class Document:
    """A report for reading.

    Attributes:
        summary: what one wants to know, a line each.
        tables: all there is.
    """

    summary: Sequence[str]
    tables: Sequence[Table] = ()

    @classmethod
    def joined(cls, *parts: Document) -> Document:
        """One document of several: all summaries, then all tables."""
        return cls([line for part in parts for line in part.summary], [t for part in parts for t in part.tables])

    def titled(self, title: str) -> Document:
        """The same with a title for its first table, for where it stands among others."""
        tables = [replace(one, title=one.title or ("" if i else title)) for i, one in enumerate(self.tables)]
        return Document(self.summary, tables)

    def worded(self, change: Callable[[str], str]) -> Document:
        """The same in other words; marks stay."""

        def changed(texts: Sequence[str]) -> list[str]:
            moods = [getattr(text, "mood", "") for text in texts]
            said = (text if mood == "whole" else change(text) for text, mood in zip(texts, moods, strict=True))
            return [Marked(text, mood) if mood else text for text, mood in zip(said, moods, strict=True)]

        tables = [
            replace(one, rows=[changed(row) for row in one.rows], below=changed(one.below)) for one in self.tables
        ]
        return Document(changed(self.summary), tables)

    def with_line(self, line: str) -> Document:
        """The same with one more line in its summary."""
        return Document([*self.summary, line], self.tables)

    def to_text(
        self, width: int | None = WIDTH, prose: int | None = None, *, tables: bool = True, paint: Paint = plain
    ) -> str:
        """The document as text.

        Args:
            width: of a line of a table; None: nothing is wrapped.
            prose: of the other lines; by default these are not wrapped, so that a program finds what is in them.
            tables: whether to show more than the summary.
            paint: colours of a terminal.
        """
        lines = [line for text in self.summary for line in _wrapped(text, prose, paint)]
        for one in self.tables if tables else ():
            lines += [""] if lines else []
            lines += _wrapped(one.title, prose, paint) if one.title else []
            lines += table(one.header, one.rows, width, paint)
            lines += [line for text in one.below for line in _wrapped(text, prose, paint)]
        return "\n".join(lines)

    def to_html(self) -> str:
        """The document as HTML: tables without scripts, in the colours of the page."""
        lines = "\n".join(_html(line) for text in self.summary for line in _wrapped(text, None, plain))
        parts = [f'<p style="white-space:pre-wrap">{lines}</p>'] if lines else []
        for one in self.tables:
            head = "".join(f'<th scope="col" style="{_LEFT}">{_html(cell)}</th>' for cell in one.header)
            body = "".join(f"<tr>{_html_row(row)}</tr>" for row in one.rows)
            caption = f'<caption style="{_LEFT}">{_html(one.title)}</caption>' if one.title else ""
            parts.append(f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
            parts += [f"<p><small>{'<br>'.join(map(_html, one.below))}</small></p>"] if one.below else []
        return f"<div>{''.join(parts)}</div>"


def _wrapped(text: str, width: int | None, paint: Paint) -> list[str]:
    """Lines of a text."""
    if "\n" in text:
        return [line for part in text.split("\n") for line in _wrapped(part, width, paint)]
    text = visible(text)
    indent = " " * (len(text) - len(text.lstrip()) + 2)
    return [painted(line, paint) for line in wrapped(text, width, indent)]


def _html(text: str) -> str:
    """Text for a page; bad news are bold."""
    shown = escape(visible(text))
    return f"<strong>{shown}</strong>" if getattr(text, "mood", None) == "bad" else shown


def _html_row(row: Sequence[str]) -> str:
    name, *rest = row
    first = f'<th scope="row" style="{_LEFT}">{_html(name)}</th>' if name else "<td></td>"
    return first + "".join(f'<td style="{_LEFT}">{_html(cell)}</td>' for cell in rest)
