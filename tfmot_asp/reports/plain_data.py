"""Records as plain data, for JSON. The names of keys are the same in all reports: docs/cli.md has the table."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any


def plain(record: Any) -> dict[str, Any]:
    """A dataclass as JSON takes it: dicts, lists, strings and numbers."""
    found: dict[str, Any] = jsonable(asdict(record))
    return found


def jsonable(value: Any) -> Any:
    """Data as JSON can hold it: numbers that are not finite become None, NumPy's become Python's, tuples lists."""
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if hasattr(value, "tolist"):
        return jsonable(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
