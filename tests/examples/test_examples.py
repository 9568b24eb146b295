"""Each example runs in a small form, and what it writes is 2:4."""

import re

import pytest

from tests.examples.run_example import EXAMPLES, run_example, run_example_process
from tfmot_asp.export import verify

RESULTS = ["dense", "2:4, one shot", "2:4, fine-tuned"]
SMALL = {
    "tfmot_style.py": ["--epochs", 2, "--fine-tune-epochs", 2],
    "trained_subclassed.py": ["--epochs", 3, "--fine-tune-epochs", 2],
    "transformer.py": ["--epochs", 4, "--fine-tune-epochs", 1],
    "image_model.py": ["--model", "MobileNet", "--min-channels", 256, "--images", 64, "--epochs", 1],
}


# By default a network of tf_keras.applications goes all the way in the README's example, and attention in test_fit.
LONG = {"image_model.py", "transformer.py"}
SOME = [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in SMALL]


@pytest.mark.parametrize("name", SOME)
def test_a_small_run(name, tmp_path, capsys):
    results = run_example(name, [*SMALL[name], "--out", tmp_path / "model"])
    assert list(results) == RESULTS
    if name != "image_model.py":  # one epoch of 44 images teaches such a network nothing
        assert results["2:4, fine-tuned"] > 50  # of ten classes
    report = verify(tmp_path / "model")
    assert report.ok
    assert report.sparse >= 2
    printed = capsys.readouterr().out
    assert str(report).splitlines()[0] in printed
    assert all(f"{value:6.2f} % of " in printed for value in results.values())


def test_keras_3_in_a_process_of_its_own(tmp_path):
    pytest.importorskip("keras", minversion="3")
    out = tmp_path / "digits.keras"
    printed = run_example_process(
        "trained_keras3.py",
        ["--epochs", 2, "--fine-tune-epochs", 2, "--out", out],
        TF_USE_LEGACY_KERAS=None,
        KERAS_BACKEND="tensorflow",
    )
    dense, _, tuned = (float(value) for value in re.findall(r"([\d.]+) % of 540 test digits", printed))
    assert dense > 50
    assert tuned > 50
    assert verify(out).ok
    assert "3 of 3 prunable kernels are 2:4" in printed


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_whole_run_keeps_the_accuracy(name, tmp_path):
    results = run_example(name, ["--out", tmp_path / "model"])
    assert results["dense"] > 90
    assert results["2:4, fine-tuned"] >= results["dense"] - 1


def test_the_table_names_every_example():
    table = (EXAMPLES / "README.md").read_text()
    scripts = {path.relative_to(EXAMPLES).as_posix() for path in EXAMPLES.glob("*.py")}
    folders = {path.name for path in EXAMPLES.iterdir() if path.is_dir() and path.name != "__pycache__"}
    links = set(re.findall(r"\]\(([^)]+)\)", table))
    assert links | {link.partition("/")[0] for link in links} >= scripts | folders
    missing = [link for link in links if not (EXAMPLES / link).exists()]
    assert not missing


def test_docstrings_have_the_command_line():
    for path in set(EXAMPLES.glob("*.py")) - {EXAMPLES / "digits.py"}:
        assert f"python examples/{path.name}" in path.read_text().split('"""')[1], path
