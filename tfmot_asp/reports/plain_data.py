"""Records as plain data, for JSON. The names of keys are the same in all reports: docs/cli.md has the table."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any


def plain(record: Any) -> dict[str, Any]:
    """A dataclass as JSON takes it: dicts, lists, strings and numbers."""
    found: dict[str, Any] = _lists(asdict(record))
    return found


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, (list, tuple)) else value
