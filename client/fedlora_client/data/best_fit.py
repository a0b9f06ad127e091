"""Pieces of different sizes go into bins of one capacity, in few bins."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence


def best_fit_decreasing(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """The numbers of the pieces in each bin: the largest piece first, each into the fullest bin that has room for it.

    At most 11/9 of the fewest possible bins and one more (Johnson, 1974). O(n log n): what is searched is the amounts of
    room that some bin has, not the bins. Raises ValueError for a piece that is larger than a bin, or empty.
    """
    if any(not 1 <= size <= capacity for size in sizes):
        raise ValueError(f"sizes must be from 1 to {capacity}")
    bins: list[list[int]] = []
    with_room: dict[int, list[int]] = {}  # {room: the bins that have exactly this room}
    rooms: list[int] = []  # its keys, ascending
    for piece in sorted(range(len(sizes)), key=lambda piece: (-sizes[piece], piece)):
        place = bisect_left(rooms, sizes[piece])
        if place == len(rooms):
            number, room = len(bins), capacity
            bins.append([])
        else:
            room = rooms[place]
            number = with_room[room].pop()
            if not with_room[room]:
                del with_room[room], rooms[place]
        bins[number].append(piece)
        if left := room - sizes[piece]:
            if left not in with_room:
                with_room[left] = []
                insort(rooms, left)
            with_room[left].append(number)
    return bins
