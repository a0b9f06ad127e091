"""How whoever updates sees the server that serves: a lock that lives as long as its process, and what it has loaded.

The kernel lets go of a lock when its process dies, however it does, and whichever user or namespace of processes it has:
so a server that is killed and started again is another one at once.

    FOLDER/serving.lock            held by the server of this folder
    FOLDER/tone/serving.json       what it serves under that name, or why it does not
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from fedlora.errors import ConfigError, ReleaseError
from fedlora.files.atomic import write_text
from fedlora.files.documents import read_object
from fedlora.files.lock_file import is_held
from fedlora.release.checked import object_of

LOCK, TOLD = "serving.lock", "serving.json"
_WAIT_S, _LOOK_S = 3.0, 0.05  # for whoever only looks at the lock


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What a server says of one name."""

    server: str  # which process: another one has another
    folder: str  # of the version that it was told to serve; "" for none
    error: str = ""  # why it does not


@contextmanager
def serving(releases: Path) -> Iterator[str]:
    """Be the server of a folder, as long as the block runs; the name by which this process is told from the next one.

    Raises ConfigError where another process is, or the folder cannot be written.
    """
    try:
        releases.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(releases / LOCK, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o664)
    except OSError as error:
        raise ConfigError(f"--releases {releases}: {error.strerror}; name a folder that may be written") from None
    try:
        _take(descriptor, releases)
        yield f"{os.getpid()}-{time.time_ns()}"
    finally:
        os.close(descriptor)


def is_served(releases: Path) -> bool:
    """Whether a server is at work in a folder."""
    return is_held(releases / LOCK)


def tell_served(folder: Path, served: Served) -> None:
    """Say what is served under a name. A full disk costs what is told, and nothing else."""
    with suppress(OSError, ConfigError):
        write_text(folder / TOLD, json.dumps(asdict(served)) + "\n")


def read_served(folder: Path) -> Served | None:
    """What the server last said of a name; None where it said nothing that can be read."""
    try:
        values = object_of(
            read_object(folder / TOLD, ReleaseError, "what is served"), TOLD, {"server", "folder", "error"}
        )
    except ReleaseError:
        return None
    return Served(**values) if all(isinstance(value, str) for value in values.values()) else None


def _take(descriptor: int, releases: Path) -> None:
    until = time.monotonic() + _WAIT_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > until:
                raise ConfigError(f"--releases {releases}: another service serves it; name another folder") from None
            time.sleep(_LOOK_S)
