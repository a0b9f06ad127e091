"""What the losses of one round say of its devices together."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

_SQUARES_END = 1e150  # what is larger has no square


def loss_over_devices(loss: Mapping[str, float], examples: Mapping[str, float]) -> dict[str, float]:
    """{measure: loss} of the losses by device; empty where there are none.

    mean             over the devices, each counting alike
    weighted_mean    by the held-out examples of each; only where all of them tell these
    worst_tenth      mean of the largest tenth of the losses, at least one
    std              of the losses over the devices: how far they are spread
    min, max         the best and the worst device
    """
    losses = np.array(list(loss.values()), np.float64)
    if not len(losses):
        return {}
    if (largest := np.abs(losses).max()) > _SQUARES_END:  # in the file of a run that was not ours
        scaled = loss_over_devices({device: value / largest for device, value in loss.items()}, examples)
        return {name: value * float(largest) for name, value in scaled.items()}
    worst = np.sort(losses)[-math.ceil(len(losses) / 10) :]
    found = {
        "mean": losses.mean(), "worst_tenth": worst.mean(), "std": losses.std(), "min": losses.min(), "max": losses.max(),
    }  # fmt: skip
    weights = np.array([examples.get(device, 0) for device in loss], np.float64)
    if weights.all():
        found["weighted_mean"] = np.average(losses, weights=weights)
    return {name: float(value) for name, value in found.items() if math.isfinite(value)}
