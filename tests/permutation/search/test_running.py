"""A running search: progress, time limit, Ctrl-C, many at once, memory."""

import signal
import subprocess
import sys
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tfmot_asp import search

MATRIX = np.random.default_rng(0).random((256, 512))


def search_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("tfmot_asp_search")]


def test_progress_is_told_in_order_from_the_calling_thread():
    seen = []
    search(MATRIX, device="cpu", progress=lambda fraction: seen.append((fraction, threading.current_thread())))
    fractions = [fraction for fraction, _ in seen]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert all(0.0 <= fraction <= 1.0 for fraction in fractions)
    assert {thread for _, thread in seen} == {threading.current_thread()}


def test_progress_does_not_change_the_result():
    plain = search(MATRIX, effort="fast", device="cpu")
    watched = search(MATRIX, effort="fast", device="cpu", progress=lambda fraction: None)
    np.testing.assert_array_equal(plain.permutation, watched.permutation)


def test_progress_bar(capsys):
    search(MATRIX, effort="fast", device="cpu", progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "100%" in captured.err
    search(MATRIX, effort="fast", device="cpu")
    search(MATRIX, effort="fast", device="cpu", progress=False)
    assert capsys.readouterr().err == ""


def test_an_error_in_the_callback_stops_the_search_and_comes_out():
    def fail(fraction: float) -> None:
        raise RuntimeError("the bar broke")

    with pytest.raises(RuntimeError, match="the bar broke"):
        search(np.random.default_rng(0).random((2048, 1024)), effort="thorough", device="cpu", progress=fail)
    assert not search_threads()


@pytest.mark.parametrize("shape", [(512, 512), (256, 2048)])
def test_time_limit_cuts_the_search_short(shape):
    matrix = np.random.default_rng(1).random(shape)
    result = search(matrix, effort="thorough", device="cpu", time_limit=0.2)
    assert not result.finished
    assert "cut short by time_limit" in str(result)
    assert sorted(result.permutation) == list(range(shape[1]))
    assert result.retained_after >= result.retained_before


def test_a_generous_time_limit_changes_nothing():
    expected = search(MATRIX, effort="fast", device="cpu")
    result = search(MATRIX, effort="fast", device="cpu", time_limit=3600)
    assert result.finished
    np.testing.assert_array_equal(result.permutation, expected.permutation)


def test_interrupt_in_this_process():
    calls = []

    def interrupt(fraction: float) -> None:
        calls.append(fraction)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)

    matrix = np.random.default_rng(0).random((2048, 1024))
    before = matrix.copy()
    with pytest.raises(KeyboardInterrupt):
        search(matrix, effort="thorough", device="cpu", progress=interrupt)
    assert len(calls) == 3
    assert not search_threads()
    np.testing.assert_array_equal(matrix, before)
    search(matrix[:64, :64], effort="fast", device="cpu")


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_from_outside():
    # Some minutes of work if it were not interrupted; the timeout only keeps a failure from hanging.
    code = """
import threading
import numpy as np
from tfmot_asp import search
try:
    search(np.random.default_rng(0).random((8192, 4096), np.float32), effort="thorough", device="cpu",
           progress=lambda fraction: print("running", flush=True) if fraction > 0 else None)
except KeyboardInterrupt:
    print("interrupted", threading.active_count(), flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert out.splitlines()[-1] == "interrupted 1"
    assert process.returncode == 0


def test_many_searches_at_once():
    matrices = [np.random.default_rng(k).random((40, 64 + 8 * k)) for k in range(6)]
    expected = [search(matrix, effort="fast", device="cpu").permutation for matrix in matrices]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda matrix: search(matrix, effort="fast", device="cpu").permutation, matrices))
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("rows", "columns", "chains"), [(8192, 512, 2), (16_384, 1024, 1), (1024, 4096, 1)])
def test_peak_memory_is_what_the_docstring_says(rows, columns, chains):
    matrix = np.random.default_rng(0).random((rows, columns), np.float32)
    search(matrix[:64, :64], effort="fast", device="cpu")  # what is loaded once
    tracemalloc.start()
    try:
        search(matrix, effort="fast", device="cpu", time_limit=0.5)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= matrix.size * (2 + 2 * chains) + (24 << 20)


def test_numba_code_runs_where_nothing_can_be_cached(tmp_path):
    # A read-only installation without a home: numba finds no place for its cache and refuses to decorate.
    code = """
import numba.core.caching as caching
caching.CacheImpl._locator_classes = []
caching.CompileResultCacheImpl._locator_classes = []
import numpy as np
from tfmot_asp import search
print(len(search(np.random.default_rng(0).random((8, 32)), device="cpu", effort="fast").permutation))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "32"
