"""The one table renderer: nothing is cut, and every column starts where its header does."""

from hypothesis import given
from hypothesis import strategies as st

from tfmot_asp.reports.table import percent, table

WORD = st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=12)
NAME = st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=60)
CELL = st.lists(WORD, min_size=1, max_size=3).map(" ".join)
TEXT = st.lists(WORD, max_size=30).map(" ".join)


@given(st.lists(st.tuples(NAME, CELL, TEXT), max_size=6), st.integers(20, 120))
def test_every_cell_is_there_whole_below_its_header(rows, width):
    header = ("one", "the second", "text")
    lines = table(header, rows, width)
    second, last = lines[0].index("the second"), lines[0].rindex("text")
    assert all(len(line) <= max(width, last + 40, 60) for line in lines)
    position = 1
    for row in rows:
        if len(row[0]) > 36:
            assert lines[position] == row[0]
            position += 1
        else:
            assert lines[position][:second].rstrip() == row[0]
        assert lines[position][second:last].rstrip() == row[1]
        text = [lines[position][last:]]
        position += 1
        while position < len(lines) and lines[position].startswith(" " * last):
            text.append(lines[position][last:])
            position += 1
        assert " ".join(text) == row[2]
    assert position == len(lines)


def test_shares_are_aligned():
    assert [percent(0), percent(0.5), percent(1), percent(None)] == ["  0.0%", " 50.0%", "100.0%", "     -"]
    assert percent(0.9999, 2) == " 99.99%"
