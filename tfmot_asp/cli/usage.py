"""A parser whose mistakes are one line, with a guess at what was meant; its options may stand before the command."""

from __future__ import annotations

import argparse
import difflib
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn


class UsageError(Exception):
    """Arguments that make no sense.

    Attributes:
        prog: the program and command that they were given to.
    """

    def __init__(self, prog: str, message: str) -> None:
        super().__init__(message)
        self.prog = prog


def did_you_mean(given: str, known: Iterable[str], several: int = 1) -> str:
    """``"; did you mean 'Dense'?"``, or nothing if no known name is close."""
    names = {name.lower(): name for name in known}
    close = [names[name] for name in difflib.get_close_matches(given.lower(), names, n=several)]
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Wraps prose at the terminal's width, and leaves what is indented (examples, options) as it stands."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        blocks = text.strip("\n").split("\n\n")
        filled = (
            block
            if any(line.startswith(" ") for line in block.splitlines())
            else textwrap.fill(block, width, break_long_words=False, break_on_hyphens=False)
            for block in blocks
        )
        return textwrap.indent("\n\n".join(filled), indent)


class Parser(argparse.ArgumentParser):
    """Raises UsageError for mistakes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=_Formatter, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise UsageError(self.prog, message)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        given = list(sys.argv[1:] if args is None else args)
        self._check_options(given)
        return super().parse_known_args(given, namespace)

    def _check_options(self, given: Sequence[str]) -> None:
        """Refuses unknown options before argparse asks for others that are missing."""
        for word in given:
            if word == "--" or (self._subparsers is not None and not word.startswith("-")):
                return
            name = word.partition("=")[0]
            if word.startswith("--") and " " not in name and name not in self._option_string_actions:
                self.error(f"there is no option {name}{did_you_mean(name, self._option_string_actions)}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        guess = did_you_mean(str(value), action.choices)
        if isinstance(action, argparse._SubParsersAction):
            raise argparse.ArgumentError(None, f"there is no command {value!r}{guess}")
        raise argparse.ArgumentError(action, f"{value!r} is none of {', '.join(action.choices)}{guess}")


class Version(argparse.Action):
    """``--version``: versions from package metadata, without an import of TensorFlow."""

    def __init__(self, option_strings: Any, dest: str, **_: Any) -> None:
        super().__init__(option_strings, dest=argparse.SUPPRESS, nargs=0, help="show versions and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        import platform
        from importlib import metadata

        from tfmot_asp import __version__

        found = [f"Python {platform.python_version()}"]
        for package in ("tensorflow", "tf-keras", "keras", "tensorflow-model-optimization"):
            try:
                found.append(f"{package} {metadata.version(package)}")
            except metadata.PackageNotFoundError:
                continue
        sys.stdout.write(f"tfmot-asp {__version__} ({', '.join(found)})\n")
        parser.exit()
