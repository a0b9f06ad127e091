"""A sum of arrays that does not depend on the order of its terms, nor on how they were grouped: not in one bit.

Integers have what floating-point numbers lack, (a + b) + c = a + (b + c). So each term, an array times a weight, is rounded
to integers by itself, and what is added are 64-bit integers, whose sums are exact. By its largest magnitude, at most 2^E,
a term belongs to the window c = ceil(E / 14): it is rounded to a multiple of 2^(14 (c - 1) - 34) and added to the sum of
that window. What becomes of a term depends on itself alone, what becomes of the windows only on which terms there were;
at the end the windows are added as float64, from the largest down.

Rounding moves a number by at most 2^-34 of the largest one in its array: for any number above 2^-9 of that, less than
float32's own rounding does. An integer has at most 48 bits, so 2^15 fit into the sum; before there are more, its higher
half is moved aside. Below the lowest window all is rounded to 2^-118. A term that was added can be taken back: to add it
with the opposite weight is to add the opposite integers.

Memory: 8 bytes a number for every window that there is a term in. Terms within 2^14 of each other are in one window, or
on both sides of a border; what a checked update can hold with any weight spans ten.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from fedlora_server.means.ring_kernel import RingKernel, ring_kernel
from fedlora_server.means.ring_windows import ALL_ZERO, NOT_FINITE, Term, add_rounded, exponent, window_of

MOST_TERMS = 1 << 15  # in a sum whose terms have 48 bits
_HALF = 32  # bits
_BLOCK = 1 << 14  # numbers that a cache has room for, in float64

Array = NDArray[np.float32]


@dataclass(slots=True)
class _Window:
    """The sum of the terms of one window: numbers + 2^32 high."""

    numbers: NDArray[np.int64]  # [rows, columns]
    terms: int = 0
    high: NDArray[np.int64] | None = None

    def make_room(self, terms: int) -> None:
        """Be ready for so many more."""
        self.terms += terms
        if self.terms > MOST_TERMS:
            self._carry()
            self.terms = terms + 1  # what is left of those before is smaller than one of them

    def _carry(self) -> None:
        more = self.numbers >> _HALF
        self.numbers -= more << _HALF
        self.high = more if self.high is None else self.high + more

    def take(self, other: _Window) -> None:
        self.make_room(other.terms)
        self.numbers += other.numbers
        if other.high is not None:
            self.high = other.high if self.high is None else self.high + other.high

    def value(self, rows: slice, scale: float) -> NDArray[np.float64]:
        """Some rows of the sum times a power of two: the same for the same sum, however it lies in the two halves."""
        if self.high is None:
            return np.multiply(self.numbers[rows], scale)
        self._carry()
        return np.multiply(self.high[rows].astype(np.float64) * 2.0**_HALF + self.numbers[rows], scale)


class RingSum:
    """sum_k w_k X_k of arrays X_k [rows, columns] in float32, or of leading parts of them."""

    def __init__(self, shape: tuple[int, int], room: NDArray[np.int64] | None = None) -> None:
        """`room` [rows, columns] is memory for the first window, whatever it holds; others find their own."""
        self.shape, self._room = shape, room
        self._own: dict[int, _Window] = {}  # by the number of the window
        self._merged: dict[float, dict[int, _Window]] = {}  # by the factor, then by the window
        self._unsound = 0  # terms that hold NaN or infinity
        self._usual = 0  # the window of the latest term

    def add(self, *terms: Term) -> None:
        """Add terms of one shape. Where they share a window, memory is gone through once."""
        kernel = ring_kernel()
        if kernel and self._own and self._take(kernel, self._usual, terms):
            return
        for rest in range(len(terms)):
            number = window_of(*terms[rest])
            if number == NOT_FINITE:
                self._unsound += 1 if terms[rest].weight > 0 else -1
            elif number != ALL_ZERO:
                self._usual = number
                if kernel and self._take(kernel, number, terms[rest:]):
                    return
                self._take(kernel, number, terms[rest : rest + 1])

    def _take(self, kernel: RingKernel | None, number: int, terms: Sequence[Term]) -> bool:
        """Whether all terms are of this window, to which they are then added."""
        window = self._window(number)
        window.make_room(len(terms))
        if kernel is None:
            for term in terms:
                add_rounded(window.numbers, *term, number)
        elif kernel.add(window.numbers, number, terms) != number:
            window.terms -= len(terms)
            return False
        return True

    def take(self, number: int, numbers: NDArray[np.int64], terms: int) -> None:
        """Add the sum of so many terms of one window; its memory becomes this sum's."""
        if number in self._own:
            self._own[number].take(_Window(numbers, terms))
        else:
            self._own[number] = _Window(numbers, terms)

    def merge(self, other: RingSum, factor: float) -> None:
        """Add the sum of `other` times `factor`; `other` is used up. Sums that are merged with one factor stay exact."""
        self._unsound += other._unsound
        for theirs, windows in other._all():
            mine = self._own if theirs * factor == 1 else self._merged.setdefault(theirs * factor, {})
            for number, window in windows.items():
                if number in mine:
                    mine[number].take(window)
                else:
                    mine[number] = window
        other._own, other._merged = {}, {}

    def mean(self, weight: Fraction, out: Array | None = None) -> Array:  # [rows, columns]
        """The sum by `weight`, in float32; NaN everywhere where a term held a number that is not finite."""
        rows, columns = self.shape
        mean, share = np.empty(self.shape, np.float32) if out is None else out, 1 / float(weight)
        if self._unsound:
            mean.fill(math.nan)
            return mean
        kernel, windows = ring_kernel(), list(self._own.items())
        if kernel and len(windows) == 1 and windows[0][1].high is None and not self._merged:
            kernel.mean(windows[0][1].numbers, 2.0 ** exponent(windows[0][0]), share, mean)
            return mean
        step = max(1, _BLOCK // columns)
        with np.errstate(over="ignore"):  # what is too large is infinite, as in any mean
            for start in range(0, rows, step):
                block = slice(start, start + step)
                mean[block] = self._total(block) * share
        return mean

    def _total(self, rows: slice) -> NDArray[np.float64] | float:
        """Some rows of the sum."""
        total: NDArray[np.float64] | float = 0.0
        for factor, windows in sorted(self._all(), key=lambda pair: pair[0]):
            for number in sorted(windows, reverse=True):
                value = windows[number].value(rows, 2.0 ** exponent(number))
                total = total + (value if factor == 1 else value * factor)
        return total

    def _all(self) -> Iterator[tuple[float, dict[int, _Window]]]:
        yield 1.0, self._own
        yield from self._merged.items()

    def _window(self, number: int) -> _Window:
        if number not in self._own:
            room, self._room = self._room, None
            self._own[number] = _Window(np.empty(self.shape, np.int64) if room is None else room)
            self._own[number].numbers.fill(0)
        return self._own[number]
