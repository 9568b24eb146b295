"""Why something stays as it is: a layer dense, a channel in its place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class OpName(NamedTuple):
    """An op of a traced graph, as reasons name it.

    Attributes:
        type: of the op, such as ``"Reshape"``.
        name: its scoped name.
    """

    type: str
    name: str

    def __str__(self) -> str:
        return f"{self.type} {self.name!r}"


@dataclass(frozen=True)
class Reason:
    """A reason in its parts. ``str()`` is the one way in which it is written; nothing reads the parts back from that.

    Attributes:
        subject: what it is about, such as ``"Conv2D 'stem'"``; empty where the sentence has a subject of its own.
        why: the rest of the sentence, such as ``"has 3 input channels"``. Tables whose rows name the subject show this.
        op: the op that is to blame, if one is.

    Example:
        >>> print(Reason("Conv2D 'stem'", "has 3 input channels"))
        Conv2D 'stem' has 3 input channels
    """

    subject: str
    why: str
    op: OpName | None = None

    def __str__(self) -> str:
        sentence = f"{self.subject} {self.why}" if self.subject else self.why
        return sentence if self.op is None else f"{sentence} ({self.op})"
