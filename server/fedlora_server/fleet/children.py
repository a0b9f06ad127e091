"""Flower's processes under `fedlora server run`: started, started again when they die, ended by their pid."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from fedlora.errors import RunError
from fedlora.fleet.flower_process import signal_group, start_process

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
SETTLED_S = 60.0  # alive for that long, it has started well
MOST_DEATHS = 6  # in a row, none of them settled
_END_S = 4.0  # SuperLink waits for the connections of its devices, which stay open


class Child:
    """One process and whatever it starts, as a group. `on_line` gets every line that they write, from another thread."""

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], on_line: Callable[[str], None]
    ) -> None:
        self.name, self._command, self._environment, self._on_line = name, list(command), environment, on_line
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._began = self._next = 0.0
        self._deaths = 0

    @property
    def pid(self) -> int:
        """Of the process, and of its group."""
        return self._process.pid if self._process else 0

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it, from the main thread: the kernel ends it with the thread that started it."""
        self._began = time.monotonic()
        self._process, self._reader = start_process(self._command, self._environment, self._on_line, signal.SIGKILL)

    def revive(self, now: float) -> bool:
        """Start it again if it has died and its pause is over; whether it was started.

        Raises RunError after too many deaths in a row.
        """
        if self.is_alive:
            return False
        if not self._next:
            self._deaths = self._deaths + 1 if now - self._began < SETTLED_S else 1
            code = self._process.returncode if self._process else None
            if self._deaths > MOST_DEATHS:
                raise RunError(
                    f"{self.name} ended {self._deaths} times in a row, at last with {code}; see its log in logs/, mend "
                    "what it says, and start again"
                )
            pause = min(FIRST_PAUSE_S * 2 ** (self._deaths - 1), LONGEST_PAUSE_S)
            self._next = now + pause
            self.end()  # what it started
            return False
        if now < self._next:
            return False
        self._next = 0.0
        self.start()
        self._began = now
        return True

    def end(self) -> None:
        """End the group: SIGTERM, and after a while SIGKILL. Nothing happens where it has ended."""
        if self._process is None:
            return
        deadline = time.monotonic() + _END_S
        self._signal(signal.SIGTERM)
        while time.monotonic() < deadline and (self._process.poll() is None or members(self.pid)):
            time.sleep(0.05)
        self._signal(signal.SIGKILL)
        self._process.wait()
        if self._reader is not None:
            self._reader.join(_END_S)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        if self._process.poll() is None or members(self.pid):  # else the number may be another's by now
            signal_group(self._process.pid, number)


def members(group: int) -> list[int]:
    """The living processes of a group but its first; none where the system does not tell (Linux does)."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            state, _, its_group = entry.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state not in "ZX" and int(entry.parent.name) != group:
                found.append(int(entry.parent.name))
    return found
