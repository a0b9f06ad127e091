"""Pieces in bins: nothing is lost, nothing overflows, few bins are needed."""

from __future__ import annotations

import pytest
from fedlora_client.data.best_fit import best_fit_decreasing
from hypothesis import given
from hypothesis import strategies as st


def slow_best_fit(sizes: list[int], capacity: int) -> list[int]:
    """The rooms left in the bins, by looking at every bin for every piece."""
    rooms: list[int] = []
    for size in sorted(sizes, reverse=True):
        fitting = [number for number, room in enumerate(rooms) if room >= size]
        if not fitting:
            rooms.append(capacity)
            fitting = [len(rooms) - 1]
        rooms[min(fitting, key=lambda number: rooms[number])] -= size
    return rooms


@given(capacity=st.integers(1, 40), data=st.data())
def test_each_piece_is_in_one_bin_and_the_bins_are_those_of_a_slow_search(capacity: int, data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, capacity), max_size=60))
    bins = best_fit_decreasing(sizes, capacity)
    assert sorted(piece for pieces in bins for piece in pieces) == list(range(len(sizes)))
    rooms = [capacity - sum(sizes[piece] for piece in pieces) for pieces in bins]
    assert all(0 <= room < capacity for room in rooms)
    assert sorted(rooms) == sorted(slow_best_fit(sizes, capacity))
    assert bins == best_fit_decreasing(sizes, capacity)


def test_pieces_that_fill_bins_exactly_leave_no_room() -> None:
    bins = best_fit_decreasing([3, 7, 5, 5, 9, 1], 10)
    assert bins == [[4, 5], [1, 0], [2, 3]]


@pytest.mark.parametrize("size", [0, -1, 11])
def test_a_piece_that_fits_no_bin_is_a_mistake(size: int) -> None:
    with pytest.raises(ValueError, match="sizes must be from 1 to 10"):
        best_fit_decreasing([1, size], 10)
