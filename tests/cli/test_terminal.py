"""How output looks: its width, its colours, and what of it is printed."""

import io
import json
import os
from types import SimpleNamespace

import pytest
import tf_keras
from tf_keras import layers

from tests.small_models import convnet
from tfmot_asp.cli import main, terminal

NAME = "a_layer_with_a_name_that_takes_most_of_a_narrow_line"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    convnet().save(folder / "model.keras")
    x = layers.Input((16,))
    y = layers.Dense(12, name="odd")(layers.Dense(16, name=NAME)(x))
    tf_keras.Model(x, y, name="long_names").save(folder / "long.keras")
    return folder


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def run(folder, monkeypatch, capsys):
    """Runs a command; gives what it prints, to a terminal if that is asked for."""
    for name in ("COLUMNS", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.chdir(folder)

    def run(*arguments, tty=False, **environment):
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, str(value))
            if tty:
                patch.setattr("sys.stdout", Terminal())
            assert main(arguments) in (0, 1)
            return terminal.sys.stdout.getvalue() if tty else capsys.readouterr().out

    return run


@pytest.mark.parametrize("width", [80, 100, 140])
def test_lines_fit_the_terminal(run, width):
    out = run("inspect", "long.keras", COLUMNS=width)
    sources = [line for line in out.splitlines() if "https://" in line]  # which are words
    assert max(len(line) for line in out.splitlines() if line not in sources) <= width
    assert NAME in out
    whole = run("inspect", "long.keras", "--wide", COLUMNS=width)
    assert sorted(whole.split()) == sorted(out.split())
    assert sum(line.startswith(NAME) for line in whole.splitlines()) == 3


def test_what_is_no_terminal_has_lines_of_a_fixed_length(run, monkeypatch):
    size = SimpleNamespace(get_terminal_size=lambda *_: os.terminal_size((60, 24)))
    monkeypatch.setattr(terminal, "shutil", size)  # not in shutil itself, where pytest asks, too
    assert run("verify", "model.keras") == run("verify", "model.keras", COLUMNS="")
    assert max(map(len, run("verify", "model.keras", tty=True, NO_COLOR=1).splitlines())) <= 60


def test_the_summary_comes_first_and_alone(run):
    out = run("inspect", "model.keras")
    summary = run("inspect", "model.keras", "--summary")
    assert out.startswith(f"{summary}\n")
    assert summary.startswith("convnet: 0 of 3 prunable kernels are 2:4")
    assert "layer  kind" not in summary
    assert run("verify", "model.keras", "--summary") == "model.keras: 0 of 4 weights are 2:4; NOT ok\n"


def test_json_is_one_form_among_others(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert main(["verify", "model.keras", "--json", "--wide"]) == 2
    assert "not allowed with" in capsys.readouterr().err


def test_colours_are_for_terminals(run):
    plain, shown = run("verify", "model.keras"), run("verify", "model.keras", tty=True, COLUMNS=120)
    assert "\x1b[31mmodel.keras: 0 of 4 weights are 2:4; NOT ok\x1b[0m\n" in shown
    assert "\x1b[1mweight\x1b[0m" in shown
    assert "\x1b" not in plain
    for off in ({"NO_COLOR": 1}, {"TERM": "dumb"}, {"NO_COLOR": 1, "FORCE_COLOR": 1}):
        assert run("verify", "model.keras", tty=True, COLUMNS=120, **off) == plain
    assert run("verify", "model.keras", FORCE_COLOR=1) == shown
    data = run("verify", "model.keras", "--json", tty=True, FORCE_COLOR=1)
    assert data == run("verify", "model.keras", "--json")
    assert json.loads(data)["ok"] is False


def test_errors_are_red_on_terminals_only(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TERM", "xterm")
    assert main(["verify", "none.keras"]) == 2
    plain = capsys.readouterr().err
    assert plain.startswith("tfmot-asp: error: there is no file")
    monkeypatch.setattr("sys.stderr", Terminal())
    assert main(["verify", "none.keras"]) == 2
    assert terminal.sys.stderr.getvalue() == plain.replace("error:", "\x1b[31merror:\x1b[0m")
