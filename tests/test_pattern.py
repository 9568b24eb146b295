"""One pattern, however it is spelled."""

import copy
import json
import pickle
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tfmot_asp
from tests import naive_masks
from tfmot_asp import masks
from tfmot_asp.pattern import TWO_FOUR, Pattern

PAIRS = st.integers(2, 10**6).flatmap(lambda block: st.tuples(st.integers(1, block - 1), st.just(block)))
SMALL = st.integers(2, 12).flatmap(lambda block: st.tuples(st.integers(1, block - 1), st.just(block)))


@given(PAIRS)
def test_every_spelling_is_the_same_pattern(pair):
    zeros, block = pair
    pattern = Pattern(zeros, block)
    spellings = [
        pair,
        list(pair),
        np.array(pair),
        pattern,
        f"{block - zeros}:{block}",
        f" {pattern} ",
        pattern._asdict().values(),
    ]
    assert {Pattern.of(spelling) for spelling in spellings} == {pattern}
    assert pattern.kept + pattern.zeros == pattern.block
    assert pattern.sparsity == zeros / block


@given(PAIRS)
def test_it_is_tfmots_tuple_to_whoever_expects_one(pair):
    pattern = Pattern(*pair)
    assert pattern == pair
    assert hash(pattern) == hash(pair)
    assert tuple(pattern) == pair
    assert json.loads(json.dumps(pattern)) == list(pair)
    for again in (pickle.loads(pickle.dumps(pattern)), copy.deepcopy(pattern)):
        assert type(again) is Pattern
        assert again == pattern


@pytest.mark.parametrize(
    ("pair", "text"),
    [
        ((2, 4), "2:4"),
        ((1, 2), "1:2"),
        ((1, 4), "3:4 (1 zero in every 4)"),
        ((3, 4), "1:4 (3 zeros in every 4)"),
        ((2, 3), "1:3 (2 zeros in every 3)"),
    ],
)
def test_it_is_written_as_the_field_does_with_the_zeros_where_these_differ(pair, text):
    assert str(Pattern(*pair)) == f"{Pattern(*pair)}" == text


@given(SMALL, st.integers(0, 40))
def test_what_it_keeps_of_a_length_is_what_a_mask_keeps(pair, length):
    assert Pattern(*pair).kept_of(length) == int(naive_masks.mask(np.ones((length, 1)), 0, pair).sum())


BAD_PAIRS = [(4, 2), (0, 4), (2, 2), (2,), (1, 2, 3), 2, (2.0, 4), (True, 4), None, (-1, 4), b"2:4", {2: 1}]
BAD_TEXTS = [
    "24",
    "",
    "4:4",
    "0:4",
    "5:4",
    "2:4:8",
    "2/4",
    "1_0:20",
    "²:4",
    "-1:4",
    "2:4 (2 zeros in every 4)",
    "3:4 (2)",
]


@pytest.mark.parametrize("bad", [*BAD_PAIRS, *BAD_TEXTS])
def test_what_is_no_pattern_is_refused_with_both_spellings(bad):
    with pytest.raises(
        ValueError, match=r"m_by_n must be two integers \(zeros, block\).*text 'N:M'.*got " + re.escape(repr(bad))
    ):
        Pattern.of(bad, "m_by_n")


@given(st.text(alphabet="0123456789: ()", max_size=12))
def test_text_is_refused_or_written_again_as_the_same_pattern(text):
    try:
        pattern = Pattern.of(text)
    except ValueError:
        return
    assert Pattern.of(str(pattern)) == pattern
    assert text.strip().startswith(f"{pattern.kept}:{pattern.block}") or "0" in text  # leading zeros


def test_it_cannot_change():
    with pytest.raises(AttributeError):
        TWO_FOUR.zeros = 1
    with pytest.raises(ValueError, match="0 < zeros < block"):
        Pattern(4, 4)


def test_masks_and_search_take_each_spelling():
    weight = np.random.default_rng(0).normal(size=(16, 8))
    for spelling in ("3:4", (1, 4), Pattern(1, 4)):
        np.testing.assert_array_equal(masks.m_by_n_mask(weight, 0, spelling), naive_masks.mask(weight, 0, (1, 4)))
        result = tfmot_asp.search(weight, m_by_n=spelling, effort="fast")
        assert result.m_by_n == (1, 4)
        assert result.to_dict()["sparsity_m_by_n"] == [1, 4]
        assert "8 columns, 3:4 (1 zero in every 4): " in str(result)
