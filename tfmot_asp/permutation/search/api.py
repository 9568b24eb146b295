"""``search``: a matrix in, a channel order out."""

from __future__ import annotations

import logging
import operator
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tfmot_asp.pattern import TWO_FOUR, Pattern, PatternLike
from tfmot_asp.permutation.search import cpu, exact, geometry, loader
from tfmot_asp.permutation.search.effort import EFFORTS, make_workload, row_step, searched_rows
from tfmot_asp.permutation.search.fixed_point import encode, survey
from tfmot_asp.permutation.search.progress import Progress, within
from tfmot_asp.permutation.search.result import SearchResult
from tfmot_asp.permutation.search.scores import RowSource, Scores
from tfmot_asp.permutation.search.value import efficacy, evaluate

DEVICES = ("auto", "cpu", "cuda")
WIDEST_STRIPE = 16
WORTH_A_GPU = 1 << 17
"""Elements below which ``device="auto"`` stays on the CPU; the result is the same."""

_logger = logging.getLogger(__name__)


def search(
    matrix: npt.ArrayLike,
    *,
    m_by_n: PatternLike = TWO_FOUR,
    device: str = "auto",
    effort: str = "balanced",
    seed: int = 0,
    progress: bool | Callable[[float], Any] | None = None,
    time_limit: float | None = None,
    row_weights: npt.ArrayLike | None = None,
    column_weights: npt.ArrayLike | None = None,
    threads: int | None = None,
) -> SearchResult:
    """Finds the channel order that keeps the most weight magnitude under an m by n mask.

    The result is a function of matrix, weights, m_by_n, effort and seed alone: the same for any number of threads, on
    any run and on every device, unless ``time_limit`` cuts the search short.

    Args:
        matrix: (rows, columns), any real dtype (also float16 and bfloat16), any strides: a column per channel, the mask
            runs along the rows. What counts is the absolute value: another importance measure than magnitude is passed
            as the matrix itself, or by weights. Not copied; beside it the search needs 2 bytes per element, 2 more for
            each of its chains (one from 2**24 elements on, up to 4 below, up to 24 below 2**20), and a few MiB per
            thread; never more than 1 GiB, since of larger matrices evenly spaced rows are searched.
        m_by_n: the pattern: m zeros in every n consecutive columns, n at most 16, or the text ``"N:M"``, N kept of
            M. If n does not divide the number of columns, the last stripe counts as padded with zeros.
        device: "auto" (a CUDA device if there is one, else the CPU), "cpu" or "cuda".
        effort: "fast", "balanced" or "thorough": how much work, counted in operations, not in seconds.
        seed: of all random numbers; any integer.
        progress: a callable that is given the fraction done, from 0.0 to 1.0, in the caller's thread; or True for a
            tqdm bar of its own; or False or None for neither.
        time_limit: seconds after which the search returns what it has; this gives up reproducibility.
        row_weights: (rows,), factors of the scores, finite and non-negative.
        column_weights: (columns,), likewise: for activation-aware scores, the norm of each channel's activations.
        threads: CPU threads, by default as many as this process may use. No effect on the result.

    Returns:
        A SearchResult; its order is never worse than the given one.

    Raises:
        ValueError: for a matrix that is empty, not two-dimensional or not finite, and for options that make no sense.
        TypeError: for a matrix that is not of real numbers.
        RuntimeError: for device="cuda" where there is none; it says why.

    Example:
        >>> import numpy as np
        >>> from tfmot_asp import search
        >>> kernel = np.random.default_rng(0).normal(size=(128, 64))
        >>> result = search(kernel, effort="fast")
        >>> new = kernel[:, result.permutation]
        >>> result.retained_after > result.retained_before
        True
    """
    if time_limit is not None and not time_limit > 0:
        raise ValueError(f"time_limit must be a positive number of seconds, or None; got {time_limit!r}")
    if not (progress is None or isinstance(progress, bool) or callable(progress)):
        raise TypeError(f"progress must be a callable, True, False or None; got {progress!r}")
    options = _Options(*check_options(m_by_n, device, effort, seed), device, effort, _check_threads(threads))
    started = time.perf_counter()
    scores = _check_scores(matrix, row_weights, column_weights)
    with Progress(progress, started, time_limit) as tick:
        return _search([scores], options, tick, started)[0]


