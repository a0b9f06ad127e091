"""What Linux tells of the machine: its power, and whether it has other work."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_BUSY_PERCENT = 10.0  # of the last minute, in which something waited for a core
_BUSY_LOAD = 0.5  # processes for each core, where the kernel does not tell the former
_OUTSIDE = ("Mains", "USB", "Wireless")  # types of power supplies that are no batteries
_NOT_DRAINING = ("Charging", "Full", "Not charging")


@dataclass(frozen=True, slots=True)
class Machine:
    """Read below `root`, which on a real one is /."""

    root: Path = Path("/")

    def battery_percent(self) -> float | None:
        """Of the emptiest battery of the machine itself; None where it has none."""
        levels = []
        for supply in self._batteries():
            with suppress(OSError, ValueError):
                levels.append(float((supply / "capacity").read_text()))
        return min(levels, default=None)

    def on_mains(self) -> bool:
        """Whether power comes from outside; a machine without a battery has no other."""
        batteries = self._batteries()
        outside = [_text(supply / "online") for supply in self._supplies() if _text(supply / "type") in _OUTSIDE]
        if any(online not in ("", "0") for online in outside) or not batteries:
            return True
        return not outside and all(_text(battery / "status") in _NOT_DRAINING for battery in batteries)

    def is_idle(self) -> bool:
        """Whether nothing waits for the cores: over the last minute, by the kernel's pressure or else by the load."""
        pressure = re.search(r"^some .*avg60=([\d.]+)", _text(self.root / "proc/pressure/cpu"), re.MULTILINE)
        if pressure:
            return float(pressure[1]) < _BUSY_PERCENT
        load = _text(self.root / "proc/loadavg").split()
        return not load or float(load[0]) < _BUSY_LOAD * (os.cpu_count() or 1)

    def _supplies(self) -> list[Path]:
        with suppress(OSError):
            return sorted((self.root / "sys/class/power_supply").iterdir())
        return []

    def _batteries(self) -> list[Path]:
        """Those of the machine: a mouse has one too."""
        return [
            supply for supply in self._supplies()
            if _text(supply / "type") == "Battery" and _text(supply / "scope") != "Device"
        ]  # fmt: skip


HERE = Machine()  # the one that this runs on


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""
