"""What a run's ServerApp says, line by line, as SuperLink keeps it (`flwr log`)."""

from __future__ import annotations

import threading
from collections.abc import Callable

from fedlora.errors import RunError

from fedlora_server.fleet.control import control_of
from fedlora_server.fleet.settings import FleetSettings

_AGAIN_S = 2.0


class RunLog:
    """Follows one run at a time. `on_line` gets its lines, from another thread."""

    def __init__(self, settings: FleetSettings, on_line: Callable[[str], None]) -> None:
        self._settings, self._on_line = settings, on_line
        self._run = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def follow(self, run: int) -> None:
        """From the first line of this run on, and none of another's any more."""
        if run != self._run:
            self._stop.set()
            self._run, self._stop = run, threading.Event()
            self._thread = threading.Thread(target=self._read, args=(run, self._stop), daemon=True)
            self._thread.start()

    def end(self, timeout_s: float) -> None:
        """Give the last lines some time to come."""
        if self._thread is not None:
            self._thread.join(timeout_s)
        self._stop.set()

    def _read(self, run: int, stop: threading.Event) -> None:
        after, rest = 0.0, ""
        while not stop.is_set():
            try:
                with control_of(self._settings) as control:
                    for text, stamp in control.log(run, after):
                        if stop.is_set():
                            return
                        *lines, rest = (rest + text).split("\n")
                        after = max(after, stamp)
                        for line in lines:
                            self._on_line(line)
                return  # the run is over
            except RunError:
                stop.wait(_AGAIN_S)
