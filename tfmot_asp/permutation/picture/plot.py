"""The picture of a permutation: which kernels were reordered, what carries their channels, what blocked the rest.

Green is a kernel that is permuted or pruned, orange what applies the permutation to weights of its own and passes it
on, yellow what passes it through, red what pins. Drawn by Graphviz; a `.dot` file needs no Graphviz.

From a plan to a picture: :mod:`~tfmot_asp.permutation.picture.outline` makes plain data
(:mod:`~tfmot_asp.permutation.picture.drawn`) of it,
:mod:`~tfmot_asp.permutation.picture.fold` draws together what belongs together,
:mod:`~tfmot_asp.permutation.picture.columns` sets deep models in columns,
:mod:`~tfmot_asp.permutation.picture.tables` writes them for Graphviz.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tfmot_asp.files import replacing
from tfmot_asp.permutation.picture.columns import set_columns
from tfmot_asp.permutation.picture.drawn import Outline
from tfmot_asp.permutation.picture.fold import fold
from tfmot_asp.permutation.picture.tables import FONT, GREY, Drawing, load_pydot

logger = logging.getLogger(__name__)

RENDERED = (".png", ".svg", ".pdf")
TEXT = (".dot", ".gv")


def check_plot_path(path: str | os.PathLike[str]) -> str:
    """Checks that a picture can be written to `path`, before any work is done for it.

    Returns:
        The suffix, in lower case.

    Raises:
        ValueError: if the suffix is not one of .png, .svg, .pdf, .dot, .gv.
        FileNotFoundError: if the folder does not exist.
        ImportError: if pydot is missing.
        RuntimeError: if the suffix needs Graphviz and `dot` is not found.
    """
    name = os.fspath(path)
    suffix = os.path.splitext(name)[1].lower()
    if suffix not in RENDERED + TEXT:
        raise ValueError(
            f"cannot draw to {name!r}: its suffix {suffix!r} is none of {', '.join(RENDERED)} (drawn by Graphviz) or "
            f"{', '.join(TEXT)} (Graphviz input, which needs no Graphviz)"
        )
    folder = os.path.dirname(os.path.abspath(name))
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"cannot draw to {name!r}: the folder {folder!r} does not exist, create it first")
    if os.path.isdir(name):
        raise IsADirectoryError(f"cannot draw to {name!r}: it is a folder; give the name of a file in it")
    load_pydot()
    if suffix in RENDERED:
        _check_graphviz(f"drawing {name!r}")
    return suffix


def _check_graphviz(what: str) -> None:
    if shutil.which("dot") is None:
        raise RuntimeError(
            f"{what} needs Graphviz, whose program 'dot' is not on the PATH. Install it (apt-get install "
            "graphviz, brew install graphviz, conda install graphviz), or write a .dot file, which needs no Graphviz"
        )


class Picture:
    """The picture of a permutation, which notebooks show.

    Args:
        outline: what is drawn.

    Raises:
        ImportError: without pydot.
        RuntimeError: without Graphviz.
    """

    def __init__(self, outline: Outline) -> None:
        load_pydot()
        _check_graphviz("showing a picture")
        self.outline = outline

    def __repr__(self) -> str:
        return f"<picture of {self.outline.title}>"

    def _repr_svg_(self) -> str:
        return _render(to_dot(self.outline).to_string(), "svg", 0, self.outline.title).decode()


def plot(outline: Outline, path: str | os.PathLike[str]) -> None:
    """Draws a model's ops, coloured by what the permutation does with them.

    Args:
        outline: as from :func:`tfmot_asp.permutation.picture.outline.outline`, or of a report.
        path: ends in .png, .svg or .pdf, which Graphviz draws, or in .dot or .gv for its input.

    Raises:
        As :func:`check_plot_path`, and RuntimeError if Graphviz fails.
    """
    suffix = check_plot_path(path)
    drawing = Drawing(outline, fold(outline.ops))
    text = _assemble(drawing).to_string()
    data = text.encode() if suffix in TEXT else _render(text, suffix[1:], drawing.resolution(), os.fspath(path))
    with replacing(Path(path), overwrite=True, what="a picture") as written:
        written.write_bytes(data)
    logger.info("drew %d ops to %s", len(outline.ops), os.fspath(path))


def _render(text: str, kind: str, dpi: int, name: str) -> bytes:
    # Not by pydot, which prints the whole picture to the console if dot fails. The resolution is for the bitmap alone:
    # an SVG that is given one is cut off.
    command = ["dot", f"-T{kind}", *([f"-Gdpi={dpi}"] if kind == "png" else [])]
    result = subprocess.run(command, input=text.encode(), capture_output=True, check=False)
    if result.returncode:
        complaint = result.stderr.decode(errors="replace").strip().partition("\n")[0]
        raise RuntimeError(
            f"Graphviz could not draw {name!r}: dot ended with {result.returncode}: {complaint}. "
            "Another suffix may work; a .dot file needs no Graphviz"
        )
    return result.stdout


def to_dot(outline: Outline) -> Any:
    """The picture as a `pydot.Dot`."""
    return _assemble(Drawing(outline, fold(outline.ops)))


def _assemble(drawing: Drawing) -> Any:
    blocks = drawing.blocks
    columns = set_columns(blocks, [drawing.height(b) for b in blocks], [drawing.width(b) for b in blocks])
    graph = load_pydot().Dot("permutation", graph_type="digraph", **drawing.graph_attributes(columns))
    graph.set_node_defaults(shape="plain", fontname=f'"{FONT}"', fontsize="11", margin="0")
    graph.set_edge_defaults(arrowsize="0.6", color=f'"{GREY}"', penwidth="1")
    for column in range(columns):
        drawing.column(graph, column, columns)
    drawing.edges(graph)
    return graph
