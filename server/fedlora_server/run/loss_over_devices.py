"""What the losses, or the accuracies, of one round say of its devices together."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

_SQUARES_END = 1e150  # what is larger has no square


def loss_over_devices(loss: Mapping[str, float], examples: Mapping[str, float]) -> dict[str, float]:
    """{measure: loss} of the losses by device; empty where there are none.

    mean             over the devices, each counting alike
    weighted_mean    by the held-out examples of each; only where all of them tell these
    median           half of the devices are below
    worst_tenth      mean of the largest tenth of the losses, at least one
    std              of the losses over the devices: how far they are spread
    min, max         the best and the worst device
    measured         the number of devices
    """
    return _over_devices(loss, examples, worst_is_largest=True)


def accuracy_over_devices(accuracy: Mapping[str, float], examples: Mapping[str, float]) -> dict[str, float]:
    """The same of the accuracies by device, of which the worst tenth are the least."""
    return _over_devices(accuracy, examples, worst_is_largest=False)


def _over_devices(
    by_device: Mapping[str, float], examples: Mapping[str, float], *, worst_is_largest: bool
) -> dict[str, float]:
    values = np.array(list(by_device.values()), np.float64)
    if not len(values):
        return {}
    if (largest := np.abs(values).max()) > _SQUARES_END:  # in the file of a run that was not ours
        smaller = {device: value / largest for device, value in by_device.items()}
        scaled = _over_devices(smaller, examples, worst_is_largest=worst_is_largest)
        return {name: value * float(largest) for name, value in scaled.items() if name != "measured"} | {
            "measured": float(len(values))
        }
    tenth, in_order = math.ceil(len(values) / 10), np.sort(values)
    worst = in_order[-tenth:] if worst_is_largest else in_order[:tenth]
    found = {
        "mean": values.mean(), "median": np.median(values), "worst_tenth": worst.mean(), "std": values.std(),
        "min": values.min(), "max": values.max(), "measured": len(values),
    }  # fmt: skip
    weights = np.array([examples.get(device, 0) for device in by_device], np.float64)
    if weights.all():
        found["weighted_mean"] = np.average(values, weights=weights)
    return {name: float(value) for name, value in found.items() if math.isfinite(value)}
