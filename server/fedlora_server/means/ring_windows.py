"""How the numbers of a term become integers: the window that they belong to, and the rounding in it, in plain numpy."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

WIDTH = 14  # bits: of a window
BITS = 34  # that a window's largest number has below it
LOWEST = -5  # window: what is smaller is rounded as there

# What stands in the place of a window.
NOT_FINITE = 1 << 40
ALL_ZERO = NOT_FINITE + 1
EMPTY = NOT_FINITE + 3  # a sum that has no window yet

_NEAREST = 6755399441055744.0  # 1.5 * 2^52: what is added to it is rounded to an integer, in its lowest bits
_NEAREST_BITS = np.int64(0x4338000000000000)
_BLOCK = 1 << 14  # numbers that a cache has room for, in float64


class Term(NamedTuple):
    """An array [rows, columns], as large as the sum or a leading part of it, and its weight: below 0 to take it back."""

    array: NDArray[np.float32]
    weight: float


def window_of(array: NDArray[np.float32], weight: float) -> int:
    """That of the largest magnitude of `array` times `weight`; or NOT_FINITE or ALL_ZERO."""
    largest = max(float(array.max(initial=0)), -float(array.min(initial=0)))  # NaN is the largest and the smallest
    if not math.isfinite(largest):
        return NOT_FINITE
    if not largest:
        return ALL_ZERO
    top = math.frexp(largest)[1] + math.frexp(weight)[1]
    return max(LOWEST, -(-top // WIDTH))


def exponent(window: int) -> int:
    """That of the power of two which a window's integers count."""
    return (window - 1) * WIDTH - BITS


def add_rounded(total: NDArray[np.int64], array: NDArray[np.float32], weight: float, window: int) -> None:
    """Add what `array` times `weight` is in `window` to the leading part of `total`, some rows at a time."""
    fraction, power = math.frexp(weight)
    scale = math.ldexp(fraction, power - exponent(window))
    rows, columns = array.shape
    step = max(1, _BLOCK // columns)
    for start in range(0, rows, step):
        scaled = array[start : start + step].astype(np.float64)
        scaled *= scale
        scaled += _NEAREST
        integers = scaled.view(np.int64)
        integers -= _NEAREST_BITS
        total[start : min(start + step, rows), :columns] += integers
