"""The example runs with and without a trtexec: a stand-in prints what TensorRT prints for the file that it is given."""

import os
import stat
import sys

import pytest

from tests.examples.run_example import run_example

onnx = pytest.importorskip("onnx")
pytest.importorskip("tf2onnx")
pytest.importorskip("sklearn")

STAND_IN = """#!{python}
import sys
import onnx
options = dict(word.lstrip("-").split("=", 1) for word in sys.argv[1:] if "=" in word)
assert options["sparsity"] == "enable" and "--verbose" in sys.argv, sys.argv
nodes = [node for node in onnx.load(options["onnx"]).graph.node if node.op_type in ("Conv", "MatMul")]
names = [node.name + " + " + node.output[0] for node in nodes[1:-1]]
print("[V] [TRT] (Sparsity) Found", len(names), "layer(s) eligible to use sparse tactics:", ", ".join(names))
print("[V] [TRT] (Sparsity) Chose 1 layer(s) using sparse tactics:", names[-1])
"""


@pytest.fixture
def trtexec(tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "trtexec"
    script.write_text(STAND_IN.format(python=sys.executable))
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def rows(text):
    """(weight, eligible, picked) of each row of the table."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("weight"))
    header = lines[start].split()
    cells = [line.split() for line in lines[start + 1 :]]
    answers = [row for row in cells if len(row) >= len(header) - 1 and "/" in row[0]]
    return {row[0]: tuple(word for word in row if word in ("yes", "no"))[:2] for row in answers}


def test_the_whole_way(tmp_path, capsys, trtexec):
    out = tmp_path / "out"
    results = run_example("onnx_tensorrt.py", ["--epochs", 4, "--fine-tune-epochs", 2, "--out", out])
    assert list(results) == ["dense", "2:4, fine-tuned", "ONNX fp32", "ONNX fp16", "ONNX int8"]
    final = results["2:4, fine-tuned"]
    assert final > 60
    assert results["ONNX fp32"] == final
    assert abs(results["ONNX fp16"] - final) <= 1
    assert abs(results["ONNX int8"] - final) <= 1
    found = rows(capsys.readouterr().out)
    assert list(found.values()).count(("yes", "yes")) == 1
    assert found["hidden/kernel"] == ("yes", "yes")
    assert found["scores/kernel"] == ("no", "no")
    assert sorted(os.listdir(out)) == ["build.log", "digits_fp16.onnx", "digits_fp32.onnx", "digits_int8.onnx"]
    assert run_example("onnx_tensorrt.py", ["--out", out, "--log", out / "build.log"]) == {}
    assert rows(capsys.readouterr().out) == found


@pytest.mark.slow
def test_without_trtexec_the_command_is_printed(tmp_path, capsys, monkeypatch, caplog):
    monkeypatch.setenv("PATH", str(tmp_path))
    run_example("onnx_tensorrt.py", ["--epochs", 1, "--fine-tune-epochs", 1, "--out", tmp_path])
    printed = capsys.readouterr().out
    assert "No trtexec here" in printed
    assert f"TensorRT: trtexec --onnx={tmp_path / 'digits_int8.onnx'}" in printed
