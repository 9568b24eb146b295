"""A disk that is full: every format, written by whatever library writes it, says so in one line and leaves nothing."""

import os
import sys

import pytest

from tests.small_models import convnet
from tfmot_asp.cli import main

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="how a process is kept from writing large files")

COMMANDS = {
    "keras": ["prune", "model.keras", "-o", "a/out.keras", "--no-permute"],
    "h5": ["prune", "model.keras", "-o", "a/out.h5", "--no-permute"],
    "SavedModel": ["prune", "model.keras", "-o", "a/out", "--no-permute"],
    "onnx": ["export", "model.keras", "--to", "onnx", "-o", "a/out.onnx"],
    "tflite": ["export", "model.keras", "--to", "tflite", "-o", "a/out.tflite"],
    "saved_model": ["export", "model.keras", "--to", "saved_model", "-o", "a/out"],
    "dot": ["plot", "model.keras", "-o", "out.dot"],
}


@pytest.fixture
def full(monkeypatch):
    """A process that may write files of 4 KB and no larger."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("kind", COMMANDS)
def test_a_full_disk(tmp_path, monkeypatch, capsys, kind, request):
    monkeypatch.chdir(tmp_path)
    convnet().save("model.keras")
    # The archive that is read is unpacked into temporary files, which are not what is full here.
    from tfmot_asp.cli import commands

    def load(arguments, real=commands.load):
        model = real(arguments)
        request.getfixturevalue("full")
        return model

    monkeypatch.setattr(commands, "load", load)
    monkeypatch.setattr("tfmot_asp.cli.exporting.load", load)
    assert main([*COMMANDS[kind], "--quiet"]) == 2
    output = COMMANDS[kind][COMMANDS[kind].index("-o") + 1]
    assert capsys.readouterr().err == f"tfmot-asp: error: {output!r}: File too large\n"
    assert os.listdir() == ["model.keras"]
