"""The search on a real device: equal to the CPU and to the naive oracle. Skipped where there is none.

compute-sanitizer on it (docs/search.md):
    compute-sanitizer --tool memcheck --error-exitcode 1 python -m pytest tests/gpu/test_search.py
"""

import numpy as np
import pytest

from tests import naive
from tfmot_asp import search
from tfmot_asp.permutation.search import annealing, counter_random, cpu, loader, moves, search_many
from tfmot_asp.permutation.search.effort import Workload

REASON = loader.why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"no GPU: {REASON}")


@pytest.mark.parametrize("effort", ["fast", "balanced"])
@pytest.mark.parametrize("shape", [(128, 64), (33, 70), (300, 512), (64, 2100), (4608, 256)])
def test_same_order_as_on_the_cpu(shape, effort):
    matrix = np.random.default_rng(0).normal(size=shape)
    expected = search(matrix, device="cpu", effort=effort)
    result = search(matrix, device="cuda", effort=effort)
    np.testing.assert_array_equal(result.permutation, expected.permutation)
    assert result.retained_after == expected.retained_after
    assert result.device == "cuda"


@pytest.mark.parametrize("m_by_n", [(1, 2), (1, 4), (3, 4), (4, 8), (6, 8), (2, 5), (8, 16)])
def test_same_order_for_every_pattern(m_by_n):
    for matrix in (np.random.default_rng(1).random((50, 101)), np.random.default_rng(2).integers(0, 3, (40, 80))):
        expected = search(matrix, m_by_n=m_by_n, device="cpu", effort="fast")
        result = search(matrix, m_by_n=m_by_n, device="cuda", effort="fast")
        np.testing.assert_array_equal(result.permutation, expected.permutation)


def test_many_at_once_are_each_alone():
    rng = np.random.default_rng(5)
    matrices = [rng.normal(size=shape) for shape in ((64, 40), (300, 512), (20, 1100), (900, 64), (33, 71))]
    for matrix, result in zip(matrices, search_many(matrices, device="cuda"), strict=True):
        np.testing.assert_array_equal(result.permutation, search(matrix, device="cpu").permutation)
        assert result.device == "cuda"


def test_runs_agree():
    matrix = np.random.default_rng(3).random((256, 1024))
    orders = [search(matrix, device="cuda", effort="fast").permutation for _ in range(5)]
    for order in orders:
        np.testing.assert_array_equal(order, orders[0])


@pytest.mark.parametrize(("columns", "rows", "n", "keep"), [(41, 16, 4, 2), (50, 16, 8, 4), (24, 32, 2, 1)])
def test_rounds_are_the_naive_ones(columns, rows, n, keep):
    from tfmot_asp.permutation.search import cuda

    codes = np.random.default_rng(columns).integers(0, 4096, (columns, rows)).astype(np.uint16)
    work = Workload(chains=1, epochs=1, blocks=1, rounds=6)
    (orders,), _ = cuda.search_all([cuda.Problem(codes, work)], n, keep, 5, lambda fraction: False)
    on_cpu, _ = cpu.search_codes(codes, n, keep, work, 5, 1, lambda fraction: False)
    thresholds = np.zeros_like(codes)
    moves.prepare(codes, thresholds, np.arange(columns), 0, -(-columns // n), n, keep)
    unit = int(moves.typical_gain(codes, thresholds, annealing.sample_positions(columns, n)))
    expected = naive.anneal(
        codes, range(columns), range(-(-columns // n)), n, keep,
        annealing.temperatures(work, unit, 0).tolist(), counter_random.gumbel_table().tolist(),
        int(counter_random.host_key(5, 0, 0, 0)),
    )  # fmt: skip
    np.testing.assert_array_equal(orders[0], expected)
    np.testing.assert_array_equal(on_cpu[0], expected)


def test_time_limit_and_interrupt_leave_the_device_usable():
    matrix = np.random.default_rng(4).random((2048, 2048))

    def interrupt(fraction: float) -> None:
        if fraction > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(matrix, device="cuda", effort="thorough", progress=interrupt)
    assert not search(matrix, device="cuda", effort="thorough", time_limit=0.05).finished
    small = matrix[:64, :256]
    np.testing.assert_array_equal(
        search(small, device="cuda", effort="fast").permutation, search(small, device="cpu", effort="fast").permutation
    )
