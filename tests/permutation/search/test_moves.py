"""The annealed move and what it is made of, against the naive oracle."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import naive
from tfmot_asp.permutation.search import counter_random, moves, objective
from tfmot_asp.permutation.search.simd import LANES

TABLE = counter_random.gumbel_table()


def random_codes(seed: int, columns: int, rows: int, most: int = 4095) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, most + 1, (columns, -(-rows // LANES) * LANES)).astype(np.uint16)


def prepared(codes: np.ndarray, order: np.ndarray, n: int, keep: int) -> np.ndarray:
    thresholds = np.full_like(codes, 7777)  # every value must be written
    moves.prepare(codes, thresholds, order, 0, -(-len(order) // n), n, keep)
    return thresholds


shapes = st.tuples(
    st.integers(0, 10**6), st.integers(1, 20), st.integers(1, 40), st.integers(2, 16), st.sampled_from([1, 3, 4095])
)


@given(shapes, st.data())
@settings(max_examples=60)
def test_threshold_and_excess_give_what_a_stripe_would_keep(shape, data):
    seed, columns, rows, n, most = shape
    keep = data.draw(st.integers(1, n - 1))
    codes = random_codes(seed, columns, rows, most)
    order = np.random.default_rng(seed).permutation(columns)
    thresholds = prepared(codes, order, n, keep).astype(np.int64)
    place = data.draw(st.integers(0, columns - 1))
    first = place // n * n
    stripe = list(order[first : first + n])
    old = order[place]
    others = [c for c in stripe if c != old]
    kept = naive.stripe_code(codes, stripe, keep)
    own = np.maximum(codes[old] - thresholds[old], 0).sum()
    for new in range(columns):
        excess = np.maximum(codes[new] - thresholds[old], 0).sum()
        assert kept + excess - own == naive.stripe_code(codes, [*others, new], keep)


@pytest.mark.parametrize("rows", [16, 32, 240, 256, 272, 1024, 1040, 5000])
@pytest.mark.parametrize("size", [4, 8, 100])
def test_product_at_every_blocking_edge(rows, size):
    rng = np.random.default_rng(rows)
    x = random_codes(1, 120, rows)
    b = random_codes(2, 120, rows)
    i, j = rng.integers(0, 120, size), rng.integers(0, 120, size)
    out = np.full((size, size), -5)
    objective.excess_product(x, b, i, j, out)
    for row in range(size):
        expected = np.maximum(x[j].astype(np.int64) - b[i[row]], 0).sum(axis=1)
        np.testing.assert_array_equal(out[row], expected)


def test_product_of_the_largest_codes_does_not_overflow():
    x, b = np.full((4, 1 << 16), 4095, np.uint16), np.zeros((4, 1 << 16), np.uint16)
    out = np.zeros((4, 4), np.int64)
    objective.excess_product(x, b, np.arange(4), np.arange(4), out)
    np.testing.assert_array_equal(out, 4095 << 16)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**40))
def test_random_numbers_are_splitmix64(key, counter):
    expected = naive.draw(key, counter)
    assert int(counter_random.draw(np.uint64(key), counter)) == expected
    if counter < 100:
        assert int(counter_random.host_draw(np.uint64(key), counter + 1)[counter]) == expected


def test_gumbel_table_has_the_distribution():
    samples = TABLE / 2**counter_random.FRACTION_BITS
    assert samples.mean() == pytest.approx(0.5772, abs=2e-3)  # Euler's constant
    assert samples.std() == pytest.approx(np.pi / np.sqrt(6), abs=2e-2)
    assert (np.diff(TABLE) >= 0).all()


def test_gumbel_table_does_not_hang_on_the_last_bit_of_a_logarithm():
    # Logarithms may differ in their last bit from machine to machine; rounded to the table's unit they must not.
    u = (np.arange(len(TABLE)) + 0.5) / len(TABLE)
    exact = -np.log(-np.log(u)) * 2**counter_random.FRACTION_BITS
    np.testing.assert_array_equal(np.rint(exact), TABLE)
    assert np.abs(np.abs(exact - TABLE) - 0.5).min() > 1e-6


@pytest.mark.parametrize(
    ("columns", "rows", "n", "keep"),
    [(16, 20, 4, 2), (18, 7, 4, 2), (41, 16, 4, 1), (12, 33, 2, 1), (50, 9, 8, 4), (35, 5, 5, 4), (40, 12, 16, 3)],
)
@pytest.mark.parametrize("part", ["all stripes", "some stripes"])
def test_annealing_is_the_naive_one(columns, rows, n, keep, part):
    codes = random_codes(columns, columns, rows)
    order = np.random.default_rng(rows).permutation(columns)
    stripes = np.arange(-(-columns // n))
    if part == "some stripes":
        stripes = stripes[::2]
    temperatures = np.array([4000, 1500, 300, 40, 5, 1])
    key = counter_random.host_key(columns, rows)
    expected = naive.anneal(codes, order, stripes, n, keep, temperatures, TABLE.tolist(), int(key))
    thresholds = prepared(codes, order, n, keep)
    control = np.zeros(2, np.int64)
    moves.anneal_block(codes, thresholds, order, stripes, n, keep, temperatures, TABLE, key, control)
    np.testing.assert_array_equal(order, expected)
    np.testing.assert_array_equal(thresholds, prepared(codes, order, n, keep))
    assert control[moves.DONE] == len(temperatures)


@given(st.integers(0, 10**6), st.integers(2, 40), st.sampled_from([1, 2, 4095]), st.integers(2, 16), st.data())
@settings(max_examples=40)
def test_at_temperature_zero_it_never_loses(seed, columns, most, n, data):
    keep = data.draw(st.integers(1, n - 1))
    codes = random_codes(seed, columns, 12, most)
    order = np.arange(columns)
    thresholds = prepared(codes, order, n, keep)
    stripes = np.arange(-(-columns // n))

    def value() -> int:
        return sum(naive.stripe_code(codes, order[first : first + n], keep) for first in range(0, columns, n))

    before = value()
    for step in range(5):
        key = counter_random.host_key(seed, step)
        moves.anneal_block(
            codes, thresholds, order, stripes, n, keep, np.zeros(1, np.int64), TABLE, key, np.zeros(2, np.int64)
        )
        assert value() >= before
        before = value()


def test_costs_of_any_size_fit_the_solver():
    for top in (0, 1, 1 << 20, 1 << 45):
        excess = np.array([[0, top], [top // 2, 3 % (top + 1)]], np.int64)
        cost = np.zeros((2, 2), np.int32)
        moves.assignment_costs(excess.copy(), 2, np.uint64(1), TABLE, 0, cost)
        assert cost.min() == 0
        assert cost.max() < 1 << 26
        assert cost[0, 0] == cost.max()
