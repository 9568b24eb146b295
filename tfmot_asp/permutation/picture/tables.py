"""Turns blocks into Graphviz tables, clusters and edges, with a legend."""

from __future__ import annotations

import math
import re
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from tfmot_asp.permutation.picture.drawn import DrawnOp, Outline
from tfmot_asp.permutation.picture.fold import Block, Cell, scopes_of
from tfmot_asp.permutation.picture.legend import COLOURS, NOTE, PERMUTED, legend

FONT = "Helvetica,Arial,sans-serif"
GREY = "#8A8A8A"
_LINE_HEIGHT, _GAP, _CHARACTER = 0.31, 0.45, 0.085  # inches
_DPI, _PIXELS = 110, 1e8
_EMPTY = 3  # times the area of the blocks: about what a picture has
_NAME, _TEXT = 34, 24  # characters


class Drawing:
    """Turns blocks into Graphviz tables, clusters and edges."""

    def __init__(self, outline: Outline, blocks: Sequence[Block]):
        self.outline = outline
        self.blocks = blocks
        self.prefix = outline.title.partition(":")[0] + "_"  # some models write their name before that of each layer
        held: dict[str, int] = defaultdict(int)
        for block in blocks:
            for scope in scopes_of(block.scope):
                held[scope] += 1
        self.clusters = {scope for scope, count in held.items() if count > 1}

    # Size, estimated, to choose columns and resolution

    def height(self, block: Block) -> float:
        notes = sum(len(_notes(line)) for line in block.lines)
        return _LINE_HEIGHT * len(block.lines) + 0.2 * notes + _GAP

    def width(self, block: Block) -> float:
        characters = max(len(self.name(line, block)) + sum(len(_label(c)) + 2 for c in line) for line in block.lines)
        return _CHARACTER * characters + 0.4

    def resolution(self) -> int:
        """Dots per inch of a bitmap: as many as memory and eyes have room for."""
        area = sum(self.height(b) * self.width(b) for b in self.blocks)
        return max(24, min(_DPI, int(math.sqrt(_PIXELS / max(_EMPTY * area, 1)))))

    def graph_attributes(self, columns: int) -> dict[str, str]:
        return {
            "rankdir": "TB",
            "pack": "36",  # points between columns, which are laid out one by one ...
            "packmode": f"array_it{columns}",  # ... and put side by side, in order, aligned at the top
            "nodesep": "0.25",
            "ranksep": "0.28",
            "fontname": f'"{FONT}"',
            "labelloc": "t",
            "labeljust": "l",
            "label": legend(self.outline),
            "bgcolor": "white",
            "pad": "0.2",
            "splines": "true",
        }

    # Nodes

    def column(self, graph: Any, column: int, columns: int) -> None:
        """The blocks of one column, in nested clusters of their layers."""
        pydot = load_pydot()
        parts: dict[str, Any] = {"": graph}
        if columns > 1:
            # A cluster keeps the parts of a column together, connected or not.
            parts[""] = pydot.Cluster(f"column{column}", style="invis", label="")
            graph.add_subgraph(parts[""])
        for i, block in enumerate(self.blocks):
            if block.column != column:
                continue
            around = ""
            for scope in scopes_of(block.scope):
                if scope not in self.clusters:
                    continue
                if scope not in parts:
                    parts[scope] = pydot.Cluster(
                        f"c{column}_{len(parts)}",
                        label=_quoted(_shorten(scope[len(around) :].lstrip("/"), 40)),
                        style="rounded",
                        color='"#B9C4CE"',
                        fontcolor='"#5B6B7A"',
                        fontsize="11",
                        margin="8",
                        labeljust="l",
                    )
                    parts[around].add_subgraph(parts[scope])
                around = scope
            tooltip = _quoted("\\n".join(self._tooltip(block)))
            parts[around].add_node(pydot.Node(f"b{i}", label=self.table(block), tooltip=tooltip))

    def name(self, line: Sequence[Cell], block: Block) -> str:
        """The layer of a line, below the clusters that are drawn around it."""
        inner = max((s for s in scopes_of(block.scope) if s in self.clusters), key=len, default="")
        layer = line[0].layer
        own = layer.rpartition("/")[2]
        if line[0].text == own:
            return ""  # the first field says it
        name = layer[len(inner) :].lstrip("/") if layer.startswith(inner) else layer
        parts = [part.removeprefix(self.prefix) for part in (name if len(name) <= _NAME else own).split("/")]
        return _shorten("/".join(parts), _NAME)

    def table(self, block: Block) -> str:
        """An HTML-like label: a row per line, a coloured field per run of cells alike."""
        if block.is_end:
            return _end_label(block.lines[0][0].op)
        lines = [_runs(line) for line in block.lines]
        names = [self.name(line, block) for line in block.lines]
        width = max(len(runs) for runs in lines)
        rows = []
        for line, runs, name in zip(block.lines, lines, names, strict=True):
            text = f'<FONT COLOR="#444444" POINT-SIZE="10">{escape(name)}</FONT>' if name else ""
            title = f'<TD ALIGN="LEFT">{text}</TD>' if any(names) else ""
            filler = f'<TD COLSPAN="{width - len(runs)}"></TD>' if len(runs) < width else ""
            rows.append(f"<TR>{title}{''.join(self.field(run, line[0].layer) for run in runs)}{filler}</TR>")
            notes = _notes(line)
            if notes:
                text = "".join(f'{escape(note)}&#160;<BR ALIGN="LEFT"/>' for note in notes)
                text = f'<FONT COLOR="{NOTE}" POINT-SIZE="10">{text}</FONT>'
                before = "<TD></TD>" if any(names) else ""
                rows.append(f'<TR>{before}<TD COLSPAN="{width}" ALIGN="LEFT" CELLPADDING="0">{text}</TD></TR>')
        attributes = 'BORDER="1" COLOR="#C9C9C9" CELLBORDER="0" CELLSPACING="2" CELLPADDING="3" BGCOLOR="#FFFFFF"'
        return f"<<TABLE {attributes}>{''.join(rows)}</TABLE>>"

    def field(self, run: Sequence[Cell], first: str) -> str:
        """One coloured field for cells that look alike, on a line that the layer `first` begins."""
        op = run[0].op
        fill, colour = PERMUTED if op.role == "gemm" and "C" in op.axes else COLOURS[op.role]
        name = " · ".join(_shorten(self.beside(cell, first), _TEXT) for cell in run)
        label = " ".join(part for part in (escape(name), _suffix(op)) if part)
        return f'<TD BGCOLOR="{fill}" ALIGN="LEFT" CELLPADDING="4"><FONT COLOR="{colour}">{label}</FONT></TD>'

    def beside(self, cell: Cell, first: str) -> str:
        """A cell's text, without what its layer's name shares with that of the layer that begins the line."""
        text = cell.text.removeprefix(self.prefix)
        if cell.layer == first or cell.text != cell.layer.rpartition("/")[2]:
            return text
        common = next((i for i, (a, b) in enumerate(zip(cell.layer, first, strict=False)) if a != b), len(first))
        rest = cell.layer[max(cell.layer.rfind(mark, 0, common) for mark in "_./") + 1 :]
        return rest if len(rest) < len(text) and not rest.isdigit() else text

    def _tooltip(self, block: Block) -> Iterable[str]:
        for line in block.lines:
            for cell in line:
                for i in cell.ops:
                    op = self.outline.ops[i]
                    where = "/".join(part for part in (op.layer, op.name) if part)
                    groups = f" {_groups(op)}" if _groups(op) else ""
                    yield f"{where} ({op.type}){groups}" + (f": {op.note}" if op.note else "")

    # Edges

    def edges(self, graph: Any) -> None:
        """Edges within a column; between columns a pair of lettered marks."""
        pydot = load_pydot()
        marks: dict[int, str] = {}
        placed: set[tuple[int, int]] = set()
        for i, block in enumerate(self.blocks):
            for source, carries in block.inputs.items():
                style = {} if carries else {"color": '"#CFCFCF"'}
                if self.blocks[source].column == block.column:
                    graph.add_edge(pydot.Edge(f"b{source}", f"b{i}", **style))
                    continue
                if source not in marks:
                    marks[source] = _letter(len(marks))
                    self._mark(graph, f"out{source}", marks[source], self.blocks[source].column)
                    graph.add_edge(pydot.Edge(f"b{source}", f"out{source}", **style))
                name = f"in{source}_{block.column}"
                if (source, block.column) not in placed:
                    placed.add((source, block.column))
                    self._mark(graph, name, marks[source], block.column)
                graph.add_edge(pydot.Edge(name, f"b{i}", **style))

    def _mark(self, graph: Any, name: str, letter: str, column: int) -> None:
        pydot = load_pydot()
        node = pydot.Node(
            name, label=letter, shape="circle", fixedsize="true", width="0.26", fontsize="10", color='"#5B6B7A"'
        )
        inside = [s for s in graph.get_subgraphs() if s.get_name() == f"cluster_column{column}"]
        (inside[0] if inside else graph).add_node(node)


