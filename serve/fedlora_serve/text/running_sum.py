"""Where the running sum of many weights passes a target, by the sums of blocks: a running sum of all would be slow."""

# N weights

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BLOCK = 1024


def first_above(weights: NDArray[np.float32], target: float) -> int:  # [N], at least 0, and not all of them
    """The first place whose running sum is above `target`; the last that adds something where rounding leaves none."""
    starts = np.arange(0, len(weights), _BLOCK)
    block, rest = _place(np.add.reduceat(weights, starts, dtype=np.float64), target)
    start = int(starts[block])
    return start + _place(weights[start : start + _BLOCK], rest)[0]


def _place(weights: NDArray[np.floating], target: float) -> tuple[int, float]:
    """The place, and how far above the sum of those before it the target lies."""
    sums = weights.cumsum(dtype=np.float64)
    target = min(target, float(np.nextafter(sums[-1], 0)))
    place = int(np.searchsorted(sums, target, side="right"))
    return place, target - float(sums[place - 1] if place else 0)
