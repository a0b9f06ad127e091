"""What adds the terms of a RingSum: compiled where it runs, and compared with numpy, bit by bit, before it is used."""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Sequence
from ctypes import c_double, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from fedlora.native import Build, BuildError, cached_library, instruction_flags, loaded_library
from fedlora.row_lora.library import instruction_set
from numpy.typing import NDArray

from fedlora_server.means.ring_windows import (
    ALL_ZERO,
    BITS,
    EMPTY,
    LOWEST,
    NOT_FINITE,
    WIDTH,
    Term,
    add_rounded,
    exponent,
    window_of,
)

SOURCE = Path(__file__).with_name("ring_sum.c")
_FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-ffp-contract=off", "-fno-math-errno")

Array = NDArray[np.float32]


class RingKernel:
    """One loaded library. Any thread may call it, each for a sum of its own."""

    def __init__(self, library: Path) -> None:
        """Raises OSError or AttributeError where the library is damaged."""
        loaded = ctypes.CDLL(str(library))
        self._add, self._mean = loaded.fedlora_ring_add, loaded.fedlora_ring_mean
        self._add.argtypes = (c_void_p, c_void_p, *(c_int64,) * 3, c_void_p, c_int64, c_int64, c_void_p)
        self._add.restype = c_int64
        self._mean.argtypes, self._mean.restype = (c_void_p, c_void_p, c_int64, c_double, c_double), None
        self._add_all, self._means = loaded.fedlora_ring_add_all, loaded.fedlora_ring_means
        self._add_all.argtypes = (c_void_p, *(c_int64,) * 3, c_void_p, c_void_p, c_int64, c_void_p, c_void_p)
        self._add_all.restype = c_int64
        self._means.argtypes = (c_void_p, c_void_p, c_int64, c_int64, c_double, c_void_p, c_void_p)
        self._means.restype = None
        self._ring = np.array([WIDTH, BITS, LOWEST], np.int64)
        self._ring_at = _address(self._ring)

    def add(self, total: NDArray[np.int64], window: int, terms: Sequence[Term]) -> int:
        """`window` where all terms, of one shape, are of it or zero: they are then added to the leading part of `total`.

        Else the window that the only term is of, or what stands in its place; of several, ONE_BY_ONE.
        """
        arrays = [_plain(array) for array, _ in terms]
        rows, columns = arrays[0].shape
        addresses = np.array([_address(array) for array in arrays], np.int64)
        weights = np.array([weight for _, weight in terms], np.float64)
        found: int = self._add(
            _address(addresses), _address(weights), len(terms), rows, columns, _address(total), total.shape[1], window,
            self._ring_at,
        )  # fmt: skip
        return found

    def mean(self, total: NDArray[np.int64], scale: float, share: float, out: Array) -> None:
        """out = total * scale * share"""
        assert total.flags.c_contiguous and out.flags.c_contiguous and total.shape == out.shape
        self._mean(_address(total), _address(out), total.size, scale, share)

    def add_all(
        self,
        sums: NDArray[np.int64],  # [sums, 5]: address, rows, columns, window, terms
        first: int,
        last: int,
        terms: NDArray[np.int64],  # [updates, sums, 3]: address, rows, columns
        weights: NDArray[np.float64],  # [updates]
        left: NDArray[np.uint8],  # [updates, sums]
    ) -> int:
        """Add to the sums from `first` to before `last`. Returns how many terms were left, which `left` tells."""
        found: int = self._add_all(
            _address(sums), len(sums), first, last, _address(terms), _address(weights), len(terms), _address(left),
            self._ring_at,
        )  # fmt: skip
        return found

    def means(
        self, parts: Sequence[NDArray[np.int64]], factors: Sequence[float], share: float, out: Sequence[Array]
    ) -> None:
        """out = share * (the sum of parts * factors), one array for each sum; `factors` ascend."""
        into = np.array([_address(array) for array in out], np.int64)
        tables = np.array([_address(part) for part in parts], np.int64)
        by = np.array(factors, np.float64)
        self._means(_address(tables), _address(by), len(parts), len(parts[0]), share, _address(into), self._ring_at)


@cache
def ring_kernel() -> RingKernel | None:
    """None where there is no C compiler, and where the library adds other bits than numpy does."""
    try:
        kernel = loaded_library(built_library, RingKernel)
    except (BuildError, OSError, AttributeError):
        return None
    if wrong := disagreement(kernel):
        warnings.warn(f"{built_library()}: {wrong}; sums are made in numpy", RuntimeWarning, stacklevel=2)
        return None
    return kernel


