"""permute(..., executor=): the groups are searched elsewhere, with the same result."""

import multiprocessing
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest

import tfmot_asp
from tests.small_models import convnet

OPTIONS = {"effort": "fast", "device": "cpu", "progress": False}


class Reversed(Executor):
    """Runs its tasks at the first request for a result, the last one first."""

    def __init__(self):
        self.tasks = []
        self.ran = []

    def submit(self, fn, /, *args, **kwargs):
        future = Late(self)
        self.tasks.append((future, fn, args, kwargs))
        return future


class Late(Future):
    def __init__(self, executor):
        super().__init__()
        self.executor = executor

    def result(self, timeout=None):
        for future, fn, args, kwargs in reversed(self.executor.tasks):
            if not future.done():
                future.set_result(fn(*args, **kwargs))
                self.executor.ran.append(future)
        return super().result(timeout)


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
                future.set_exception(RuntimeError("worker lost"))
            self.tasks.append(future)
            return future

    model, executor = convnet(), Failing()
    before = model.get_weights()
    with pytest.raises(RuntimeError, match="worker lost"):
        tfmot_asp.permute(model, executor=executor, **OPTIONS)
    assert [future.cancelled() for future in executor.tasks] == [False, True]
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
