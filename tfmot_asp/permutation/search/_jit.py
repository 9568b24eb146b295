"""Numba compilation settings, in one place."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numba

_logger = logging.getLogger(__name__)


def jit(function: Callable[..., Any]) -> Any:
    """Compiles ``function`` on first use, without the GIL, and caches machine code on disk where that is possible.

    Numba caches beside the source or, in a read-only installation, in the user's cache folder. Where neither can be
    written to (a container with a read-only root), it refuses to decorate: then the code is compiled once per process.
    """
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError as error:
        _logger.info("compiled code of %s is not cached: %s", function.__name__, error)
        return numba.njit(nogil=True)(function)
