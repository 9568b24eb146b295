"""The colours of the picture, and the text above it that explains them."""

from __future__ import annotations

import textwrap
from html import escape

from tfmot_asp.permutation.picture.drawn import Outline

PERMUTED = ("#2E8B57", "#FFFFFF")
COLOURS = {  # fill, text
    "gemm": ("#BFE5C8", "#111111"),
    "applies": ("#F7B267", "#111111"),
    "passes": ("#FCEFA6", "#111111"),
    "pins": ("#C8352B", "#FFFFFF"),
    "still": ("#F0F0F0", "#666666"),
}
NOTE = "#B0281F"

# Colour and label of each kind of op with what is said of it: of what was done, and of a plan.
_ENTRIES = (
    (PERMUTED, "kernel", "its input channels are permuted", "its input channels would be permuted"),
    (
        COLOURS["gemm"],
        "kernel",
        "pruned, or only its output channels are permuted",
        "to be pruned, or only its output channels would be permuted",
    ),
    (
        COLOURS["applies"],
        "applies",
        "reorders weights of its own, passes on",
        "would reorder weights of its own, passes on",
    ),
    (COLOURS["passes"], "passes", "permuted channels go through", "channels to be permuted go through"),
    (COLOURS["pins"], "pins", *["keeps channels of a prunable kernel in place"] * 2),
    (COLOURS["still"], "still", "no permuted channels here", "no channels to be permuted here"),
)


def legend(outline: Outline) -> str:
    """The label of the whole picture: title, what stays, what colours, numbers and letters mean."""
    fields = "".join(
        f'<TD BGCOLOR="{fill}"><FONT COLOR="{text}" POINT-SIZE="11">{name}</FONT></TD>'
        f'<TD ALIGN="LEFT"><FONT POINT-SIZE="11">{meanings[outline.planned]}   </FONT></TD>'
        + ("</TR><TR>" if i == 2 else "")
        for i, ((fill, text), name, *meanings) in enumerate(_ENTRIES)
    )
    letters = "to be permuted;   S: to be pruned" if outline.planned else "permuted;   S: pruned"
    key = (
        "numbers: groups of channels that move together, 3 → 4 from group 3 to group 4;   "
        f"[K,C]: output and input channels of the kernel {letters}"
    )
    stays = ""
    blocked = dict.fromkeys(op.layer.rpartition("/")[2] for op in outline.ops if op.sparse and "C" not in op.axes)
    if blocked:
        names = textwrap.shorten(", ".join(blocked), 90, placeholder=" ...")
        stay = "would stay" if outline.planned else "stay"
        text = f'<FONT POINT-SIZE="12" COLOR="{NOTE}">input channels {stay}: {escape(names)}</FONT>'
        stays = f'<TR><TD COLSPAN="6" ALIGN="LEFT">{text}</TD></TR>'
    return (
        '<<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="2" CELLPADDING="3">'
        f'<TR><TD COLSPAN="6" ALIGN="LEFT"><FONT POINT-SIZE="18"><B>{escape(outline.title)}</B></FONT></TD></TR>'
        f"{stays}<TR>{fields}</TR>"
        f'<TR><TD COLSPAN="6" ALIGN="LEFT"><FONT POINT-SIZE="11">{escape(key)}</FONT></TD></TR></TABLE>>'
    )
