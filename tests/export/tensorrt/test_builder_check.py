"""TensorRT's own parser and builder take what is written, and what they refuse is said by node."""

import importlib.util
import itertools
import json
import re
import sys

import onnx
import pytest

import tfmot_asp
from tests.export.kinds import KINDS, inputs
from tests.small_models import data, mlp
from tfmot_asp.cli import main
from tfmot_asp.export import check_with_tensorrt
from tfmot_asp.export.tensorrt import build_ahead, builder_check

needs_tensorrt = pytest.mark.skipif(
    importlib.util.find_spec(builder_check.MODULE) is None, reason="the wheel tensorrt-rtx-cu13 is missing"
)


# Of every kind fp16 in an open batch, but for loops, which take long to convert; of some everything.
FAST, LOOPS = ("convnet", "upsampling", "transformer"), ("gru_both_ways", "keras3_recurrent")
CASES = [
    pytest.param(
        *(kind, precision, batch_size),
        marks=()
        if kind in FAST or (kind not in LOOPS and (precision, batch_size) == ("fp16", None))
        else pytest.mark.slow,
        id=f"{kind}-{precision}-{batch_size or 'open'}",
    )
    for kind, precision, batch_size in itertools.product(KINDS, ("fp32", "fp16", "int8"), (None, 4))
]


@needs_tensorrt
@pytest.mark.parametrize(("kind", "precision", "batch_size"), CASES)
def test_what_is_exported_parses_and_builds(kind, precision, batch_size, tmp_path):
    model = KINDS[kind]()
    tfmot_asp.prune_trained_model(model, permute=False).remove()
    report = tfmot_asp.export.onnx(
        model,
        tmp_path / "m.onnx",
        precision=precision,
        batch_size=batch_size,
        calibration_data=inputs(model) if precision == "int8" else None,
        check="tensorrt",
    )
    assert any("parses and builds" in note for note in report.notes)


def unknown_op(path):
    """A file that ONNX's checker takes and no parser of TensorRT can: an op of somebody else's."""
    nodes = [
        onnx.helper.make_node("Relu", ["x"], ["y"], name="first"),
        onnx.helper.make_node("Nonsense", ["y"], ["z"], name="strange", domain="somebody"),
    ]
    tensors = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2, 4]) for name in "xz"]
    graph = onnx.helper.make_graph(nodes, "g", tensors[:1], tensors[1:])
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("somebody", 1)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), str(path))


@needs_tensorrt
def test_what_is_refused_is_named_by_node(tmp_path):
    unknown_op(tmp_path / "m.onnx")
    found = check_with_tensorrt(tmp_path / "m.onnx")
    assert not found.ok
    assert not found.parsed
    assert any("strange (Nonsense)" in line for line in found.refused)
    assert "does not parse" in str(found)


@needs_tensorrt
def test_on_the_command_line(tmp_path, capsys):
    model = mlp()
    tfmot_asp.prune_trained_model(model, permute=False).remove()
    tfmot_asp.export.onnx(model, tmp_path / "m.onnx")
    assert main(["verify", str(tmp_path / "m.onnx"), "--tensorrt"]) == 0
    assert "parses and builds" in capsys.readouterr().out
    model.save(tmp_path / "m.h5")
    assert main(["verify", str(tmp_path / "m.h5"), "--tensorrt"]) == 2
    given = ["export", str(tmp_path / "m.h5"), "--to", "onnx", "-o", str(tmp_path / "n.onnx"), "--check", "tensorrt"]
    assert main(given) == 0
    assert "parses and builds" in capsys.readouterr().out


STAND_INS = {
    "crashes while it builds": ("save(parsed=True); os.kill(os.getpid(), signal.SIGSEGV)", "the builder crashed"),
    "crashes while it parses": ("os.kill(os.getpid(), signal.SIGABRT)", r"the parser crashed \(SIGABRT\)"),
    "fails to start": ("raise ImportError('no libcudart')", "ImportError: no libcudart"),
    "refuses to build": ("save(parsed=True, refused=['node 7: no kernel'])", "node 7: no kernel"),
}


@pytest.mark.parametrize("case", STAND_INS)
def test_a_process_of_its_own_may_do_what_it_likes(case, tmp_path, monkeypatch):
    what, message = STAND_INS[case]
    script = tmp_path / "stand_in.py"
    script.write_text(
        "import json, os, pathlib, signal, sys\n"
        "task = json.loads(sys.argv[1])\n"
        "def save(**known): pathlib.Path(task['answer']).write_text(json.dumps({'version': '1.7', **known}))\n" + what
    )
    monkeypatch.setattr(builder_check, "check_installed", lambda: None)
    monkeypatch.setattr(build_ahead, "__file__", str(script))
    unknown_op(tmp_path / "m.onnx")
    found = check_with_tensorrt(tmp_path / "m.onnx")
    assert not found.ok
    (refused,) = found.refused
    assert re.search(message, refused)
    assert json.loads(json.dumps(found.to_dict()))["built"] is False


@needs_tensorrt
def test_a_file_that_is_refused_is_not_written(tmp_path, monkeypatch):
    refused = builder_check.TensorRTCheck("m", "1.7", "SM80", True, False, ("node 7: no kernel",))
    monkeypatch.setattr(sys.modules["tfmot_asp.export.onnx"], "check_with_tensorrt", lambda *a, **k: refused)
    with pytest.raises(RuntimeError, match=r"is not written: .*does not build\n  node 7: no kernel"):
        tfmot_asp.export.onnx(mlp(), tmp_path / "m.onnx", check="tensorrt")
    assert list(tmp_path.iterdir()) == []


def test_without_the_wheel_and_with_wrong_arguments(tmp_path, monkeypatch):
    unknown_op(tmp_path / "m.onnx")
    with pytest.raises(ValueError, match="gpu must be one of 'SM80'"):
        check_with_tensorrt(tmp_path / "m.onnx", gpu="H100")
    with pytest.raises(ValueError, match="check must be 'tensorrt' or None"):
        tfmot_asp.export.onnx(mlp(), tmp_path / "n.onnx", check="trt")
    monkeypatch.setattr(builder_check, "MODULE", "no_such_module")
    with pytest.raises(ImportError, match=r"pip install .tfmot-asp\[tensorrt\]"):
        check_with_tensorrt(tmp_path / "m.onnx")
    x, _ = data(mlp(), 4)
    with pytest.raises(ImportError, match="needs its parser"):
        tfmot_asp.export.onnx(mlp(), tmp_path / "n.onnx", check="tensorrt", calibration_data=x)
