"""The one table renderer: nothing is cut, no word is broken, and lines fit wherever words let them."""

import re

from hypothesis import given
from hypothesis import strategies as st

from tfmot_asp.reports.table import Marked, percent, table

WORD = st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=12)
NAME = st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=60)
CELL = st.lists(WORD, min_size=1, max_size=3).map(" ".join)
TEXT = st.lists(WORD, max_size=30).map(" ".join)
ROWS = st.lists(st.tuples(NAME, CELL, CELL, TEXT), max_size=6)
HEADER = ("one", "the second", "2:4", "some text")


def words(text):
    return sorted(text.split())


@given(ROWS, st.integers(10, 160))
def test_every_word_is_there_whole(rows, width):
    lines = table(HEADER, rows, width)
    assert words(" ".join(lines)) == words(" ".join(cell for row in (HEADER, *rows) for cell in row))
    assert not any(line != line.rstrip() for line in lines)


@given(ROWS, st.integers(60, 160))
def test_lines_fit(rows, width):
    """Two columns of words of up to 12 characters, and what stands before them, need no more than 60."""
    longest = max((len(name) for name, *_ in rows), default=0)
    assert max(map(len, table(HEADER, rows, width))) <= max(width, longest)


@given(ROWS)
def test_without_a_width_a_row_is_a_line_and_cells_stand_below_their_headers(rows):
    lines = table(HEADER, rows, None)
    starts = [lines[0].index(title) for title in HEADER]
    ends = [*starts[1:], None]
    assert len(lines) == 1 + len(rows)
    for line, row in zip(lines[1:], rows, strict=True):
        assert [line[a:b].rstrip() for a, b in zip(starts, ends, strict=True)] == list(row)


@given(ROWS, st.integers(10, 160))
def test_wide_enough_is_as_without_a_width(rows, width):
    lines = table(HEADER, rows, None)
    if max(map(len, lines)) <= width:
        assert table(HEADER, rows, width) == lines


@given(ROWS, st.integers(10, 160))
def test_colours_change_nothing_else(rows, width):
    rows = [(name, Marked(kind, "bad"), *rest) for name, kind, *rest in rows]
    painted = table(HEADER, rows, width, lambda text, mood: f"\x1b[1m{text}\x1b[0m")
    assert [re.sub(r"\x1b\[\dm", "", line) for line in painted] == table(HEADER, rows, width)


def test_names_and_texts_get_lines_of_their_own_where_that_takes_the_fewest():
    rows = [("a" * 30, "Dense", "x", "yes"), ("b", "Dense", "x", "for a reason that takes a great many words to tell")]
    assert table(("layer", "kind", "axis", "why"), rows, 36) == [
        "layer  kind   axis  why",
        "a" * 30,
        "       Dense  x     yes",
        "b      Dense  x",
        "    for a reason that takes a great",
        "    many words to tell",
    ]


def test_shares_are_aligned():
    assert [percent(0), percent(0.5), percent(1), percent(None)] == ["  0.0%", " 50.0%", "100.0%", "     -"]
    assert percent(0.9999, 2) == " 99.99%"