def built_library() -> Path:
    """The kernel's shared library, from the cache or compiled now. Raises BuildError."""
    name = instruction_set()
    build = Build(compile_flags=(*_FLAGS, *instruction_flags(name)), link_flags=("-lm",))
    return cached_library(SOURCE, f"ring-sum-{name}", (build,))


def disagreement(kernel: RingKernel) -> str | None:
    """The first sum of which a bit differs from numpy's; None where all agree."""
    return _of_one_sum(kernel) or _of_whole_updates(kernel)


def _of_one_sum(kernel: RingKernel) -> str | None:
    generator = np.random.default_rng(0)
    for power in (-149, -100, -40, -1, 0, 20, 100):
        for weight in (1.0, -3.0, 1e9, 0.1):
            numbers = generator.normal(size=(2, 5, 19)).astype(np.float32)
            x, y = np.ldexp(numbers, power).astype(np.float32)
            x[0, 0] = 0.5 * np.ldexp(1.0, power)  # half of what is rounded
            window = window_of(x, weight)
            got, expected = np.zeros((2, 7, 23), np.int64)
            if kernel.add(got, window, [Term(x, weight)]) != window:
                return f"a sum of numbers near 2^{power} is of another window than numpy's"
            if window not in (NOT_FINITE, ALL_ZERO):
                add_rounded(expected, x, weight, window)
                if window_of(y, weight) == window:
                    kernel.add(got, window, [Term(x, -weight), Term(y, weight)])
                    add_rounded(expected, x, -weight, window)
                    add_rounded(expected, y, weight, window)
            if not np.array_equal(got, expected):
                return f"a sum of numbers near 2^{power} differs from numpy's"
            mean = np.empty(got.shape, np.float32)
            with np.errstate(over="ignore"):
                kernel.mean(got, 2.0**power, 1 / weight, mean)
                if not np.array_equal(mean, (got * 2.0**power * (1 / weight)).astype(np.float32)):
                    return f"a mean of numbers near 2^{power} differs from numpy's"
    return None


def _of_whole_updates(kernel: RingKernel) -> str | None:
    """Two sums, of three updates each; one array is smaller than its sum, and one is of a window that is left."""
    generator, shapes, weights = np.random.default_rng(1), [(3, 700), (4, 5)], np.array([3.0, -1.0, 5.0])
    for power in (-40, 0, 20):
        arrays = [[np.ldexp(generator.normal(size=s), power).astype(np.float32) for s in shapes] for _ in weights]
        arrays[1][1] = np.ascontiguousarray(arrays[1][1][:3, :4])
        arrays[2][0] *= np.float32(2.0 ** (2 * WIDTH))
        got, expected = ([np.zeros(shape, np.int64) for shape in shapes] for _ in range(2))
        windows = [window_of(array, weights[0]) for array in arrays[0]]
        left = np.zeros((len(weights), len(shapes)), np.uint8)
        sums = np.array([(_address(total), *total.shape, EMPTY, 0) for total in got], np.int64)
        terms = np.array([[(_address(a), *a.shape) for a in own] for own in arrays], np.int64)
        others = kernel.add_all(sums, 0, len(shapes), terms, weights, left)
        for update, number in np.ndindex(left.shape):
            array, weight, window = arrays[update][number], float(weights[update]), windows[number]
            if (window_of(array, weight) == window) == left[update, number]:
                return f"updates of numbers near 2^{power} are of other windows than numpy's"
            if not left[update, number]:
                add_rounded(expected[number], array, weight, window)
        if others != left.sum() or not all(map(np.array_equal, got, expected)):
            return f"sums of updates of numbers near 2^{power} differ from numpy's"
        means, factors = [np.empty(shape, np.float32) for shape in shapes], (0.3, 1.0)
        kernel.means([sums, sums], factors, 0.1, means)
        for mean, total, window in zip(means, expected, windows, strict=True):
            values = total * 2.0 ** exponent(window)
            if not np.array_equal(mean, ((0.0 + values * factors[0] + values) * 0.1).astype(np.float32)):
                return f"means of updates of numbers near 2^{power} differ from numpy's"
    return None


def _plain(array: Array) -> Array:
    """The same numbers, row after row."""
    return array if array.flags.carray or array.flags.c_contiguous else np.ascontiguousarray(array)


def _address(array: NDArray[Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
