"""What docs/keras_hub.md and its example say of keras_hub runs as it stands, where keras_hub is."""

import importlib.util
import pathlib
import re
import shlex

import pytest

from tfmot_asp.cli import main

pytest.importorskip("keras_hub")

pytestmark = pytest.mark.slow  # a minute each

ROOT = pathlib.Path(__file__).parents[1]
BLOCK = re.compile(r"```(python|bash)\n(.*?)```", re.DOTALL)


def test_the_page_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    for language, block in BLOCK.findall((ROOT / "docs" / "keras_hub.md").read_text()):
        if language == "python":
            exec(compile(block, "keras_hub.md", "exec"), namespace)
            continue
        for line in block.splitlines():
            assert main(shlex.split(line)[1:]) == 0, (line, capsys.readouterr())
    names = {"bert", "bert_64", "bert_int8", "pruned", "prefill", "step"}
    assert {path.stem for path in tmp_path.glob("*.onnx")} == names
    for name in names:
        assert namespace["tfmot_asp"].export.verify(f"{name}.onnx").sparse > 0


def test_the_example_decodes_what_generate_does(tmp_path):
    path = ROOT / "examples" / "keras_hub_decoding.py"
    spec = importlib.util.spec_from_file_location("keras_hub_decoding", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    found = example.main(["--out", str(tmp_path), "--tokens", "5"])  # raises unless it is generate's
    assert found.shape == (2, 11)
    assert len(set(found[:, 6:].reshape(-1).tolist())) > 2
