"""The same signs for the same components: an SVD leaves them to chance, and rounding in another order may turn some."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from fedlora.lora.adapter import Adapter, LoraPair


def with_signs(adapter: Adapter) -> Adapter:
    """The same product, bit by bit: the largest entry of each row of A is positive, its column of B is turned with it."""
    pairs = {}
    for module, pair in adapter.pairs.items():
        largest = np.take_along_axis(pair.lora_A, np.abs(pair.lora_A).argmax(1)[:, None], 1)[:, 0]
        sign = np.where(largest < 0, np.float32(-1), np.float32(1))  # [R]
        pairs[module] = LoraPair(pair.lora_A * sign[:, None], pair.lora_B * sign)
    return replace(adapter, pairs=pairs)
