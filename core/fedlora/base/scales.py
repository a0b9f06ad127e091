"""The scale and the zero point of each block: two rules for one layout.

    error(s, z) = sum_i (w_i - s (q_i - z))^2        q_i = clip(rint(w_i / s) + z, 0, L - 1)

max-abs: nothing is clipped by more than the grid demands. Symmetric: z = L / 2, and s maps the entry of largest
magnitude, with its sign, to q = 0, so that all of [-L/2, L/2 - 1] is used. Asymmetric: s and z span [min(w, 0), max(w, 0)].

mse: the least error that a search finds. An entry that is clipped by c costs c^2 alone, so with E, the error of max-abs,
no scale that clips by more than sqrt(E) is better (by sqrt(2 E) at both ends together); and one larger than what clips
nothing makes every step coarser, and is better by chance at most. The search tries scales evenly between these two
bounds, each with the windows of codes that keep the lowest entry, the highest, and the middle; symmetric, each with both
signs. Then, a few times, the codes are held and the scale is their least squares:

    s = sum_i w_i (q_i - z) / sum_i (q_i - z)^2

max-abs is the first candidate, and another replaces it only where it is better: no block is worse than by max-abs.

Every operation is elementwise or a sum in an order that the block's size alone decides: a block's result does not depend
on its neighbours, nor on how many numbers a processor adds at once.
"""

# N blocks, B entries of a block (a power of two), L levels = 2^bits

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray

ScaleRule = Literal["max-abs", "mse"]
Floats = NDArray[np.float32]
ScalesAndZeros = tuple[Floats, Floats]  # both [N]; the zeros are whole numbers of [0, L - 1]

_CANDIDATES = 16  # scales between the bounds
_REFINEMENTS = 3  # least squares after the best of them
_CHUNK_ELEMENTS = 1 << 16  # searched at a time: what is tried stays in a core's cache
_MARGIN = 1 - 1e-6  # of an error that counts as less: above float32's rounding of a difference


