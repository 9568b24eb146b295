"""The bar that long work shows: how much is done and what is left. Needs no TensorFlow."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

_OF_STAGES = "{desc}: {n_fmt}/{total_fmt} |{bar:20}| {elapsed}{postfix}"


def check_progress(progress: Any) -> None:
    """Validates a ``progress`` argument.

    Raises:
        TypeError: unless it is True, False or None.
    """
    if not (progress is None or isinstance(progress, bool)):
        raise TypeError(f"progress must be True, False or None; got {progress!r}")


def progress_bar(
    total: float,
    what: str,
    progress: bool | None,
    unit: str = "",
    unit_scale: bool = False,
    bar_format: str | None = None,
) -> Any:
    """A context manager with ``update(done)``.

    Args:
        total: units of all the work.
        what: the word in front of the bar.
        progress: whether to show it; None: if stderr is a terminal.
        unit: what is counted.
        unit_scale: whether to count in thousands (k) and millions (M) of it.
        bar_format: how it looks, as tqdm takes it.
    """
    show = sys.stderr.isatty() if progress is None else progress
    if show:
        from tqdm.auto import tqdm  # a widget in notebooks; it warns where there is no ipywidgets
    else:
        from tqdm import tqdm
    return tqdm(total=total, desc=what, unit=unit, unit_scale=unit_scale, disable=not show, bar_format=bar_format)


class Stages:
    """A bar of work that has few, unlike stages: how many are done, and which one runs. A context manager."""

    def __init__(self, what: str, names: Sequence[str], progress: bool | None) -> None:
        """Shows none of them as done.

        Args:
            what: the word in front of the bar.
            names: of the stages, in their order.
            progress: as for ``progress_bar``.
        """
        check_progress(progress)
        self._names = list(names)
        self._bar = progress_bar(len(self._names), what, progress, bar_format=_OF_STAGES)

    def begin(self, name: str) -> None:
        """Says that a stage begins, and those before it are done. One may begin again."""
        self._bar.n = self._names.index(name)
        self._bar.set_postfix_str(name)

    def __enter__(self) -> Stages:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            self._bar.n = len(self._names)
            self._bar.set_postfix_str("")
        self._bar.close()
