"""SIGTERM ends a command as Ctrl-C does: what it was writing goes, what it was changing is put back."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

_AGAIN = 5.0  # seconds until a stop is tried again: time to clean up, within the 10 that containers give
_AT_ONCE = 0.01  # in which the callback that dropped it ends


class Terminated(KeyboardInterrupt):
    """SIGTERM came. All that cleans up after Ctrl-C does so after this."""


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """A scope in which SIGTERM raises ``Terminated``.

    More of them do not keep it from cleaning up. Where a library caught the exception, it is raised again later; where
    Python drops it, in a callback or finalizer that happened to run (after long calls into TensorFlow often), at once.
    Only the main thread gets signals, and a program that has a handler of its own keeps it.
    """
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if not ours:
        yield
        return
    ended, deaf = threading.Event(), threading.Event()
    hook = sys.unraisablehook

    def stop(number: int, frame: FrameType | None) -> None:
        if not deaf.is_set():
            deaf.set()
            threading.Thread(target=again, args=(_AGAIN,), daemon=True).start()
            raise Terminated

    def again(seconds: float) -> None:
        if not ended.wait(seconds):
            deaf.clear()
            os.kill(os.getpid(), signal.SIGTERM)

    def dropped(unraisable: sys.UnraisableHookArgs) -> None:
        if issubclass(unraisable.exc_type, Terminated):
            threading.Thread(target=again, args=(_AT_ONCE,), daemon=True).start()
        else:
            hook(unraisable)

    signal.signal(signal.SIGTERM, stop)
    sys.unraisablehook = dropped
    try:
        yield
    finally:
        ended.set()
        sys.unraisablehook = hook
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
