"""SIGTERM."""

import contextlib
import os
import signal
import threading
import time

import pytest

from tfmot_asp.cli import main, stopping
from tfmot_asp.cli.stopping import Terminated, terminable


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.01)


def test_it_is_raised_once():
    cleaned = []

    def interrupted():
        with terminable():
            try:
                terminate()
            finally:
                terminate()  # an impatient user
                cleaned.append(True)

    with pytest.raises(Terminated):
        interrupted()
    assert cleaned == [True]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_it_is_raised_again_where_a_library_caught_it(monkeypatch):
    monkeypatch.setattr(stopping, "_AGAIN", 0.05)

    def caught():
        with terminable():
            with contextlib.suppress(BaseException):
                terminate()
            time.sleep(10)

    with pytest.raises(Terminated):
        caught()


def test_it_is_raised_again_at_once_where_python_dropped_it(capfd):
    class Finalized:
        def __del__(self):
            terminate()

    def dropped():
        with terminable():
            Finalized()
            time.sleep(stopping._AGAIN / 2)

    with pytest.raises(Terminated):
        dropped()
    assert capfd.readouterr().err == ""  # no "Exception ignored in ..."


def test_other_handlers_and_threads_are_left_alone():
    heard = []
    signal.signal(signal.SIGTERM, lambda *_: heard.append(True))
    try:
        with terminable():
            terminate()
        assert heard == [True]
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    thread = threading.Thread(target=lambda: heard.append(main(["--version"])))
    thread.start()
    thread.join()
    assert heard == [True, 0]
