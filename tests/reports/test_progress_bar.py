"""Bars are looked at as a terminal gets them."""

import pytest

from tfmot_asp.reports.progress_bar import Stages


def shown(capsys):
    """What was drawn, one line each time."""
    return [line.strip() for line in capsys.readouterr().err.replace("\n", "\r").split("\r") if line.strip()]


def test_stages_say_which_one_runs_and_how_many_are_left(capsys):
    with Stages("export", ("tracing", "converting", "checking"), True) as at:
        for name in ("tracing", "converting", "checking", "converting"):
            at.begin(name)
    lines = shown(capsys)
    assert [line.split(" ")[1] for line in lines] == ["0/3", "0/3", "1/3", "2/3", "1/3", "3/3", "3/3"]
    assert [line.rpartition(", ")[2] for line in lines[1:5]] == ["tracing", "converting", "checking", "converting"]
    assert "checking" not in lines[-1]


def test_work_that_failed_is_not_shown_as_done(capsys):
    def fail():
        with Stages("export", ("tracing", "converting"), True) as at:
            at.begin("converting")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert "1/2" in shown(capsys)[-1]


def test_nothing_is_shown_where_no_terminal_is_or_nobody_asks(capsys):
    for progress in (None, False):
        with Stages("export", ("tracing",), progress) as at:
            at.begin("tracing")
    assert shown(capsys) == []


def test_other_values_of_progress_are_refused():
    with pytest.raises(TypeError, match="progress must be True, False or None; got 'bar'"):
        Stages("export", ("tracing",), "bar")
