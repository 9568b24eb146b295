"""Tasks for an executor, a window of them at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Executor, Future, wait
from typing import Any, NamedTuple


class Task(NamedTuple):
    """What an executor is to call: `function(*arguments, **options)`.

    Attributes:
        name: what it is about, for errors.
        size: how much it is sent, in whatever unit.
    """

    name: str
    size: int
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    options: Mapping[str, Any] = {}


_SHARE = 4


@contextlib.contextmanager
def in_window(executor: Executor, tasks: Sequence[Task]) -> Iterator[Iterator[tuple[int, Any]]]:
    """The results of tasks as they come, each with the task's number. What is left at the end is cancelled.

    A pool of processes or machines is sent copies of what its tasks work on, so it is not given all at once: beside the
    largest task as much as a quarter of all have, and one more at least.

    Raises:
        RuntimeError: if the executor lost a task, with what it said as cause. What a task raised comes as it is.
    """
    waiting: dict[Future[Any], int] = {}
    try:
        yield _results(executor, tasks, waiting)
    finally:
        for future in waiting:
            future.cancel()


def _results(executor: Executor, tasks: Sequence[Task], waiting: dict[Future[Any], int]) -> Iterator[tuple[int, Any]]:
    most = sum(task.size for task in tasks) // _SHARE
    given = 0
    while waiting or given < len(tasks):
        sizes = [tasks[number].size for number in waiting.values()]
        while given < len(tasks) and (len(sizes) < 2 or sum(sizes) - max(sizes) + tasks[given].size <= most):
            task = tasks[given]
            with _explained(executor, task):
                waiting[executor.submit(task.function, *task.arguments, **task.options)] = given
            sizes.append(task.size)
            given += 1
        done = wait(waiting, return_when=FIRST_COMPLETED).done
        for future in [future for future in waiting if future in done]:
            number = waiting[future]
            with _explained(executor, tasks[number]):
                result = future.result()
            del waiting[future]
            yield number, result


@contextlib.contextmanager
def _explained(executor: Executor, task: Task) -> Iterator[None]:
    """Says of the executor's own errors what was lost and what to do; errors of Python's own are the task's."""
    try:
        yield
    except Exception as error:
        own = isinstance(error, (BrokenExecutor, CancelledError)) or type(error).__module__.split(".")[0] != "builtins"
        if not own or type(error).__module__.startswith("tfmot_asp"):
            raise
        said = (str(error).strip().splitlines() or [""])[0]
        raise RuntimeError(
            f"{type(executor).__name__} lost {task.name} ({type(error).__name__}: {said}), so nothing was changed. "
            "Look in its log why a worker ended, often for want of memory, and run again with a new executor"
        ) from error


class RayExecutor(Executor):
    """A `concurrent.futures.Executor` of Ray's tasks, of which Ray has none.

    Args:
        options: of each task, as `ray.remote` takes them: `num_cpus=4`, `memory=2**31`.

    Example:
        >>> from tfmot_asp.permutation import RayExecutor
        >>> tfmot_asp.permute(model, executor=RayExecutor(num_cpus=4))
    """

    def __init__(self, **options: Any) -> None:
        import ray

        self._remote = ray.remote(**{"max_retries": 0, **options})(_call)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """As `concurrent.futures.Executor.submit`."""
        found: Future[Any] = self._remote.remote(fn, args, kwargs).future()
        return found


def _call(function: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    return function(*arguments, **options)
