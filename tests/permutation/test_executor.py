"""permute(..., executor=): the groups are searched elsewhere, with the same result."""

import multiprocessing
import threading
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest

import tfmot_asp
from tests.small_models import convnet

OPTIONS = {"effort": "fast", "device": "cpu", "progress": False}


class Reversed(Executor):
    """Runs what it was given a moment after the last of it, the last one first."""

    def __init__(self):
        self.tasks = []

    def submit(self, fn, /, *args, **kwargs):
        future = Future()
        self.tasks.append((future, lambda: fn(*args, **kwargs)))
        threading.Timer(0.1, self.run, [len(self.tasks)]).start()
        return future

    def run(self, count):
        while len(self.tasks) == count and self.tasks:
            future, call = self.tasks.pop()
            count -= 1
            if future.set_running_or_notify_cancel():
                future.set_result(call())


def processes():
    # Not forked: TensorFlow's threads would not survive it.
    return ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))


@pytest.mark.parametrize("make", [lambda: ThreadPoolExecutor(2), Reversed, processes])
def test_an_executor_changes_nothing(make):
    here, there = convnet(), convnet()
    there.set_weights(here.get_weights())
    expected = tfmot_asp.permute(here, **OPTIONS)
    assert len(expected.groups) == 2
    with make() as executor:
        report = tfmot_asp.permute(there, executor=executor, **OPTIONS)
        assert executor.submit(int, "3") is not None  # not shut down
    assert report.groups == expected.groups
    for mine, theirs in zip(here.get_weights(), there.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_an_error_in_a_task_leaves_the_model_as_it_was_and_cancels_the_others():
    class Failing(Reversed):
        def submit(self, fn, /, *args, **kwargs):
            future = Future()
            if not self.tasks:
                future.set_exception(BrokenExecutor("a worker is gone\nits log"))
            self.tasks.append(future)
            return future

    model, executor = convnet(), Failing()
    before = model.get_weights()
    said = r"Failing lost the search of group 'conv.*' \(BrokenExecutor: a worker is gone\), so nothing was changed"
    with pytest.raises(RuntimeError, match=said):
        tfmot_asp.permute(model, executor=executor, **OPTIONS)
    assert [future.cancelled() for future in executor.tasks] == [False, True]
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