# Text


def _runs(line: Sequence[Cell]) -> list[list[Cell]]:
    """Neighbouring cells that look alike, together: bias and batch norm of the same groups."""
    runs: list[list[Cell]] = []
    for cell in line:
        alike = runs and cell.op.role in ("applies", "passes", "still") and _look(runs[-1][-1]) == _look(cell)
        if alike:
            runs[-1].append(cell)
        else:
            runs.append([cell])
    return runs


def _look(cell: Cell) -> tuple[str, str]:
    return cell.op.role, _groups(cell.op)


def _label(cell: Cell) -> str:
    return " ".join(part for part in (_shorten(cell.text, _TEXT), _groups(cell.op), cell.op.axes) if part)


def _suffix(op: DrawnOp) -> str:
    """What follows the op's name: groups, permuted axes, S."""
    axes = f"[{op.axes}]" if op.axes else ""
    return " ".join(part for part in (escape(_groups(op)), axes, "S" if op.sparse else "") if part)


def _groups(op: DrawnOp) -> str:
    """The groups of an op: "3", or "3 → 4" for a kernel from channels of group 3 to channels of group 4."""
    if op.role != "gemm" or op.takes == op.gives:
        return _few(op.gives or op.takes)
    if not op.gives or "K" not in op.axes:
        return f"{_few(op.takes)} →" if op.takes else ""
    return f"{_few(op.takes)} → {_few(op.gives)}".strip()


