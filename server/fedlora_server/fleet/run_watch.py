"""The run of a fleet, from its start in Flower to its end: begun, watched, and gone on with after whatever ended it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from fedlora.config.run import RunConfig
from fedlora.errors import RunError

from fedlora_server.fleet.control import Control
from fedlora_server.fleet.current_run import COMPLETED, FAILED, RUNNING, CurrentRun, write_current
from fedlora_server.fleet.flower_app import APP
from fedlora_server.run.run_directory import CONFIG, last_round

MOST_FAILURES = 3  # in a row, none of which committed a round
FIRST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 60.0
_GONE_S = 5.0  # without a ServerApp, a run that is running has lost it


class Told(Protocol):
    """What the ServerApp said."""

    error: str


class RunWatch:
    """One run. `tell` gets a line for the operator."""

    def __init__(
        self, current: CurrentRun, path: Path, control: Control, digest: str, tell: Callable[[str], None], log: Told
    ) -> None:
        self.current, self._path, self._control, self._digest, self._tell = current, path, control, digest, tell
        self._log = log
        self._failures, self._committed, self._next = 0, last_round(Path(current.output)), 0.0
        self._was_there = False
        self._gone_since = 0.0

    @property
    def is_over(self) -> bool:
        return self.current.state == COMPLETED

    def begin(self) -> None:
        """Start it in Flower, or go on after its last committed round; what Flower has of it before is ended."""
        self.abandon()
        output = Path(self.current.output)
        goes_on = (output / CONFIG).is_file()
        changes = self.current.config | {"output": str(output), "server.resume": goes_on}
        default = RunConfig().flat()
        changes = {key: value for key, value in changes.items() if value != default[key]}
        run = self._control.start_run(APP, self._digest, changes)
        self._put(replace(self.current, flower_run=run, state=RUNNING))
        self._was_there, self._gone_since = False, 0.0
        self._log.error = ""
        what = f"goes on after round {last_round(output)}" if goes_on else "begins"
        self._tell(f"run {run} {what}: {output}")

    def abandon(self) -> None:
        """End what Flower has of it, if it has not ended."""
        run = self.current.flower_run
        status = self._control.status(run) if run else ""
        if status and not status.startswith("finished"):
            self._control.stop_run(run)

    def look(self, workers: int, now: float) -> None:
        """See how the run is, and start it again where it has failed. `workers`: the living processes of superexec.

        Raises RunError once it failed too often in a row.
        """
        if self._next:
            if now >= self._next:
                self._next = 0.0
                self.begin()
            return
        status = self._control.status(self.current.flower_run)
        if status == "finished:completed":
            self._put(replace(self.current, state=COMPLETED))
        elif status == "" or status.startswith("finished"):
            self._failed(status or "unknown to SuperLink", now)
        elif status == "running":
            self._was_there = self._was_there or workers > 0
            if workers or not self._was_there:
                self._gone_since = 0.0
            elif not self._gone_since:
                self._gone_since = now
            elif now - self._gone_since > _GONE_S:
                self._failed("its ServerApp ended without a word", now)

    def lost(self) -> None:
        """Its ServerApp is known to have ended: it is begun again at the next look."""
        if not self._next:
            self._failed("superexec ended", time.monotonic())

    def _failed(self, why: str, now: float) -> None:
        committed = last_round(Path(self.current.output))
        self._failures = 1 if committed > self._committed else self._failures + 1
        self._committed = committed
        why = f"{why}: {self._log.error}" if self._log.error else why
        if self._failures >= MOST_FAILURES:
            self._put(replace(self.current, state=FAILED))
            raise RunError(
                f"run {self.current.flower_run}: {why}, {self._failures} times in a row without a new round; the adapter "
                f"of round {committed} stands; see logs/run.log, mend what it says, then go on: fedlora server run"
            )
        pause = min(FIRST_PAUSE_S * 2 ** (self._failures - 1), LONGEST_PAUSE_S)
        self._tell(f"run {self.current.flower_run}: {why}; it goes on after round {committed} in {pause:g} s")
        self._next = now + pause

    def _put(self, current: CurrentRun) -> None:
        write_current(self._path, current)
        self.current = current
