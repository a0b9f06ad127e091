"""Numbers in a sentence: how many of something, and which of those that are counted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def counted(number: int, noun: str, plural: str = "") -> str:
    """`1 round`, `2 rounds`, `12,000 tokens`; `plural` where it is not the noun with an s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def ranges(numbers: Iterable[int], *, most: int = 8, width: int = 0) -> str:
    """`1, 3 to 5`: the numbers, each once and in order; of more than `most` ranges the first, and how many numbers follow.

    Each has at least `width` digits.
    """
    parts: list[tuple[int, int]] = []
    for number in sorted(set(numbers)):
        begin = parts.pop()[0] if parts and number == parts[-1][1] + 1 else number
        parts.append((begin, number))
    return _told(parts, most, width)


def gaps(numbers: Iterable[int], *, first: int = 0) -> str:
    """The numbers from `first` on that are missing up to the largest, told as `ranges` does; empty where none is.

    However far the numbers lie apart: what a stranger wrote as a number is not counted to.
    """
    parts, due = [], first
    for number in sorted(set(numbers)):
        if number > due:
            parts.append((due, number - 1))
        due = max(due, number + 1)
    return _told(parts, 8, 0)


def _told(parts: Sequence[tuple[int, int]], most: int, width: int) -> str:  # (first, last) of each range
    told = ", ".join(" to ".join(f"{end:0{width}d}" for end in dict.fromkeys(part)) for part in parts[:most])
    more = sum(last - first + 1 for first, last in parts[most:])
    return f"{told} and {more} more" if more else told
