"""What its part of a round cost a device, beside its answer: the record `costs`, a Flower MetricRecord of these names."""

from __future__ import annotations

from collections.abc import Mapping

COSTS = "costs"  # the record
TOLD = (
    "step_s",  # a step of training, in the mean, ...
    "step_cpu_s",  # ... and of the processor, by all threads of the process
    "work_s",  # from the question to the answer, on the device
    "rss_mb",  # physical memory of the process that trains: after each step, in the mean, ...
    "peak_mb",  # ... and at most
    "joules",  # where the machine tells
)
_MOST = float(1 << 53)


def told_costs(values: Mapping[str, object]) -> dict[str, float]:
    """Those of the named values that can be a cost, whoever sent them."""
    found = {name: values[name] for name in TOLD if name in values}
    return {
        name: float(value) for name, value in found.items()
        if isinstance(value, int | float) and 0 <= value < _MOST  # NaN is neither
    }  # fmt: skip