def search_many(
    matrices: Sequence[npt.ArrayLike],
    *,
    m_by_n: PatternLike = TWO_FOUR,
    device: str = "auto",
    effort: str = "balanced",
    seed: int = 0,
    threads: int | None = None,
) -> list[SearchResult]:
    """Finds what ``search`` finds, for several matrices: on a GPU all at once, so that small ones fill it together.

    Args:
        matrices: as ``search`` takes them. All of them have room on the device, or none is searched there.
        m_by_n: as for ``search``, and so are the others.
        device: see ``search``.
        effort: see ``search``.
        seed: see ``search``.
        threads: see ``search``.

    Returns:
        A SearchResult for each, of which all but ``seconds`` and ``device`` are those of ``search``: ``seconds`` is the
        time that all of them took.

    Raises:
        ValueError, TypeError, RuntimeError: as ``search``.
    """
    options = _Options(*check_options(m_by_n, device, effort, seed), device, effort, _check_threads(threads))
    return _search([_check_scores(m, None, None) for m in matrices], options, lambda done: False, time.perf_counter())


def bytes_on_a_device(rows: int, columns: int, m_by_n: PatternLike, effort: str) -> int:
    """Device memory that the search of a matrix of that shape takes."""
    pattern = Pattern.of(m_by_n)
    searched = searched_rows(rows, columns)
    work = make_workload(columns, searched, pattern.block, effort)
    return geometry.device_bytes(columns, searched, pattern.block, work)


class _Options(NamedTuple):
    """Checked options of a search."""

    pattern: Pattern
    seed: int
    device: str
    effort: str
    threads: int


class _Job:
    """The search of one matrix: what it needs to know beforehand, and the orders that were found."""

    def __init__(self, scores: Scores, options: _Options) -> None:
        self.scores = scores
        self.sampled = scores.sampled(row_step(scores.rows, scores.columns))
        n = options.pattern.block
        self.work = make_workload(scores.columns, self.sampled.rows, n, options.effort)
        self.device_bytes = geometry.device_bytes(scores.columns, self.sampled.rows, n, self.work)
        self.caps: tuple[float, ...] = ()
        self.orders: list[npt.NDArray[np.int64]] = []
        self.device, self.finished = "cpu", True
        _logger.debug("%d columns, %d of %d rows: %s", scores.columns, self.sampled.rows, scores.rows, self.work)

    def result(self, options: _Options, started: float) -> SearchResult:
        """The best of the orders that were found, by their exact value, if it is better than the given one."""
        n, keep = options.pattern.block, options.pattern.kept
        values = evaluate(self.scores, self.orders, n, keep, options.threads)
        best = max(range(len(self.orders)), key=lambda k: values[k].found)  # the first of equals
        order, value = self.orders[best], values[best]
        if not value.found > value.given:
            order, value = np.arange(self.scores.columns), value._replace(found=value.given)
        return SearchResult(
            permutation=order.astype(np.intp),
            retained_before=value.given,
            retained_after=value.found,
            efficacy=efficacy(value),
            seconds=time.perf_counter() - started,
            m_by_n=options.pattern,
            effort=options.effort,
            seed=options.seed,
            device=self.device,
            finished=self.finished,
        )


def _search(all_scores: Sequence[Scores], options: _Options, tick: cpu.Tick, started: float) -> list[SearchResult]:
    n, keep = options.pattern.block, options.pattern.kept
    if not all_scores:
        return []
    jobs = [_Job(scores, options) for scores in all_scores]
    where, why = choose_device(
        options.device,
        sum(scores.rows * scores.columns for scores in all_scores),
        sum(job.device_bytes for job in jobs),
        f"{all_scores[0].rows} x {all_scores[0].columns}" + ", ..." * (len(jobs) > 1),
    )
    if why:
        _logger.info("searching on the CPU: %s", why)
    annealed = []
    for job in jobs:
        job.caps = survey(job.scores, options.threads)
        if job.scores.columns <= n or not job.caps:
            job.orders = [np.arange(job.scores.columns)]
        elif exact.is_small(job.scores.rows, job.scores.columns, n, options.effort):
            job.orders = [exact.solve(job.scores, n, keep)]
        else:
            job.device = where
            annealed.append(job)
    if where == "cuda" and annealed:
        _anneal_together(annealed, options, tick)
    for number, job in enumerate(annealed if where == "cpu" else ()):
        _anneal(job, options, within(tick, number / len(annealed), 1 / len(annealed)))
    return [job.result(options, started) for job in jobs]


def check_options(
    m_by_n: PatternLike, device: str, effort: str, seed: int, name: str = "m_by_n"
) -> tuple[Pattern, int]:
    """Checks what can be checked without a matrix; `name` is what the caller calls the pattern.

    Returns:
        The pattern, and the seed as a plain integer.

    Raises:
        ValueError, TypeError: for an option that makes no sense.
    """
    pattern = Pattern.of(m_by_n, name)
    if pattern.block > WIDEST_STRIPE:
        raise ValueError(f"{name} must have n at most {WIDEST_STRIPE}; got {m_by_n!r}")
    _check_choice("device", device, DEVICES)
    _check_choice("effort", effort, EFFORTS)
    return pattern, _check_integer("seed", seed)


