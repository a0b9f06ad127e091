"""The filters of sampling, each as a floor: a token is kept where its value is at least the floor.

Tokens of equal value are kept or left out together, so that no result depends on how they are numbered.
"""

# V values

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fedlora_serve.text.running_sum import first_above


def top_k_floor(scores: NDArray[np.float32], k: int) -> float:  # [V]
    """The k-th largest score."""
    place = len(scores) - k
    return float(np.partition(scores, place)[place])


def min_p_floor(largest: float, temperature: float, share: float) -> float:
    """The score of a token that is `share` (above 0) times as likely as that of the largest score (arXiv:2407.01082)."""
    return largest + temperature * math.log(share)


def top_p_floor(weights: NDArray[np.float32], share: float) -> float:  # [V]
    """The weight of the least likely token in the nucleus: the fewest largest weights that add up to `share` of all.

    Nucleus sampling, arXiv:1904.09751. Only what can be in it is sorted: the weights below (1 - share) / V of the sum are
    together less than 1 - share of it, so that the others are enough. Of a peaked distribution they are few.
    """
    total = float(weights.sum(dtype=np.float64))
    enough = weights.compress(weights >= (1 - share) * total / len(weights))
    enough.sort()
    largest_first = enough[::-1]
    place = first_above(largest_first, float(np.nextafter(share * total, 0)))  # the first that is at least the share
    return float(largest_first[place])
