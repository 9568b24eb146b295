"""Every architecture of these tests is planned as it is, and (slow) once more after a training step."""

from __future__ import annotations

import inspect

import pytest

from tests.permutation import harness

_ZOO = ("test_control_flow", "test_graphs", "test_models", "test_transformers")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    zoo = metafunc.module.__name__.rpartition(".")[2] in _ZOO
    if zoo and "check(" in inspect.getsource(metafunc.function):
        metafunc.fixturenames.insert(0, "step")
        steps = [pytest.param(0, id="untrained"), pytest.param(1, id="trained", marks=pytest.mark.slow)]
        metafunc.parametrize("step", steps, indirect=True)


@pytest.fixture
def step(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets `check` plan a model, train it for a step, and plan it again."""
    monkeypatch.setattr(harness, "train_first", bool(request.param))
