"""What of a run on shards is done: kept in the target folder, so that a run that was killed goes on where it was."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from tfmot_asp.pattern import Pattern
from tfmot_asp.permutation.search import SearchResult
from tfmot_asp.permutation.shards.write_shard import sha256

NAME = "tfmot_asp.jsonl"
_FORMAT = "tfmot_asp shards 1"


class Journal:
    """Lines of JSON, each written to the disk before the run goes on; a line that a kill cut short counts for nothing.

    Args:
        folder: the target.
        run: what the run works on and how. It must be what it was when the journal was begun.

    Raises:
        FileExistsError: if the folder holds something else, or the beginning of another run.
    """

    def __init__(self, folder: Path, run: dict[str, Any], files: tuple[str, ...]) -> None:
        self.path = folder / NAME
        self.results: dict[int, SearchResult] = {}
        self.files: dict[str, dict[str, Any]] = {}
        header = {"format": _FORMAT, **json.loads(json.dumps(run))}
        lines = self._lines()
        if not lines:
            present = [name for name in files if (folder / name).exists()]
            if present:
                raise FileExistsError(f"{str(folder)!r} holds {present[0]!r} already: give an empty folder")
            self._add(header)
            return
        differing = [key for key in header if lines[0].get(key) != header[key]]
        if differing:
            raise FileExistsError(
                f"{str(folder)!r} holds the beginning of another run, with another {differing[0]}: give an empty folder"
            )
        for line in lines[1:]:
            if "group" in line:
                number = line.pop("group")
                line["permutation"] = np.asarray(line["permutation"], np.intp)
                line["m_by_n"] = Pattern.of(tuple(line.pop("sparsity_m_by_n")))
                self.results[number] = SearchResult(**line)
            else:
                self.files[line.pop("file")] = line

    def _lines(self) -> list[dict[str, Any]]:
        found = []
        for line in self.path.read_text("utf-8", "replace").splitlines() if self.path.exists() else ():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found

    def has(self, name: str) -> bool:
        """Whether a file is there as it was written."""
        path = self.path.with_name(name)
        return name in self.files and path.exists() and sha256(path) == self.files[name]["sha256"]

    def add_result(self, group: int, result: SearchResult) -> None:
        self._add({"group": group, **result.to_dict()})

    def add_file(self, name: str, **found: Any) -> None:
        self.files[name] = found
        self._add({"file": name, **found})

    def _add(self, line: dict[str, Any]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(f"\n{json.dumps(line)}\n")  # the first ends a line that was cut short
            file.flush()
            os.fsync(file.fileno())
