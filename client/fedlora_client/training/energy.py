"""The energy that a piece of work took, where the machine tells: the processor's counters, or the battery's."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(slots=True)
class EnergyMeter:
    """Counts from when it was made."""

    root: Path = Path("/")
    _before: dict[Path, float] = field(default_factory=dict)
    _battery: float | None = None

    def __post_init__(self) -> None:
        self._before, self._battery = self._counters(), self._battery_joules()

    def joules(self) -> tuple[float, str] | None:
        """(energy since then, whose): of the processors (RAPL) or else of the battery; None where nothing tells."""
        now = self._counters()
        if self._before and now.keys() == self._before.keys():
            total = 0.0
            for zone, value in now.items():
                spent = value - self._before[zone]
                total += spent if spent >= 0 else spent + _number(zone / "max_energy_range_uj")  # it went round
            return total / 1e6, "processor"
        battery = self._battery_joules()
        if battery is not None and self._battery is not None and battery < self._battery:
            return self._battery - battery, "battery"
        return None

    def _counters(self) -> dict[Path, float]:
        """Microjoules of each whole processor: the zones within one are part of it."""
        found = {}
        for zone in sorted((self.root / "sys/class/powercap").glob("intel-rapl:*")):
            if zone.name.count(":") == 1:
                with suppress(OSError, ValueError):
                    found[zone] = _number(zone / "energy_uj")
        return found

    def _battery_joules(self) -> float | None:
        for supply in sorted((self.root / "sys/class/power_supply").glob("*")):
            with suppress(OSError, ValueError):
                return _number(supply / "energy_now") * 3600 / 1e6  # microwatt hours
            with suppress(OSError, ValueError):
                return _number(supply / "charge_now") * 3600 / 1e6 * _number(supply / "voltage_now") / 1e6
        return None


def _number(path: Path) -> float:
    return float(path.read_text())
