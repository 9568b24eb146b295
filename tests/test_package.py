"""What importing the package loads, and that its public names are real."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tfmot_asp

ROOT = Path(__file__).parents[1]


def run(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_importing_loads_nothing_heavy():
    heavy = "{'tensorflow', 'tf_keras', 'keras', 'tensorflow_model_optimization', 'numba', 'cupy', 'scipy'}"
    assert run(f"import sys, tfmot_asp; print({heavy} & set(sys.modules))") == "set()"


def test_search_works_without_tensorflow():
    # None in sys.modules makes an import fail as if the package were not installed.
    code = """
import sys
for name in ("tensorflow", "tf_keras", "keras", "tensorflow_model_optimization"):
    sys.modules[name] = None
import numpy as np
from tfmot_asp import search
result = search(np.random.default_rng(0).random((16, 32)), device="cpu", effort="fast")
assert sorted(result.permutation) == list(range(32))
print("ok")
"""
    assert run(code) == "ok"


def test_permute_does_not_import_tfmot():
    # Importing tfmot switches tf.keras to Keras 2 for the whole process.
    code = """
import sys, tfmot_asp
tfmot_asp.permute, tfmot_asp.PermutationReport, tfmot_asp.sparsity_report
print("tensorflow_model_optimization" in sys.modules)
"""
    assert run(code) == "False"


def test_one_version():
    """The package's is what is built (pyproject.toml reads it), and what is cited."""
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited is not None
    assert cited.group(1) == tfmot_asp.__version__


@pytest.mark.parametrize("name", tfmot_asp.__all__)
def test_every_public_name_resolves_and_is_documented(name):
    assert (getattr(tfmot_asp, name).__doc__ or "").strip()


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(AttributeError, match=r"no attribute 'permutee'; it has .*permute"):
        tfmot_asp.permutee  # noqa: B018


def test_links_of_the_readme_are_absolute_on_the_index():
    pytest.importorskip("hatchling")
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    readme = (ROOT / "README.md").read_text()
    described: dict = {"urls": {"Source": "https://host.example/owner/name/"}}
    hook.ReadmeHook(str(ROOT), {}).update(described)
    text = described["readme"]["text"]
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert len(targets) == len(re.findall(r"\]\(([^)]+)\)", readme)) > 20
    assert all(re.match(r"https?://|#", target) for target in targets)
    links = re.findall(r"(!?)\[[^]]*\]\(https://host\.example/owner/name/(\w+)/HEAD/([^)]+)\)", text)
    assert {kind for _, kind, _ in links} == {"blob", "raw"}
    assert all(
        (kind == "raw") == bool(picture) and (ROOT / path.partition("#")[0]).exists() for picture, kind, path in links
    )
    without: dict = {}
    hook.ReadmeHook(str(ROOT), {}).update(without)
    assert without["readme"]["text"] == readme


def test_the_lowest_versions_are_those_that_are_declared():
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["onnx"], *(need for need in extras["test"] if "tensorboard" in need)]
    declared = dict(re.match(r"([\w-]+)>=([\d.]+)", need).groups() for need in wanted)
    pins = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / ".ci" / "lowest.txt").read_text(), re.MULTILINE))
    assert set(pins) == set(declared)
    for name, lowest in declared.items():
        assert f"{pins[name]}.".startswith(f"{lowest}."), (name, pins[name], lowest)


def test_reading_onnx_needs_no_tensorflow(tmp_path):
    onnx = pytest.importorskip("onnx")
    floats = onnx.TensorProto.FLOAT
    ends = [onnx.helper.make_tensor_value_info(name, floats, [1, 8]) for name in "xy"]
    weight = onnx.helper.make_tensor("w", floats, [8, 8], [0.0, 1.0, 2.0, 0.0] * 16)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weight]
    )
    onnx.save(onnx.helper.make_model(graph), str(tmp_path / "m.onnx"))
    code = f"""
import sys
for name in ("tensorflow", "tf_keras", "keras"):
    sys.modules[name] = None
import tfmot_asp
print([row.name for row in tfmot_asp.export.verify({str(tmp_path / "m.onnx")!r}).layers])
"""
    assert run(code) == "['w']"


def test_a_function_is_not_hidden_by_its_module():
    code = """
import tfmot_asp.export.verify, tfmot_asp.export.onnx_files.read_onnx, tfmot_asp.export.saved_model
print(callable(tfmot_asp.export.verify), callable(tfmot_asp.export.onnx), callable(tfmot_asp.export.saved_model))
"""
    assert run(code) == "True True True"
