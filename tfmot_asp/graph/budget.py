"""How much memory a model file may ask for: one rule for every reader, applied before what it asks for is made.

A file of a few bytes can claim a layer of terabytes, an archive that unpacks without end, or functions that call each
other twice as often on each level. What a file makes a reader hold (unpacked, parsed, built, computed) may come to
``FREE`` bytes, and ``RATIO`` bytes for each byte of the file. An honest file holds its weights and needs a few copies
of them: packed integers as floats are eight bytes for one. Readers say what they are about to make with ``spend``; what
they keep is not given back, so many small claims come to the same as a large one.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

FREE = 32 << 20
RATIO = 32

# What some things take in memory, roughly, where their sizes are not bytes.
JSON = 24  # per character: "{}," becomes a dict
KERAS_OBJECT = 10_000  # a layer, or an initializer of one
GRAPH_NODE = 2_000
FUNCTION = 10_000  # of a graph
TEXT = 32  # a string that stands in an array, besides its characters


class OverBudgetError(Exception):
    """A file asks for more memory than its size explains.

    It is no ``ValueError``: what a reader does about a part that it cannot read is not what is to be done here.
    """


class Budget:
    """What one file may still ask for.

    Args:
        size: of the file, in bytes.

    Attributes:
        exceeded: the first claim that was too much, in words; None so far. Libraries between may have caught the error.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.spent = 0
        self.exceeded: str | None = None

    @property
    def limit(self) -> int:
        """What it may ask for in all."""
        return FREE + RATIO * self.size

    def spend(self, amount: int, what: str, *, kept: bool = True) -> None:
        """Takes note of bytes that are about to be needed.

        Args:
            amount: how many.
            what: for the error, such as ``"a kernel of shape (2, 3)"``.
            kept: whether they are counted for good; False for what is freed at once.

        Raises:
            OverBudgetError: if that is too much, then or before.
        """
        total = self.spent + max(0, amount)
        if total > self.limit and self.exceeded is None:
            self.exceeded = (
                f"its {self.size:,} bytes do not explain {what}, which would make it {total:,} bytes in memory "
                f"(allowed are {self.limit:,})"
            )
        if self.exceeded is not None:
            raise OverBudgetError(self.exceeded)
        if kept:
            self.spent = total


_IN_FORCE: ContextVar[Budget | None] = ContextVar("budget", default=None)


@contextlib.contextmanager
def reading(size: int | None) -> Iterator[Budget | None]:
    """A scope in which a file is read: ``spend`` draws on its budget.

    Args:
        size: of the file, see ``size_of``; None for one that is trusted, with which nothing is limited.

    Raises:
        OverBudgetError: at the end at the latest, if a claim was too much.
    """
    budget = None if size is None else Budget(size)
    token = _IN_FORCE.set(budget)
    try:
        yield budget
    except OverBudgetError:
        raise
    except Exception as error:
        if budget is not None and budget.exceeded is not None:  # another error was made of it on the way
            raise OverBudgetError(budget.exceeded) from error
        raise
    finally:
        _IN_FORCE.reset(token)
    if budget is not None and budget.exceeded is not None:
        raise OverBudgetError(budget.exceeded)


def spend(amount: int, what: str, *, kept: bool = True) -> None:
    """``Budget.spend`` for the file that is being read, if one is.

    Raises:
        OverBudgetError: if that is too much.
    """
    budget = _IN_FORCE.get()
    if budget is not None:
        budget.spend(amount, what, kept=kept)


def allow(size: int) -> None:
    """Adds the bytes of files that belong to the one that is being read."""
    budget = _IN_FORCE.get()
    if budget is not None:
        budget.size += size


def limited() -> bool:
    """Whether a file is being read that is not trusted."""
    return _IN_FORCE.get() is not None


def size_in_force() -> int:
    """The size of the file that is being read; 0 if none is, or one that is trusted."""
    budget = _IN_FORCE.get()
    return 0 if budget is None else budget.size


def size_of(path: Path) -> int:
    """The bytes of a file, or of all files in a folder, each once; links count as what they name."""
    files = [path] if not path.is_dir() else [Path(at, name) for at, _, names in os.walk(path) for name in names]
    sizes = {}
    for file in files:
        with contextlib.suppress(OSError):
            status = file.stat()
            if stat.S_ISREG(status.st_mode):
                sizes[status.st_dev, status.st_ino] = status.st_size
    return sum(sizes.values())
