"""Runs the tutorials and keeps what they print and draw: the site shows them as they are committed, and runs nothing.

python docs/execute_tutorials.py [NAME ...]   # after pip install ".[test]"
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
TUTORIALS = Path(__file__).parent / "tutorials"
# What TensorFlow's libraries say of this machine as they start, whatever the log level.
_OF_THE_MACHINE = re.compile(
    r"^(WARNING: All log messages before absl|[IWE]\d{4} \d\d:|[IWE]\d{4} \d{8}).*\n", re.MULTILINE
)


def execute(notebook: nbformat.NotebookNode, folder: Path | str) -> nbformat.NotebookNode:
    """Runs all cells in a Python of its own, in ``folder``, and gives the notebook with what they put out.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell does.
    """
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    # tfmot, where this process has imported it, has chosen Keras 2 for its children as well.
    environment = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
    client.execute(env={**environment, "PYTHONPATH": str(ROOT)})
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times
        for output in cell.get("outputs", ()):
            if output.output_type == "stream":
                output.text = _OF_THE_MACHINE.sub("", output.text)
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if output.get("text", "-").strip()]
    notebook.metadata.language_info = {"name": "python"}
    return notebook


def main(names: list[str]) -> None:
    """Runs the tutorials of these names, all without any, and writes them back."""
    for path in sorted(TUTORIALS.glob("*.ipynb")):
        if not names or path.stem in names:
            with tempfile.TemporaryDirectory() as folder:
                nbformat.write(execute(nbformat.read(path, as_version=4), folder), path)


if __name__ == "__main__":
    main(sys.argv[1:])
