"""Commands that are stopped at random moments leave the old target or the new one, whole, and nothing beside it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
import tf_keras

import tfmot_asp
from tests.cli.stopped import COMMANDS, call
from tests.small_models import convnet

pytestmark = pytest.mark.slow


def content(path):
    """What a target computes, or None where there is none."""
    if not path.exists():
        return None
    x = np.random.default_rng(0).normal(size=(1, 8, 8, 3)).astype("f")
    if path.suffix == ".onnx":  # names in it differ from one export to the next
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return session.run(None, {session.get_inputs()[0].name: x})[0].tobytes()
    if path.is_dir():
        (output,) = tf.saved_model.load(str(path)).signatures["serving_default"](tf.constant(x)).values()
        return output.numpy().tobytes()
    return tf_keras.models.load_model(path, compile=False).predict(x, verbose=0).tobytes()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tf_keras.utils.set_random_seed(0)
    model = convnet()
    model.save("model.keras")
    other = convnet()
    for each, name in ((model, "pruned.keras"), (other, "other.keras")):
        tfmot_asp.prune_trained_model(each, permute=False)
        each.save(name)
    return tmp_path


def stopped(command, number, seed):
    return subprocess.run(
        [sys.executable, "-m", "tests.cli.stopped", command, number.name, str(seed)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("there", [False, True])
def test_the_target_is_whole(folder, command, number, there):
    target = folder / COMMANDS[command][COMMANDS[command].index("-o") + 1]
    expected = folder / "expected" / target.name
    assert call(command, expected) == 0
    new, old = content(expected), None
    if there:
        assert call(command, target, "other.keras") == 0
        old = content(target)
        assert old != new
    ran = stopped(command, number, seed=len(command) + there)
    if number == signal.SIGTERM:
        assert ran.returncode == 0, ran.stderr[-3000:]
        codes = json.loads(ran.stdout.rpartition("CODES ")[2])
        assert set(codes) <= {0, 143}
        assert 143 in codes
    else:
        assert ran.returncode in (0, -signal.SIGKILL), ran.stderr[-3000:]
    assert content(target) in (old, new)
    assert call(command, target) == 0
    assert content(target) == new
    assert not [name for name in os.listdir() if "tfmot-asp-" in name]


def test_shards_go_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    layers = [keras.Input((128,)), *(keras.layers.Dense(128) for _ in range(6))]
    Path("shards").mkdir()
    keras.Sequential(layers).save_weights("shards/m.weights.json", max_shard_size=0.0001)
    call("shards", "whole")
    for seed in range(3):
        assert stopped("shards", signal.SIGKILL, seed).returncode in (0, -signal.SIGKILL)
    call("shards", "out")
    assert (tmp_path / "out" / "SHA256SUMS").read_text() == (tmp_path / "whole" / "SHA256SUMS").read_text()
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd="out", check=True)
    assert sorted(os.listdir("out")) == sorted(os.listdir("whole"))
