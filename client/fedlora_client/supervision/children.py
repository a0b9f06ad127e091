"""Children that are started again when they end, later and later while they end at once; and ended by their numbers."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from fedlora.errors import FedloraError
from fedlora.fleet.flower_process import signal_group, start_process

from fedlora_client.service.state import StateFolder, now_text

log = logging.getLogger("fedlora.device")

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
_WORKED_PAUSE_S = 4.0  # before the next start of one that had begun its work, at most twice that
_LIVED_S = 60.0  # after which a child that ends is started again at once
_LOOK_S, _END_S = 0.2, 6.0


@dataclass(slots=True, kw_only=True)
class Child:
    """One process that ought to run."""

    name: str
    command: Callable[[], Sequence[str]]  # asked for at each start
    environment: Mapping[str, str]
    on_line: Callable[[str], None]  # of what it prints
    process: subprocess.Popen[str] | None = None
    starts: int = 0
    _pause_s: float = 0.0
    _began: float = 0.0
    _next: float = 0.0

    def worked(self) -> None:
        """It has begun its work, and what ends it then is no fault of its start: it need not wait long."""
        self._pause_s = min(self._pause_s, _WORKED_PAUSE_S)

    def look(self) -> None:
        """Start it where it is time to, and see whether it has ended."""
        now = time.monotonic()
        if self.process is None:
            if now >= self._next:
                self._start(now)
            return
        code = self.process.poll()
        if code is None:
            return
        self._pause_s = (
            0.0 if now - self._began > _LIVED_S else min(2 * self._pause_s or _FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        )
        self._next, pid, self.process = now + self._pause_s, self.process.pid, None
        signal_group(pid, signal.SIGKILL)  # what it left
        log.warning("%s (process %d) ended with %d; it is started again in %g s", self.name, pid, code, self._pause_s)

    def _start(self, now: float) -> None:
        try:
            self.process, _ = start_process(self.command(), self.environment, self.on_line, signal.SIGTERM)
        except (OSError, FedloraError) as error:
            self._pause_s = min(2 * self._pause_s or _FIRST_PAUSE_S, _LONGEST_PAUSE_S)
            self._next = now + self._pause_s
            log.error("%s was not started: %s; again in %g s", self.name, error, self._pause_s)  # noqa: TRY400
            return
        self.starts, self._began = self.starts + 1, now
        log.info("%s is process %d", self.name, self.process.pid)

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            with suppress(ProcessLookupError):
                self.process.terminate()


@dataclass(slots=True)
class Children:
    """All of a device's, watched by the thread that calls `run`: the kernel ends a child with the thread that made it."""

    children: list[Child]
    state: StateFolder
    stopping: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Until `stopping` is set; then end all, within seconds."""
        told: dict[str, Any] = {}
        try:
            while not self.stopping.is_set():
                for child in self.children:
                    child.look()
                now = {child.name: child.process.pid if child.process else None for child in self.children}
                if now != told:
                    told = now
                    starts = {child.name: child.starts for child in self.children}
                    self.state.write(
                        "processes", {"pids": now, "starts": starts, "supervisor": os.getpid(), "at": now_text()}
                    )
                self.stopping.wait(_LOOK_S)
        finally:
            self._end()

    def _end(self) -> None:
        for child in reversed(self.children):
            child.end()
        until = time.monotonic() + _END_S
        for child in self.children:
            if child.process is None:
                continue
            try:
                child.process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.warning("%s (process %d) does not end; it is killed", child.name, child.process.pid)
                child.process.kill()
                child.process.wait()
            signal_group(child.process.pid, signal.SIGKILL)
        self.state.write("processes", {})
