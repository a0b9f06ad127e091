"""What a run's ServerApp says, line by line, as SuperLink keeps it (`flwr log`)."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable

from fedlora.errors import RunError
from fedlora.fleet.flower_lines import without_colours

from fedlora_server.fleet.control import control_of
from fedlora_server.fleet.roll import MARK
from fedlora_server.fleet.settings import FleetSettings

_AGAIN_S = 2.0


_ERROR = re.compile(r"^fedlora[\w.]*\.(\w+Error): (.*)")  # the last line of a traceback


class RunLog:
    """Follows one run at a time, from another thread: `keep` gets all lines, and `tell` those of ours."""

    def __init__(self, settings: FleetSettings, tell: Callable[[str], None], keep: Callable[[str], None]) -> None:
        self._settings, self._tell, self._keep = settings, tell, keep
        self.error = ""  # what the ServerApp said last before it failed
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

    def _hear(self, line: str) -> None:
        self._keep(line)
        if line.startswith(MARK):
            self._tell(line.removeprefix(MARK))
        elif found := _ERROR.match(line):
            self.error = found[2]

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
                            self._hear(without_colours(line))
                return  # the run is over
            except RunError:
                stop.wait(_AGAIN_S)
