"""The README's example runs as it stands."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

import tfmot_asp

ROOT = pathlib.Path(__file__).parents[1]


def test_the_example_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    exec(compile(example, "README.md", "exec"), namespace)
    assert (tmp_path / "model_2_4" / "saved_model.pb").exists()
    verification = namespace["tfmot_asp"].export.verify("model_2_4")
    assert verification.ok
    assert str(verification) in capsys.readouterr().out


PAGES = [ROOT / "README.md", ROOT / "examples" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(((?!http)[^)#]+)", page.read_text())
    assert not [target for target in targets if not (page.parent / target).exists()]


def test_every_public_name_is_in_the_reference():
    pages = "".join(page.read_text() for page in sorted((ROOT / "docs" / "reference").glob("*.md")))
    shown = re.findall(r"^::: (\S+)$", pages, re.MULTILINE)
    packages = {"export": tfmot_asp.export, "hardware": tfmot_asp.hardware, "loading": tfmot_asp.loading}
    public = {f"tfmot_asp.{name}" for name in tfmot_asp.__all__} - {"tfmot_asp.permutation"}
    public |= {f"tfmot_asp.{package}.{name}" for package, module in packages.items() for name in module.__all__}
    assert public - {f"tfmot_asp.{package}" for package in packages} <= set(shown)
    assert len(shown) == len(set(shown))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_example_is_python_and_names_what_there_is(page):
    for example in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        for node in ast.walk(ast.parse(example)):
            if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("tfmot_asp."):
                named = tfmot_asp
                for part in ast.unparse(node).split(".")[1:]:
                    named = getattr(named, part)


def test_every_page_is_linked_from_the_readme():
    linked = set(re.findall(r"\((docs/\w+\.md)", PAGES[0].read_text()))
    assert linked == {str(page.relative_to(ROOT)) for page in PAGES[2:]}


@pytest.mark.parametrize(("page", "options"), [("README.md", ["--short"]), ("docs/models.md", [])])
def test_tables_of_models_are_those_of_the_results(page, options):
    """`benchmarks/models_table.py` prints them, of what `benchmarks/models.py` measured."""
    command = [sys.executable, str(ROOT / "benchmarks" / "models_table.py"), *options]
    made = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (shown,) = re.findall(r"<!-- models_table.py.* -->\n\n(.*?)\n<!-- end -->", (ROOT / page).read_text(), re.DOTALL)
    assert shown == made
