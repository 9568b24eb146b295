"""A C library by ctypes, whose functions return a status: called by name, with their types, and errors in its words."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any, ClassVar


class CLibrary:
    """The library; what is its own are the attributes of a subclass.

    Args:
        path: of the library.
    """

    PREFIX: ClassVar[str]  # of the names of its functions
    SIGNATURES: ClassVar[dict[str, tuple[Any, ...]]]  # types of their arguments
    ERROR_TEXT: ClassVar[str]  # the function that says what a status means

    def __init__(self, path: Path | str) -> None:
        self._library = ctypes.CDLL(str(path))
        self._error_text = getattr(self._library, self.ERROR_TEXT)
        self._error_text.argtypes, self._error_text.restype = (ctypes.c_int,), ctypes.c_char_p

    def __call__(self, name: str, *arguments: Any) -> None:
        """Calls a function by its name without the prefix.

        Raises:
            RuntimeError: if it fails, in the library's words.
        """
        full = self.PREFIX + name
        function = getattr(self._library, full)
        function.argtypes, function.restype = self.SIGNATURES[full], ctypes.c_int
        status = function(*arguments)
        if status:
            text = self._error_text(status) or b"unknown error"
            raise RuntimeError(f"{full} failed with status {status}: {text.decode()}")
