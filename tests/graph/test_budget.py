"""The memory that a file may ask for."""

import contextlib
import os

import pytest

from tfmot_asp.graph import budget


def test_nothing_is_limited_unless_a_file_is_read():
    budget.spend(1 << 60, "anything")
    with budget.reading(None):
        budget.spend(1 << 60, "anything")
        assert budget.size_in_force() == 0


def test_a_file_may_ask_for_so_much_in_all():
    with budget.reading(1000) as held:
        limit = budget.FREE + budget.RATIO * 1000
        assert held.limit == limit
        budget.spend(limit, "temporary things", kept=False)
        budget.spend(limit - 1, "one thing")
        budget.spend(1, "another")

    def ask(*amounts):
        with budget.reading(1000):
            for amount in amounts:
                budget.spend(amount, f"a thing of {amount}")

    ask(limit - 1, 1)
    with pytest.raises(budget.OverBudgetError, match="its 1,000 bytes do not explain a thing of 2, which"):
        ask(limit - 1, 2)


def test_files_that_belong_to_it_count():
    with budget.reading(0):
        budget.allow(1000)
        budget.spend(budget.FREE + budget.RATIO * 1000, "one thing")


def test_an_error_that_others_caught_is_raised_at_the_end():
    """Libraries that are called meanwhile make what they like of an exception."""

    def swallowed():
        with budget.reading(0), contextlib.suppress(budget.OverBudgetError):
            budget.spend(1 << 60, "a thing")

    def replaced():
        with budget.reading(0):
            try:
                budget.spend(1 << 60, "a thing")
            except budget.OverBudgetError as error:
                raise TypeError("something else") from error

    for read in (swallowed, replaced):
        with pytest.raises(budget.OverBudgetError, match="a thing"):
            read()


def test_one_file_within_another_has_its_own():
    with budget.reading(0):
        budget.spend(budget.FREE, "all there is")
        with budget.reading(0):
            budget.spend(budget.FREE, "all there is")


def test_the_size_of_a_folder_is_that_of_its_files(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a").write_bytes(bytes(100))
    (tmp_path / "b").symlink_to("inner/a")
    os.link(tmp_path / "inner" / "a", tmp_path / "c")
    (tmp_path / "d").write_bytes(bytes(10))
    (tmp_path / "e").symlink_to("nothing")
    assert budget.size_of(tmp_path) == 110
    assert budget.size_of(tmp_path / "d") == 10
