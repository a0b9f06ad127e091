"""Numbers as sentences tell them."""

from __future__ import annotations

import pytest
from fedlora.counted import counted, gaps, ranges


@pytest.mark.parametrize(
    ("number", "told"), [(0, "0 rounds"), (1, "1 round"), (2, "2 rounds"), (12000, "12,000 rounds")]
)
def test_one_of_something_has_no_plural(number: int, told: str) -> None:
    assert counted(number, "round") == told


def test_a_plural_of_its_own_is_taken() -> None:
    assert (counted(1, "entry", "entries"), counted(2, "entry", "entries")) == ("1 entry", "2 entries")


def test_numbers_are_told_as_ranges() -> None:
    assert ranges([5, 3, 4, 1, 4]) == "1, 3 to 5"
    assert ranges([]) == ""
    assert ranges([1, 2, 7], width=4) == "0001 to 0002, 0007"


def test_of_many_ranges_the_first_are_told_and_how_many_numbers_follow() -> None:
    assert ranges([1, 2, 4, 6, 7, 8], most=2) == "1 to 2, 4 and 3 more"


def test_what_is_missing_is_told_without_counting_to_it() -> None:
    assert gaps([0, 1, 2]) == gaps([]) == ""
    assert gaps([0, 2, 3, 7]) == "1, 4 to 6"
    assert gaps([2, 2**64]) == f"0 to 1, 3 to {2**64 - 1}"
    assert gaps(range(0, 40, 2)) == "1, 3, 5, 7, 9, 11, 13, 15 and 11 more"
    assert gaps([2, 5], first=2) == "3 to 4"
