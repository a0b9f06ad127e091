"""What a device remembers in its state folder, and what is told of it: readable whether or not the service runs."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedlora.errors import ConfigError
from fedlora.files.atomic import write_text
from fedlora.files.documents import read_object
from fedlora.files.lock_file import hold
from fedlora.files.ownership import check_own_folder

_MOST_ROUNDS = 1000  # lines of the journal, of which half stay when it is full


@dataclass(frozen=True, slots=True)
class StateFolder:
    """The files of one device. Only its service writes them, but for what is withdrawn."""

    path: Path

    def make(self) -> None:
        """Raises ConfigError where it cannot be written, or others may write there: what lies there is trusted."""
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            (self.path / "log").mkdir(exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"device.state: {self.path}: {error.strerror}; name a folder that may be written"
            ) from None
        check_own_folder(self.path, "device.state", of_group=False)
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise ConfigError(f"device.state: {self.path} may not be written; name a folder that may be")

    @contextmanager
    def held(self, role: str) -> Iterator[None]:
        """In the block, this process is the one that has `role`. Raises ConfigError where another one is."""
        self.make()
        path = self.path / f"{role}.lock"
        try:
            lock = hold(path)
        except BlockingIOError:
            raise ConfigError(
                f"{path}: process {_pid_in(path)} is this device's {role} already; stop it, or wait for its end"
            ) from None
        with lock as file:
            with suppress(OSError):  # a full disk: the lock is what counts
                file.truncate(0)
                file.write(str(os.getpid()).encode("ascii"))
                file.flush()
            yield
            with suppress(OSError):
                file.truncate(0)

    def check_readable(self) -> None:
        """Raise ConfigError where this user may not see what there is to know."""
        if self.path.exists() and not os.access(self.path, os.R_OK | os.X_OK):
            raise ConfigError(
                f"device.state: {self.path} may not be read by this user; take the user that runs the device"
            )

    def holder(self, role: str) -> int | None:
        """The process that has `role`; None where none has."""
        path = self.path / f"{role}.lock"
        try:
            with path.open("r", encoding="ascii") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _pid_in(path) or None
        except OSError:
            return None
        return None

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Keep an object as NAME.json. A full disk costs what is told, and nothing else."""
        with suppress(OSError, ConfigError):
            write_text(self.path / f"{name}.json", json.dumps(content, indent=1) + "\n")

    def read(self, name: str) -> dict[str, Any]:
        """The object of NAME.json; empty where there is none that can be read."""
        try:
            return read_object(self.path / f"{name}.json", ConfigError, "what a device remembers")
        except ConfigError:
            return {}

    def add_round(self, line: Mapping[str, Any]) -> None:
        """Add a line to the journal of rounds."""
        path = self.path / "rounds.jsonl"
        with suppress(OSError, ConfigError):
            lines = [*self.rounds(_MOST_ROUNDS), dict(line)]
            if len(lines) > _MOST_ROUNDS:
                text = "".join(json.dumps(one) + "\n" for one in lines[-_MOST_ROUNDS // 2 :])
                write_text(path, text)
            else:
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")

    def rounds(self, last: int) -> list[dict[str, Any]]:
        """The last lines of the journal; a line that a killed process left half is passed over."""
        found = []
        with suppress(OSError):
            for line in (self.path / "rounds.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()[-last:]:
                with suppress(ValueError):
                    value = json.loads(line)
                    if isinstance(value, dict):
                        found.append(value)
        return found


@dataclass(slots=True)
class Told:
    """What the service tells of itself, kept over restarts."""

    folder: StateFolder
    content: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def begun(cls, folder: StateFolder, **content: Any) -> Told:
        refused = folder.read("status").get("refused")
        told = cls(folder, {**content, "started": now_text(), "refused": refused if isinstance(refused, dict) else {}})
        told.say(doing="waiting")
        return told

    def say(self, **content: Any) -> None:
        self.content |= content
        self.folder.write("status", self.content)

    def refuse(self, reason: str, said: str) -> None:
        """Count a refusal by its word, with what was last said."""
        refused = self.content["refused"]
        before = refused.get(reason)
        count = before.get("count") if isinstance(before, dict) else 0
        refused[reason] = {"count": (count if type(count) is int else 0) + 1, "said": said[:500], "at": now_text()}
        self.say()


def now_text() -> str:
    return datetime.fromtimestamp(time.time(), UTC).astimezone().isoformat(timespec="seconds")


def _pid_in(path: Path) -> int:
    try:
        return int(path.read_text(encoding="ascii") or 0)
    except (OSError, ValueError):
        return 0