def _anneal(job: _Job, options: _Options, tick: cpu.Tick) -> None:
    """Finds the orders of every chain at every scale, on the CPU."""
    pattern, stopped = options.pattern, False
    for number, cap in enumerate(job.caps):
        if stopped:
            break
        codes = encode(job.sampled, cap, options.threads)
        part = within(tick, number / len(job.caps), 1 / len(job.caps))
        found, stopped = cpu.search_codes(
            codes, pattern.block, pattern.kept, job.work, options.seed, options.threads, part
        )
        job.orders += found
        del codes
    job.finished = not stopped


def _anneal_together(jobs: Sequence[_Job], options: _Options, tick: cpu.Tick) -> None:
    """The same for all matrices at once, on the GPU. Few have a second scale: these follow."""
    from tfmot_asp.permutation.search import cuda

    pattern, scales = options.pattern, max(len(job.caps) for job in jobs)
    for number in range(scales):
        here = [job for job in jobs if number < len(job.caps) and job.finished]
        if not here:
            break
        problems = [cuda.Problem(encode(job.sampled, job.caps[number], options.threads), job.work) for job in here]
        part = within(tick, number / scales, 1 / scales)
        found, stopped = cuda.search_all(problems, pattern.block, pattern.kept, options.seed, part)
        for job, orders in zip(here, found, strict=True):
            job.orders += orders
            job.finished = not stopped


def choose_device(device: str, elements: int, needed_bytes: int, what: str = "") -> tuple[str, str | None]:
    """Resolves the ``device`` argument for matrices with so many elements, whose search takes that much device memory.

    Returns:
        "cpu" or "cuda", and for "auto" why it is not CUDA; `what` is how that calls the matrices.

    Raises:
        RuntimeError: for "cuda" where that cannot be.
    """
    if device == "cpu":
        return "cpu", None
    if device == "auto" and elements < WORTH_A_GPU:
        return "cpu", f"{what} is too small to be faster on a GPU"
    reason = loader.why_not(needed_bytes)
    if reason is None:
        return "cuda", None
    if device == "cuda":
        raise RuntimeError(f"device='cuda' cannot be used: {reason}. device='auto' would use the CPU.")
    return "cpu", reason


def _usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_threads(threads: int | None) -> int:
    found = _usable_cpus() if threads is None else _check_integer("threads", threads)
    if found < 1:
        raise ValueError(f"threads must be at least 1, or None; got {threads}")
    return found


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}")


def _check_integer(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer; got {value!r}") from None


def _check_scores(matrix: Any, row_weights: Any, column_weights: Any) -> Scores:
    array = matrix if isinstance(matrix, RowSource) else np.asarray(matrix)
    kind = f"an array of shape {array.shape} and dtype {array.dtype}"
    if array.ndim != 2:
        raise ValueError(
            f"matrix must have two axes, (rows, columns) with a column per channel; got {kind}. Move a kernel's "
            "reduction axis last and flatten the others, for example np.moveaxis(kernel, 2, -1).reshape(-1, channels)."
        )
    if 0 in array.shape:
        raise ValueError(f"matrix is empty: got {kind}; it needs at least one row and one column")
    if array.dtype.kind not in "fiu" and not _is_extended_float(array.dtype):
        raise TypeError(f"matrix must be of real numbers, floats or integers; got {kind}")
    return Scores(
        array,
        _check_weights("row_weights", row_weights, array.shape[0], "row"),
        _check_weights("column_weights", column_weights, array.shape[1], "column"),
    )


def _is_extended_float(dtype: np.dtype[Any]) -> bool:
    """Whether it is one of the ``ml_dtypes`` floats, such as bfloat16, which NumPy knows as opaque types."""
    return dtype.kind == "V" and dtype.names is None and "float" in dtype.name


def _check_weights(name: str, weights: Any, length: int, per: str) -> npt.NDArray[np.float64] | None:
    if weights is None:
        return None
    array = np.asarray(weights, np.float64)
    if array.shape != (length,):
        raise ValueError(f"{name} must have one factor per {per}, shape ({length},); got shape {array.shape}")
    if not (np.isfinite(array).all() and (array >= 0).all()):
        raise ValueError(f"{name} must be finite and non-negative; got values from {array.min()} to {array.max()}")
    return array