def _few(groups: str) -> str:
    """Groups as they are, or only how many if that would be long."""
    if len(groups) <= 9:
        return groups
    spans = [span.split("-") for span in groups.split(",")]
    return f"{sum(int(s[-1]) - int(s[0]) + 1 for s in spans)} groups"


def _notes(line: Sequence[Cell]) -> list[str]:
    """What to say under a line in words: why its channels stay."""
    notes = []
    for cell in line:
        if cell.op.note:
            stays = "input channels stay: " if cell.op.sparse else "stays dense: "
            text = ("pins: " if cell.op.role == "pins" else stays) + cell.op.note
            notes += textwrap.wrap(text, 72, max_lines=2, placeholder=" …")
    return notes


def _end_label(op: DrawnOp) -> str:
    fill, text = COLOURS[op.role]
    groups = f" {_few(op.gives)}" if op.gives else ""
    name = op.name or op.type.lower()  # Graphviz refuses a font around nothing
    note = f'<BR/><FONT POINT-SIZE="9"><I>{escape(op.note)}</I></FONT>' if op.note else ""
    return (
        '<<TABLE BORDER="1" STYLE="ROUNDED" COLOR="#8A8A8A" CELLBORDER="0" CELLPADDING="4" '
        f'BGCOLOR="{fill}"><TR><TD><FONT COLOR="{text}">{escape(name)}{groups}{note}</FONT></TD></TR></TABLE>>'
    )


def _shorten(text: str, length: int) -> str:
    """Cuts the middle out of what is too long: the ends of names tell them apart."""
    if len(text) <= length:
        return text
    head = (length - 1) * 2 // 5
    return f"{text[:head]}…{text[head + 1 - length :]}"


def _letter(index: int) -> str:
    """A, B, ..., Z, AA, AB, ..."""
    letters = ""
    index += 1
    while index:
        index, digit = divmod(index - 1, 26)
        letters = chr(ord("A") + digit) + letters
    return letters


def _quoted(text: str) -> str:
    """A Graphviz string; the only escape kept is the line break."""
    text = re.sub(r"\\(?!n)", r"\\\\", text).replace('"', '\\"')
    return f'"{text}"'


def load_pydot() -> Any:
    """The module pydot; ImportError says what to install."""
    try:
        import pydot
    except ImportError as error:
        raise ImportError("drawing needs pydot: pip install pydot") from error
    return pydot
