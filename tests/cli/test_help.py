"""The examples in the help of every command, and in docs/cli.md, run as they stand."""

import contextlib
import itertools
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tf_keras
from tf_keras import layers

import tfmot_asp
from tests.small_models import convnet
from tfmot_asp.cli import main
from tfmot_asp.cli.parser import make_parser
from tfmot_asp.hardware import sparse_device

ROOT = pathlib.Path(__file__).parents[2]


def subcommands():
    (action,) = (action for action in make_parser()._actions if action.choices)
    return dict(action.choices)


def examples():
    texts = [make_parser().epilog, *(command.epilog for command in subcommands().values())]
    return [line.strip() for text in texts for line in text.splitlines() if line.startswith("  tfmot-asp")]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """What the examples read."""
    folder = tmp_path_factory.mktemp("files")
    model = convnet()
    model.save(folder / "model.keras")
    with pytest.warns(UserWarning, match="HDF5"):
        model.save(folder / "model.h5")
    x = layers.Input((None, None, 3))
    tf_keras.Model(x, layers.Conv2D(16, 3)(layers.Conv2D(16, 3)(x))).save(folder / "any_size.keras")
    tf_keras.Sequential([layers.Input((16,)), layers.Lambda(lambda x: x + 1, name="plus"), layers.Dense(16)]).save(
        folder / "from_the_internet.keras"
    )
    tfmot_asp.prune_trained_model(model, permute=False).remove()
    model.save(folder / "sparse.keras")
    tfmot_asp.export.saved_model(model, folder / "exported")
    generator = np.random.default_rng(0)
    np.save(folder / "matrix.npy", generator.normal(size=(32, 16)))
    np.save(folder / "conv_kernel.npy", generator.normal(size=(3, 3, 16, 8)))
    np.save(folder / "images.npy", generator.normal(size=(16, 8, 8, 3)).astype(np.float32))
    tfmot_asp.prune_low_magnitude(convnet(), permute=False).save(folder / "wrapped.keras")
    convnet().save(folder / "copy.keras")
    tfmot_asp.permute(convnet(), effort="fast").save(folder / "permuted.json")
    three = keras.Sequential([keras.layers.Input((16,)), keras.layers.Dense(32), keras.layers.Dense(8)])
    (folder / "model.json").write_text(three.to_json())
    three.save_weights(folder / "model.weights.h5")
    with contextlib.suppress(ImportError):
        tfmot_asp.export.onnx(model, folder / "model.onnx")
    (folder / "build.log").write_text(
        "(Sparsity) Found 1 layer(s) eligible to use sparse tactics: fc\n"
        "(Sparsity) Chose 0 layer(s) using sparse tactics:"
    )
    return folder


def needs(command):
    if ".svg" in command and shutil.which("dot") is None:
        pytest.skip("needs Graphviz")
    if "--to onnx" in command or "model.onnx" in command:
        pytest.importorskip("tf2onnx")
        pytest.importorskip("onnxruntime")
    if command.split()[1] == "completion":
        pytest.importorskip("shtab")
    if "--to tftrt" in command:
        pytest.skip("needs a TensorFlow with TensorRT, and a GPU")
    if command.endswith("--tensorrt"):
        pytest.importorskip("tensorrt_rtx")
    if command.split()[1] == "measure" and (why := sparse_device.why_not()) is not None:
        pytest.skip(why)


def test_there_are_examples_of_every_command():
    assert {example.split()[1] for example in examples()} == set(subcommands())
    assert all("examples:" in command.epilog for command in subcommands().values())


@pytest.mark.parametrize("example", dict.fromkeys(examples()))
def test_examples_work(example, files, tmp_path, monkeypatch, capsys):
    needs(example)
    words = shlex.split(example.partition(" > ")[0])[1:]
    outputs = {name for flag, name in itertools.pairwise(words) if flag in ("-o", "--report")}
    for file in files.iterdir():
        if file.name not in outputs:
            (shutil.copytree if file.is_dir() else shutil.copy)(file, tmp_path / file.name)
    monkeypatch.chdir(tmp_path)
    assert main(words) == 0, capsys.readouterr().err
    assert all((tmp_path / name).exists() for name in outputs)
    captured = capsys.readouterr()
    assert captured.out.strip()
    assert "Traceback" not in captured.err


def test_the_commands_of_the_documentation_work(files, tmp_path, monkeypatch, capsys):
    text = (ROOT / "docs" / "cli.md").read_text()
    commands = re.findall(r"^\$ (tfmot-asp .*)$", text, re.MULTILINE)
    assert {command.split()[1] for command in commands} >= set(subcommands()) - {"completion"}
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    for name in ("sparse.keras", "model.onnx", "permuted.json"):
        (tmp_path / name).unlink(missing_ok=True)
    shutil.rmtree(tmp_path / "exported")
    monkeypatch.chdir(tmp_path)
    expected = {"tfmot-asp verify model.keras": 1, "tfmot-asp inspect from_the_internet.keras": 2}
    for command in commands:
        if command.split()[1] == "measure" and sparse_device.why_not() is not None:
            continue
        needs(command)
        assert main(shlex.split(command)[1:]) == expected.get(command, 0), command
        captured = capsys.readouterr()
        if expected.get(command) == 2:
            assert captured.err in text


def test_help_of_every_command(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for name in subcommands():
        assert re.search(rf"^    {name}\b", text, re.MULTILINE)
        assert main([name, "--help"]) == 0
        assert "examples:" in capsys.readouterr().out


def test_version(capsys):
    assert main(["--version"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"tfmot-asp {tfmot_asp.__version__} (Python 3.")
    assert "tensorflow 2." in out


def test_help_and_version_load_nothing_heavy():
    code = (
        "import sys; from tfmot_asp.cli import main; main(['--help']); main(['prune', '--help']); main(['--version']);"
        "main(['bogus']); heavy = {'tensorflow', 'keras', 'tf_keras', 'numba', 'scipy', 'h5py'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr


def test_search_needs_no_tensorflow(files, tmp_path):
    shutil.copy(files / "matrix.npy", tmp_path)
    code = (
        "import sys; from tfmot_asp.cli import main;"
        "assert main(['search', 'matrix.npy', '-o', 'order.npy', '--effort', 'fast']) == 0;"
        "heavy = {'tensorflow', 'keras', 'tf_keras', 'h5py'} & set(sys.modules); assert not heavy, heavy"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert sorted(np.load(tmp_path / "order.npy")) == list(range(16))


def test_the_program_is_installed_under_its_name():
    text = (ROOT / "pyproject.toml").read_text()
    assert 'tfmot-asp = "tfmot_asp.cli:main"' in text
    assert make_parser().prog == "tfmot-asp"
