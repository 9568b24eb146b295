"""Records as plain data, for JSON. The names of keys are the same in all reports: docs/cli.md has the table."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any


def plain(record: Any) -> dict[str, Any]:
    """A dataclass as JSON takes it: dicts, lists, strings and numbers; null for a number that is not finite."""
    found: dict[str, Any] = _lists(asdict(record))
    return found


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return [_lists(item) for item in value] if isinstance(value, (list, tuple)) else value