def max_abs(blocks: Floats, levels: int, symmetric: bool) -> ScalesAndZeros:  # [N, B]
    """The scales that the largest entries decide."""
    low, high = blocks.min(1), blocks.max(1)
    if symmetric:
        scales = _normal(np.where(-low > high, low, high) / -(levels // 2))
        return scales, np.full_like(scales, levels // 2)
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    scales = _normal((high - low) / (levels - 1))
    return scales, np.rint(-low / np.where(scales == 0, 1, scales))


def least_error(blocks: Floats, levels: int, symmetric: bool) -> ScalesAndZeros:  # [N, B]
    """The scales of least squared error that the search finds; in constant memory beyond its result."""
    count, size = blocks.shape
    scales, zeros = np.empty(count, np.float32), np.empty(count, np.float32)
    step = max(1, _CHUNK_ELEMENTS // size)
    for start in range(0, count, step):
        chunk = slice(start, start + step)
        scales[chunk], zeros[chunk] = _searched(blocks[chunk], levels, symmetric)
    return scales, zeros


SCALE_RULES: dict[ScaleRule, Callable[[Floats, int, bool], ScalesAndZeros]] = {"max-abs": max_abs, "mse": least_error}


def _searched(blocks: Floats, levels: int, symmetric: bool) -> ScalesAndZeros:
    search = _Search(blocks, levels, max_abs(blocks, levels, symmetric))
    candidates = _symmetric_candidates if symmetric else _asymmetric_candidates
    # A candidate that overflows has an infinite error or none at all, and is never the better one.
    with np.errstate(all="ignore"):
        for scales, zeros in candidates(blocks, levels, search.errors):
            search.offer(scales, zeros)
        for _ in range(_REFINEMENTS):
            search.refine()
    return search.scales, search.zeros


def _symmetric_candidates(blocks: Floats, levels: int, errors: NDArray[np.float64]) -> Iterator[ScalesAndZeros]:
    low, high = blocks.min(1), blocks.max(1)
    extreme = np.where(-low > high, low, high)
    middle = levels // 2
    zeros = np.full_like(extreme, middle)
    # How much of the extreme the range reaches; at the most, as far as the end opposite q = 0 reaches it too.
    least = (1 - np.sqrt(errors) / np.abs(extreme)).astype(np.float32)
    for reach in _evenly(least, np.float32(middle / (middle - 1))):
        yield reach * extreme / -middle, zeros
        yield reach * extreme / (middle - 1), zeros


def _asymmetric_candidates(blocks: Floats, levels: int, errors: NDArray[np.float64]) -> Iterator[ScalesAndZeros]:
    low, high = np.minimum(blocks.min(1), 0), np.maximum(blocks.max(1), 0)
    least = ((high - low - np.sqrt(2 * errors)) / (levels - 1)).astype(np.float32)
    # With one step to spare, rounding the zero point clips nothing.
    for scales in _evenly(least, (high - low) / (levels - 2)):
        keeps_low = np.clip(np.rint(-low / scales), 0, levels - 1)
        keeps_high = np.clip(levels - 1 - np.rint(high / scales), 0, levels - 1)
        yield scales, keeps_low
        yield scales, keeps_high
        yield scales, np.rint((keeps_low + keeps_high) / 2)


def _evenly(first: Floats, last: Floats | np.float32) -> Iterator[Floats]:
    for i in range(_CANDIDATES):
        yield first + (last - first) * np.float32(i / (_CANDIDATES - 1))


class _Search:
    """The best scales and zero points so far, with their errors, and scratch space to try others."""

    def __init__(self, blocks: Floats, levels: int, first: ScalesAndZeros) -> None:
        self._weights = np.ascontiguousarray(blocks.T)  # [B, N]: every operation runs along N
        self._levels = levels
        self._codes = np.empty_like(self._weights)
        self._wide = np.empty(self._weights.shape)  # float64: no square overflows or vanishes
        self.scales, self.zeros = first
        usable = self.scales != 0
        # A block of zeros, or nearly, has nothing to gain.
        self.errors = np.where(usable, self._errors_of(np.where(usable, self.scales, 1), self.zeros), 0)  # [N]

    def offer(self, scales: Floats, zeros: Floats) -> None:
        """Take `scales` and `zeros` for the blocks where their error is less."""
        errors = self._errors_of(scales, zeros)
        better = (errors < self.errors * _MARGIN) & (_normal(scales) != 0)
        np.copyto(self.errors, errors, where=better)
        np.copyto(self.scales, scales, where=better)
        np.copyto(self.zeros, zeros, where=better)

    def refine(self) -> None:
        """Offer the scales that suit the codes of the best ones so far."""
        codes = self._codes_of(self.scales, self.zeros)
        product = _sum(np.multiply(codes, self._weights, out=self._wide, dtype=np.float64))
        square = _sum(np.multiply(codes, codes, out=self._wide, dtype=np.float64))
        self.offer((product / square).astype(np.float32), self.zeros)

    def _codes_of(self, scales: Floats, zeros: Floats) -> Floats:
        """q - z [B, N], as `quantize` will round it."""
        codes = np.multiply(self._weights, 1 / scales, out=self._codes)
        np.rint(codes, out=codes)
        np.maximum(codes, -zeros, out=codes)
        return np.minimum(codes, self._levels - 1 - zeros, out=codes)

    def _errors_of(self, scales: Floats, zeros: Floats) -> NDArray[np.float64]:
        off = self._codes_of(scales, zeros)
        off *= scales
        off -= self._weights
        np.copyto(self._wide, off)
        np.square(self._wide, out=self._wide)
        return _sum(self._wide)


def _sum(values: NDArray[np.float64]) -> NDArray[np.float64]:  # [B, N] -> [N]
    """The sum over B, by halves; `values` is used up."""
    while len(values) > 1:
        half = len(values) // 2
        values = np.add(values[:half], values[half:], out=values[:half])
    total: NDArray[np.float64] = values[0].copy()
    return total


def _normal(scales: Floats) -> Floats:
    """A block whose scale is subnormal is zero: the scale's inverse would overflow."""
    return np.where(np.abs(scales) < np.finfo(np.float32).tiny, np.float32(0), scales)
