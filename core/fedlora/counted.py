"""Numbers in a sentence: how many of something, and which of those that are counted."""

from __future__ import annotations

from collections.abc import Iterable


def counted(number: int, noun: str, plural: str = "") -> str:
    """`1 round`, `2 rounds`, `12,000 tokens`; `plural` where it is not the noun with an s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def ranges(numbers: Iterable[int], *, most: int = 8, width: int = 0) -> str:
    """`1, 3 to 5`: the numbers, each once and in order; of more than `most` ranges the first, and how many numbers follow.

    Each has at least `width` digits.
    """
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    ends = [sorted({part[0], part[-1]}) for part in parts[:most]]
    told = ", ".join(" to ".join(f"{end:0{width}d}" for end in each) for each in ends)
    more = sum(map(len, parts[most:]))
    return f"{told} and {more} more" if more else told
