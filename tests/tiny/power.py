"""A power cut at one write to a folder: what comes after it does not happen, not even the clearing up.

Python tells an audit hook of each file that is opened for writing, and of each name that is made, changed or taken away
(docs.python.org/3/library/audit_events.html), before it happens. From the chosen one on, all of them raise.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedlora.files import temporary

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_NAMES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate")


class PowerCut(BaseException):
    """The machine is off."""


class Power:
    """Counts the writes below a folder while it is on."""

    def __init__(self) -> None:
        self.folder, self.writes, self.cut_at, self.is_watched = "", 0, -1, False
        sys.addaudithook(self._hear)  # for as long as the process lives: there is no way to take one out

    def _hear(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self.is_watched:
            return
        if event == "open":
            path, _, flags = arguments
            if not (isinstance(flags, int) and flags & _WRITES):
                return
        elif event in _NAMES:
            path = arguments[0]
        else:
            return
        if not isinstance(path, (str, bytes, os.PathLike)) or not os.fsdecode(path).startswith(self.folder):
            return
        self.writes += 1
        if 0 <= self.cut_at < self.writes:
            raise PowerCut(f"{event} {os.fsdecode(path)}")


POWER = Power()


@contextmanager
def power(folder: Path, cut_at: int = -1) -> Iterator[Power]:
    """Count the writes below `folder`, and cut the power before that of number `cut_at` (from 0); -1: never.

    After the block the machine is started again: locks that the dead process held are gone.
    """
    descriptors = Path("/proc/self/fd")
    held = set(descriptors.iterdir())
    POWER.folder, POWER.writes, POWER.cut_at, POWER.is_watched = str(folder), 0, cut_at, True
    try:
        with suppress(PowerCut):
            yield POWER
    finally:
        POWER.is_watched = False
        for descriptor in set(descriptors.iterdir()) - held:
            with suppress(OSError):
                if descriptor.readlink().is_relative_to(folder):
                    os.close(int(descriptor.name))
        temporary._cleared.clear()
