"""From what processes took to figures: seconds of a device outside training, and bytes beside the payload."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.process import WorkerError


@dataclass(frozen=True, slots=True, kw_only=True)
class Overhead:
    """One message to one device: seconds from the start of Flower's process for it to its end, training left out."""

    flower_s: float  # of that process before the app began and after it had ended
    app_s: float  # of the app, and whom it asks
    cpu_s: float  # of the processor: of all of the device's processes that work for the message

    @property
    def whole_s(self) -> float:
        return self.flower_s + self.app_s


def overheads(
    records: Iterable[Mapping[str, Any]], launches: Mapping[str, Sequence[Mapping[str, float]]], steps: int
) -> Iterator[Overhead]:
    """Of every device in every round. Raises WorkerError where a round has more or fewer processes than one a device."""
    for position, record in enumerate(records):
        for device, costs in record["costs"].items():
            started = launches[device]
            if position >= len(started):
                raise WorkerError(f"{device}: round {record['round']} has no process; it was answered by another's")
            launch, work_s = started[position], costs["work_s"]
            yield Overhead(
                flower_s=launch["wall_s"] - work_s,
                app_s=work_s - steps * costs["step_s"],
                cpu_s=launch["cpu_s"] - steps * costs["step_cpu_s"],
            )


def medians(every: Iterable[Overhead]) -> dict[str, float]:
    """{whole_s, flower_s, app_s, cpu_s} over all devices and rounds."""
    every = list(every)
    return {
        name: statistics.median(getattr(one, name) for one in every)
        for name in ("whole_s", "flower_s", "app_s", "cpu_s")
    }


def bytes_over_payload(records: Iterable[Mapping[str, Any]], wire_bytes: int) -> float:
    """The bytes that went over the network by those of the adapters that were sent and received."""
    payload: int = sum(record["bytes_down"] + record["bytes_up"] for record in records)
    if not payload:
        raise WorkerError("nothing was sent in these rounds")
    return wire_bytes / payload


def median_costs_over_devices(records: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """{cost: median over all devices and rounds}."""
    values: dict[str, list[float]] = {}
    for record in records:
        for costs in record["costs"].values():
            for name, value in costs.items():
                values.setdefault(name, []).append(value)
    return {name: statistics.median(found) for name, found in values.items()}
