"""The progress bar of a calibration."""

from __future__ import annotations

import sys
from typing import Any


def progress_bar(total: int, what: str, progress: bool | None, unit: str = "kernel") -> Any:
    """A bar of work done and left; shown if asked for, by default if stderr is a terminal."""
    from tqdm.auto import tqdm

    show = sys.stderr.isatty() if progress is None else progress
    return tqdm(total=total, desc=what, unit=unit, disable=not show)
