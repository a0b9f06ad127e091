"""What a round's training cost each device and, for its reply, the server: `costs` of a round's record, by device.

What EdgeFlowerTune (arXiv:2605.08636) records, too. What a device does not tell is not there.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

COST_UNITS: Mapping[str, str] = {
    "step_s": "local step, s",
    "step_cpu_s": "of the processor, s",
    "work_s": "on the device, s",
    "download_s": "download, s",
    "upload_s": "upload, s",
    "server_s": "server, s",  # of checking the reply and adding it
    "rss_mb": "memory, MB",
    "peak_mb": "at most, MB",
    "bytes_down": "bytes down",
    "bytes_up": "bytes up",
    "joules": "energy, J",
}


def median_costs(records: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """{device: {cost: median over the rounds that it took part in}}, devices in the order of their names."""
    values: dict[str, dict[str, list[float]]] = {}
    for record in records:
        for device, costs in record.get("costs", {}).items():
            for name, value in costs.items():
                values.setdefault(device, {}).setdefault(name, []).append(value)
    return {
        device: {name: statistics.median(values[device][name]) for name in COST_UNITS if name in values[device]}
        for device in sorted(values)
    }
