"""SIGTERM ends a command as Ctrl-C does: what it was writing goes, what it was changing is put back."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_AGAIN = 5.0  # seconds until a stop is tried again: time to clean up, within the 10 that containers give


class Terminated(KeyboardInterrupt):
    """SIGTERM came. All that cleans up after Ctrl-C does so after this."""


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """A scope in which SIGTERM raises ``Terminated``.

    More of them do not keep it from cleaning up. Where a library caught the exception, it is raised again later.
    Only the main thread gets signals, and a program that has a handler of its own keeps it.
    """
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if not ours:
        yield
        return
    ended, deaf = threading.Event(), threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        if not deaf.is_set():
            deaf.set()
            threading.Thread(target=again, daemon=True).start()
            raise Terminated

    def again() -> None:
        if not ended.wait(_AGAIN):
            deaf.clear()
            os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        ended.set()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
