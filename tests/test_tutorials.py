"""The tutorials: each runs from top to bottom, twice, and what is committed is what such a run put out."""

import importlib.util
import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))
BY_DEFAULT = "keras3"  # the quickest
nbformat = pytest.importorskip("nbformat")


def named(path):
    return pytest.param(path, id=path.stem, marks=() if path.stem == BY_DEFAULT else pytest.mark.slow)


@pytest.mark.parametrize("path", map(named, TUTORIALS))
def test_it_runs_and_runs_again(path, tmp_path):
    pytest.importorskip("nbclient")
    if shutil.which("dot") is None:
        pytest.skip("Graphviz draws the pictures")
    if path.stem == "tensorrt":
        pytest.importorskip("tf2onnx")
    spec = importlib.util.spec_from_file_location("execute_tutorials", ROOT / "docs" / "execute_tutorials.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    notebook = nbformat.read(path, as_version=4)
    again = nbformat.read(path, as_version=4).cells
    for cell in again:
        cell.id += "-again"
    notebook.cells += again  # in the same process, over the same files
    codes = [cell for cell in module.execute(notebook, tmp_path).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in codes] == list(range(1, len(codes) + 1))


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_what_is_committed_was_run_in_order(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in codes] == list(range(1, len(codes) + 1))
    outputs = [output for cell in codes for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert any("image/svg+xml" in output.get("data", {}) for output in outputs)
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"site-packages|[\"' ]/(?:home|root|tmp|work|Users|opt)/|\bat 0x[0-9a-f]{6}|WARNING", text)


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
    targets = re.findall(r"\]\(((?!http)[^)#]+)", "\n".join(cells))
    assert targets
    assert not [target for target in targets if not (path.parent / target).exists()]


def test_all_are_on_the_site():
    nav = (ROOT / "mkdocs.yml").read_text()
    assert [path.name for path in TUTORIALS if f"tutorials/{path.name}" not in nav] == []
