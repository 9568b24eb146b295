"""From the caller's ``progress`` and ``time_limit`` to the ``tick`` that a running search calls."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tfmot_asp.reports.progress_bar import progress_bar

_FORMAT = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"


class Progress:
    """A context manager whose value is the tick: it shows the fraction done, and says whether time is up.

    Leaving it without an error shows 1.0 and closes the bar.
    """

    def __init__(
        self, progress: bool | Callable[[float], Any] | None, started: float, time_limit: float | None
    ) -> None:
        self._report: Callable[[float], Any] | None = progress if callable(progress) else None
        self._deadline = None if time_limit is None else started + time_limit
        self._bar = progress_bar(1.0, "search", True, bar_format=_FORMAT) if progress is True else None

    def __enter__(self) -> Callable[[float], bool]:
        return self._tick

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            self._show(1.0)
        if self._bar is not None:
            self._bar.close()

    def _tick(self, fraction: float) -> bool:
        self._show(fraction)
        return self._deadline is not None and time.perf_counter() >= self._deadline

    def _show(self, fraction: float) -> None:
        if self._report is not None:
            self._report(fraction)
        if self._bar is not None:
            self._bar.n = fraction
            self._bar.refresh()


def within(tick: Callable[[float], bool], start: float, share: float) -> Callable[[float], bool]:
    """The tick of a part of the work: its fractions fill ``share`` of the whole, from ``start`` on."""
    return lambda fraction: tick(start + share * fraction)
