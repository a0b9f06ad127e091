"""Names that are numbers, of labels, owners, files and rounds: whoever wrote them, they are read and put in order.

Python's `int` takes the digits of every script, and raises for more than 4300 of them; a sum or a range of what it made may
fill the memory. A name of more than 18 digits is a name like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

_MOST_DIGITS = 18  # below 2^63
T = TypeVar("T")


def is_number(name: str) -> bool:
    """Whether a name is a number from 0, as ASCII digits, that 63 bits hold: what may be given to `int`."""
    return name.isascii() and name.isdecimal() and len(name) <= _MOST_DIGITS


def in_order(things: Iterable[T], name: Callable[[T], str]) -> list[T]:
    """Things by their names: as numbers where all are numbers, else as texts."""
    things = list(things)
    if all(is_number(name(each)) for each in things):
        return sorted(things, key=lambda each: (int(name(each)), name(each)))
    return sorted(things, key=name)


def named_in_order(names: Iterable[str]) -> list[str]:
    """`in_order` of the names themselves."""
    return in_order(names, str)
