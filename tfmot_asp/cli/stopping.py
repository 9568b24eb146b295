"""SIGTERM ends a command as Ctrl-C does: what it was writing goes, what it was changing is put back."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM came. All that cleans up after Ctrl-C does so after this."""


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """A scope in which SIGTERM raises ``Terminated``, once: the next ones do not keep it from cleaning up.

    Only the main thread gets signals, and a program that has a handler of its own keeps it.
    """
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if not ours:
        yield
        return
    signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _raise(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated
