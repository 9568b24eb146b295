"""The bar that long work shows: how much is done and what is left."""

from __future__ import annotations

import sys
from typing import Any


def progress_bar(total: int, what: str, progress: bool | None, unit: str, unit_scale: bool = False) -> Any:
    """A context manager with ``update(done)``.

    Args:
        total: units of all the work.
        what: the word in front of the bar.
        progress: whether to show it; None: if stderr is a terminal.
        unit: what is counted.
        unit_scale: whether to count in thousands (k) and millions (M) of it.
    """
    show = sys.stderr.isatty() if progress is None else progress
    if show:
        from tqdm.auto import tqdm  # a widget in notebooks; it warns where there is no ipywidgets
    else:
        from tqdm import tqdm
    return tqdm(total=total, desc=what, unit=unit, unit_scale=unit_scale, disable=not show)
