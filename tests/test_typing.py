"""What a type checker sees of the public names, which are loaded lazily when the program runs."""

import ast
from pathlib import Path

import pytest

import tfmot_asp
from tfmot_asp import permutation

api = pytest.importorskip("mypy.api")
ROOT = Path(__file__).parents[1]

SNIPPET = """
import tfmot_asp
reveal_type(tfmot_asp.permute)
reveal_type(tfmot_asp.export.verify)
reveal_type(tfmot_asp.loading.load_model)
reveal_type(tfmot_asp.permutation.plan_model)
tfmot_asp.permutee
tfmot_asp.permutation.plan_modell
tfmot_asp.permute("model", efort="fast")
"""


def test_a_type_checker_knows_signatures_and_finds_misspelt_names():
    # As the project's own check is run, so that the cache serves both; its `files` would be checked besides.
    options = ["--ignore-missing-imports", "--check-untyped-defs", "--warn-unused-ignores", "--python-version=3.11"]
    out, errors, _ = api.run(["-c", SNIPPET, "--config-file=", "--no-error-summary", *options])
    assert errors == ""
    said: dict[str, str] = {}
    for line in out.splitlines():
        number, text = line.removeprefix("<string>:").split(":", 1)
        said[number] = said.get(number, "") + text
    assert "(model: Any, *, policy: " in said["3"]
    assert "-> tfmot_asp.permutation.report.PermutationReport" in said["3"]
    assert "-> tfmot_asp.reports.verification.VerificationReport" in said["4"]
    assert "path: str | os.PathLike[str]" in said["5"]
    assert "-> tfmot_asp.permutation.plan.ModelPlan" in said["6"]
    assert 'no attribute "permutee"' in said["7"]
    assert 'no attribute "plan_modell"' in said["8"]
    assert 'Unexpected keyword argument "efort"' in said["9"]
    assert (ROOT / "tfmot_asp" / "py.typed").exists()


@pytest.mark.parametrize("package", [tfmot_asp, permutation, tfmot_asp.export], ids=lambda package: package.__name__)
def test_type_checkers_see_the_names_that_load(package):
    (block,) = [node for node in ast.parse(Path(package.__file__).read_text()).body if isinstance(node, ast.If)]
    seen = {alias.asname: node.module for node in block.body for alias in node.names}
    assert seen == {**package._HOME, **dict.fromkeys(getattr(package, "_SUBPACKAGES", ()), "tfmot_asp")}
