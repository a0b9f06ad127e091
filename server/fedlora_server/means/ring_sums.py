"""Many sums of arrays at once, each as a `RingSum` makes it: what the updates of a round are added to.

Nearly always a sum has one window. Those windows lie in one piece of memory, and the kernel adds whole updates to them with
one call: a call from Python for each array would take as long as adding it. Whatever does not fit in there (another window,
numbers that are not finite, more terms than an integer has room for, and all of it where there is no kernel) goes to a
`RingSum` of its own. As the sums are exact, it does not matter which of the two a term went to.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from fedlora_server.means.ring_kernel import ring_kernel
from fedlora_server.means.ring_sum import MOST_TERMS, RingSum
from fedlora_server.means.ring_windows import EMPTY, Term

_MOST_PARTS = 64  # that the kernel puts together
_ROWS, _COLUMNS, _WINDOW, _TERMS = 1, 2, 3, 4  # of a sum, after its address

# The memory of a round's sums is kept for the next round's, at most that of two groups of weights and of their sketches:
# the system takes longer to find it than two updates take to be added.
_spare: deque[NDArray[np.int64]] = deque(maxlen=4)

Array = NDArray[np.float32]
Shape = tuple[int, int]


class Batch:
    """The arrays of some updates, one for each sum or a leading part of it, and the updates' weights."""

    def __init__(self, arrays: Sequence[Sequence[Array]], weights: Sequence[float]) -> None:
        """A weight is below 0 for what is taken back."""
        self.arrays = [[_plain(array) for array in own] for own in arrays]
        self.weights = np.array(weights, np.float64)
        self.terms = np.array(
            [[(_address(array), *array.shape) for array in own] for own in self.arrays], np.int64
        )  # [updates, sums, 3]
        self.left = np.zeros(self.terms.shape[:2], np.uint8)  # [updates, sums], what the kernel does not take


class RingSums:
    """sum_k w_k X_k for each of many arrays. Memory: 8 bytes a number."""

    def __init__(self, shapes: Sequence[Shape]) -> None:
        self.shapes = list(shapes)
        self._kernel = ring_kernel()
        self._own: dict[int, RingSum] = {}  # by the number of the sum: what is not in the table
        self._parts: list[tuple[float, RingSums]] = []  # what was merged, with its factor
        self._room = np.empty(0, np.int64)
        self._table = np.zeros((len(self.shapes), 5), np.int64)
        self._table[:, _ROWS : _COLUMNS + 1] = np.array(self.shapes, np.int64).reshape(-1, 2)
        self._table[:, _WINDOW] = EMPTY

    @property
    def is_empty(self) -> bool:
        """Whether nothing was ever added."""
        return not (len(self._room) or self._own or self._parts)

    def add(self, batch: Batch, first: int = 0, last: int | None = None) -> None:
        """Add to the sums from `first` to before `last` what `batch` has for them."""
        last = len(self.shapes) if last is None else last
        if self._kernel:
            self._make_room()
            if not self._kernel.add_all(self._table, first, last, batch.terms, batch.weights, batch.left):
                return
        left = batch.left[:, first:last] if self._kernel else np.ones((len(batch.arrays), last - first))
        for number, update in np.argwhere(left.T).tolist():
            array, weight = batch.arrays[update][first + number], float(batch.weights[update])
            self._other(first + number).add(Term(array, weight))

    def merge(self, other: RingSums, factor: float) -> None:
        """Add the sums of `other` times `factor`, and what is still added to it. Sums of one factor stay exact."""
        self._parts += [(theirs * factor, part) for theirs, part in other._all()]

    def means(self, weight: Fraction) -> list[Array]:
        """The sums by `weight`, in float32, as `RingSum.mean` has them. They are used up."""
        parts = sorted(self._all(), key=lambda pair: pair[0])
        self._parts = []
        means = [np.empty(shape, np.float32) for shape in self.shapes]
        if self._kernel and self._is_simple(parts):
            self._kernel.means([part._table for _, part in parts], [f for f, _ in parts], 1 / float(weight), means)
        else:
            for number, mean in enumerate(means):
                total = RingSum(self.shapes[number])
                for factor, part in parts:
                    total.merge(part._one(number), factor)
                total.mean(weight, mean)
        for _, part in parts:
            part._let_go()
        return means

    def _is_simple(self, parts: Sequence[tuple[float, RingSums]]) -> bool:
        """Whether all is in the tables, and their integers may be added to each other."""
        terms = sum(part._table[:, _TERMS] for _, part in parts)
        return len(parts) <= _MOST_PARTS and not any(p._own for _, p in parts) and bool(np.all(terms <= MOST_TERMS))

    def _make_room(self) -> None:
        if len(self._room):
            return
        sizes = [math.prod(shape) for shape in self.shapes]
        self._room = _room(sum(sizes))  # in one piece: the system gives it sooner than many small ones
        self._table[:, 0] = _address(self._room) + 8 * np.cumsum([0, *sizes[:-1]])

    def _let_go(self) -> None:
        if len(self._room) and sum(len(room) == len(self._room) for room in _spare) < 2:
            _spare.append(self._room)
        self._room = np.empty(0, np.int64)
        self._table[:, _WINDOW], self._table[:, _TERMS] = EMPTY, 0

    def _one(self, number: int) -> RingSum:
        """One of the sums; it is used up."""
        total = self._own.pop(number, None) or RingSum(self.shapes[number])
        _, rows, columns, window, terms = self._table[number].tolist()
        if terms:
            begin = sum(map(math.prod, self.shapes[:number]))
            total.take(window, self._room[begin : begin + rows * columns].reshape(rows, columns), terms)
        return total

    def _other(self, number: int) -> RingSum:
        if number not in self._own:
            self._own[number] = RingSum(self.shapes[number])
        return self._own[number]

    def _all(self) -> list[tuple[float, RingSums]]:
        return [(1.0, self), *self._parts]


def give_back_spare() -> None:
    """Let go the memory that is kept for the next round."""
    _spare.clear()


def _room(count: int) -> NDArray[np.int64]:
    """Memory for so many numbers, whatever it holds."""
    for place, room in enumerate(_spare):
        if len(room) == count:
            del _spare[place]
            return room
    return np.empty(count, np.int64)


def _plain(array: Array) -> Array:
    """The same numbers, row after row."""
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)


def _address(array: NDArray[np.float32] | NDArray[np.int64]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
