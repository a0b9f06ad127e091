"""An order of a round's updates that is the same however they arrived: by their weights, then by their numbers.

Nothing else of an update reaches a mean, so that two which this order cannot tell apart may change places. What a device is
called, and the number of its node, do not matter: a run on other nodes has the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cmp_to_key

import numpy as np
from fedlora.lora.adapter import Adapter
from numpy.typing import NDArray


def fixed_order(adapters: Sequence[Adapter], weights: Sequence[float]) -> list[int]:
    """Their places, in that order."""

    def compared(one: int, other: int) -> int:
        if weights[one] != weights[other]:
            return -1 if weights[one] < weights[other] else 1
        return _compared(adapters[one], adapters[other])

    return sorted(range(len(adapters)), key=cmp_to_key(compared))


def same_numbers(one: Adapter, other: Adapter) -> bool:
    """Whether the adapters are equal, bit by bit, in modules of the same names."""
    return one.pairs.keys() == other.pairs.keys() and not _compared(one, other)


def _compared(one: Adapter, other: Adapter) -> int:
    """Below 0, 0 or above 0, as the first that differs of the ranks and numbers; equal ones of a round have one memory."""
    for module, mine in one.pairs.items():
        theirs = other.pairs[module]
        if mine.rank != theirs.rank:
            return mine.rank - theirs.rank
        for a, b in ((mine.lora_B, theirs.lora_B), (mine.lora_A, theirs.lora_A)):
            if a.__array_interface__["data"] != b.__array_interface__["data"] and (difference := _difference(a, b)):
                return difference
    for name, array in one.extras.items():
        if difference := _difference(np.atleast_2d(array), np.atleast_2d(other.extras[name])):
            return difference
    return 0


def _difference(a: NDArray[np.float32], b: NDArray[np.float32]) -> int:
    """By the first bits that differ: those of the first row decide nearly always."""
    for rows in (np.s_[:1], np.s_[1:]):
        mine, theirs = (np.ascontiguousarray(array[rows]).view(np.uint32).ravel() for array in (a, b))
        differ = mine != theirs
        if differ.any():
            first = int(differ.argmax())
            return 1 if mine[first] > theirs[first] else -1
    return 0
