"""The table of docs/calibration.md, from what calibration.py printed.

    python benchmarks/calibration_table.py [benchmarks/results/calibration.txt]

One line per model with its first figure; mean ± standard error over seeds, in per cent but for decibels.
"""

from __future__ import annotations

import pathlib
import re
import sys
from collections.abc import Iterator

RESULTS = pathlib.Path(__file__).parent / "results" / "calibration.txt"
METHODS = {  # as calibration.py names them, and as the page does
    "dense": "dense",
    "tfmot 2:4": "tfmot 2:4",
    "magnitude": "magnitude",
    "magnitude, permuted": "permuted",
    "magnitude, batch norm": "batch norm",
    "activation": "activation",
    "reconstruction, fast": "fast",
    "reconstruction, balanced": "balanced",
    "the same, permuted": "balanced, permuted",
    "reconstruction, thorough": "thorough, permuted",
}
_NAMES, _CELLS = 26, 24  # columns of calibration.py


def cases(text: str) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Title, name of the first figure, and that figure by method."""
    for part in re.split(r"\n(?=[\w-]+: )", text):
        lines = part.strip().splitlines()
        if len(lines) < 4 or " kernels pruned" not in lines[1]:
            continue
        figure = lines[2][_NAMES : _NAMES + _CELLS].strip()
        cells = {line[:_NAMES].strip(): line[_NAMES : _NAMES + _CELLS].strip() for line in lines[3:]}
        yield lines[0].split(": ", 1)[1], figure, cells


def shown(cell: str, figure: str) -> str:
    numbers = [float(number) for number in cell.split(" ± ")]
    if figure.startswith("dB"):
        return " ± ".join(f"{number:.2f}" for number in numbers)
    return " ± ".join(f"{100 * number:.1f}" for number in numbers)


def main() -> None:
    text = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else RESULTS).read_text()
    print("| model | figure | " + " | ".join(METHODS.values()) + " |")
    print("| --- | --- |" + " ---: |" * len(METHODS))
    tables: dict[tuple[str, str], dict[str, str]] = {}
    for title, figure, cells in cases(text):  # a model may have been measured by several commands
        tables.setdefault((title, figure), {}).update(cells)
    for (title, figure), cells in tables.items():
        values = [shown(cells[name], figure) if "±" in cells.get(name, "") else "" for name in METHODS]
        print(f"| {title} | {figure} | " + " | ".join(values) + " |")


if __name__ == "__main__":
    main()
