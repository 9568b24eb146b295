"""Reasons are written in one way, from parts that stay parts."""

import pytest

from tfmot_asp.reason import OpName, Reason


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        (Reason("Conv2D 'stem'", "has 3 input channels"), "Conv2D 'stem' has 3 input channels"),
        (Reason("", "it splits the channels", OpName("Reshape", "a/b")), "it splits the channels (Reshape 'a/b')"),
        (Reason("'a'", "stays", OpName("Add", "c")), "'a' stays (Add 'c')"),
    ],
)
def test_the_parts_are_written_in_one_way(reason, text):
    assert str(reason) == f"{reason}" == text
