"""``tfmot-asp completion``: the scripts that make shells complete commands and options."""

from __future__ import annotations

import argparse
from pathlib import Path

from tfmot_asp.cli.parser import make_parser
from tfmot_asp.cli.terminal import Console


def completion(arguments: argparse.Namespace, console: Console) -> int:
    """Prints the script of a shell, made by shtab from the parser."""
    try:
        import shtab
    except ImportError as error:
        raise ImportError('completion needs shtab: pip install "tfmot-asp[completion]"') from error
    parser = make_parser()
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for command in commands.choices.values():
        for action in command._actions:
            if action.type is Path:
                action.complete = shtab.FILE  # where shtab looks for it
    script = shtab.complete(parser, arguments.shell)
    console.raw(script.rstrip(), {"shell": arguments.shell, "script": script})
    return 0
