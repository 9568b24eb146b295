"""The precisions that matrix products are computed in, each by one name: ``"fp32"``, ``"fp16"``, ``"int8"``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

PRECISIONS = ("fp32", "fp16", "int8")

# What TensorFlow, NumPy and others call them. Case makes no difference: TF-TRT writes "FP16".
_ALIASES = {"float32": "fp32", "float16": "fp16", "half": "fp16", "bfloat16": "bf16"}


def check_precision(given: Any, allowed: Sequence[str] = PRECISIONS, name: str = "precision") -> str:
    """A precision by its name here.

    Args:
        given: that name, one of other tools such as ``"float16"`` or ``"FP16"``, or a dtype.
        allowed: what the caller can do.
        name: what the caller's argument is called, for the error.

    Raises:
        ValueError: if it is none of ``allowed``.

    Example:
        >>> check_precision("float16"), check_precision("INT8"), check_precision(np.float32)
        ('fp16', 'int8', 'fp32')
    """
    text = given if isinstance(given, str) else getattr(given, "name", None) or getattr(given, "__name__", None)
    lower = str(text).lower()
    found = _ALIASES.get(lower, lower)
    if found not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {given!r}")
    return found
