"""The pages read from top to bottom: their Python runs, and their command lines are ones that the parser takes."""

import pathlib
import re
import shlex

import pytest

from tfmot_asp.cli.parser import make_parser
from tfmot_asp.export.tensorrt.tf_trt import why_not as why_no_tf_trt
from tfmot_asp.hardware.sparse_device import why_not as why_no_sparse_device

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```", re.DOTALL | re.MULTILINE)
# Elsewhere: README.md in test_readme, the scripts side by side in test_coming_from, keras_hub in test_keras_hub.
ELSEWHERE = {"README", "from_tfmot", "from_tf_asp", "from_apex", "from_model_optimizer", "keras_hub"}
QUICK = {"CONTRIBUTING", "cli", "export", "large_models", "search", "tensorrt", "training"}
NEEDS = {"export.tftrt(": why_no_tf_trt, "run_sparse(": why_no_sparse_device}
LOG = """[I] [TRT] (Sparsity) Layers eligible for sparse math: conv, scores
[I] [TRT] (Sparsity) TRT inference plan picked sparse implementation for layers: scores
"""


def blocks(page, language):
    return [text for kind, text in BLOCK.findall(page.read_text(encoding="utf-8")) if kind == language]


def with_python():
    for page in PAGES:
        if page.stem not in ELSEWHERE and blocks(page, "python"):
            yield pytest.param(page, id=page.stem, marks=() if page.stem in QUICK else pytest.mark.slow)


@pytest.mark.parametrize("page", list(with_python()))
@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
def test_the_python_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    if page.stem == "tensorrt":
        pytest.importorskip("tf2onnx")
    monkeypatch.chdir(tmp_path)
    pathlib.Path("build.log").write_text(LOG)  # what another machine printed
    if page.stem == "cli":
        import tf_keras

        tf_keras.Sequential([tf_keras.Input((8,)), tf_keras.layers.Dense(8)]).save("model.keras")
    namespace: dict = {}
    for number, block in enumerate(blocks(page, "python"), 1):
        code = compile(block, f"{page.name}, block {number}", "exec")
        if not any(call in block and why_not() is not None for call, why_not in NEEDS.items()):
            exec(code, namespace)


def test_command_lines_are_ones_that_the_parser_takes():
    parser = make_parser()
    lines = [line for page in PAGES for block in blocks(page, "bash") for line in block.splitlines()]
    ours = [re.split(r" [>|&] ", line)[0] for line in lines if line.startswith("tfmot-asp ")]
    commands = [shlex.split(line, comments=True) for line in ours]
    assert len(commands) > 8
    for words in commands:
        parser.parse_args(words[1:])  # raises where it does not
