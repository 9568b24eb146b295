"""What the site shows beside docs/: the README as its home page, files that pages link to, the command line's options.

Pages are written to be read in the repository, where ../ leads out of docs/. On the site all of it lies in one tree.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
_OUTSIDE = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "CITATION.cff",
    "benchmarks/*.py",
    "benchmarks/results/*",
    "examples/**/*.md",
    "examples/**/*.py",
)


def on_files(files: Files, config: Any) -> Files:
    """Adds the home page, the command line's options, and what lies beside docs/."""
    files.append(File.generated(config, "index.md", content=(ROOT / "README.md").read_text(encoding="utf-8")))
    files.append(File.generated(config, "reference/cli.md", content=command_line()))
    for pattern in _OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            if path.is_file() and files.get_file_from_path(name) is None:
                files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turns links between docs/ and the rest of the repository into links of the site's one tree."""
    if page.file.src_uri in ("index.md", "CHANGELOG.md", "CONTRIBUTING.md"):
        return markdown.replace("](docs/", "](")
    if page.file.src_uri.startswith("examples/"):
        return markdown.replace("](../docs/", "](../")
    return markdown.replace("](../", "](") if "/" not in page.file.src_uri else markdown


def command_line() -> str:
    """A page of every command and option, from the parser itself."""
    from tfmot_asp.cli.parser import make_parser

    parser = make_parser()
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    summaries = {action.dest: action.help or "" for action in commands._choices_actions}
    lines = ["# Command line, every option", "", parser.description or "", ""]
    for name, command in commands.choices.items():
        lines += [f"## `tfmot-asp {name}`", "", _text(summaries.get(name, "")), ""]
        usage = re.sub(r"\x1b\[[0-9;]*m", "", command.format_usage())
        lines += ["```text", usage.removeprefix("usage: ").rstrip(), "```", ""]
        rows = [(_name(action), _text((action.help or "") % _values(command, action))) for action in command._actions]
        lines += [
            "| option | what it does |",
            "| --- | --- |",
            *(f"| {option} | {text} |" for option, text in rows),
            "",
        ]
    return "\n".join(lines)


def _name(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{action.metavar or action.dest}`"
    value = action.metavar or ("" if action.nargs == 0 else "|".join(map(str, action.choices or [action.dest.upper()])))
    value = " ".join(value) if isinstance(value, tuple) else value
    return ", ".join(f"`{option}{' ' if value else ''}{value}`".replace("|", "\\|") for option in action.option_strings)


def _values(command: argparse.ArgumentParser, action: argparse.Action) -> dict[str, Any]:
    return {**vars(action), "prog": command.prog}


def _text(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
