"""One server at a time in the directory of a run."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedlora.errors import ConfigError

LOCK = "lock"

_OPEN = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW

log = logging.getLogger("fedlora.server")


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold RUN/lock, making both where they are missing; the kernel lets go of it when the process dies, however it does.

    Raises ConfigError where another server holds it, or `run` cannot be written to.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = os.fdopen(
            os.open(run / LOCK, _OPEN, 0o666), "ab"
        )  # a pipe would be waited for, a link be another's file
    except OSError as error:
        raise ConfigError(f"{run}: cannot be written: {error.strerror}; name another output") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{run} is in use: another server runs its rounds there; wait for its end, or name another output"
            ) from None
        except OSError as error:  # some network file systems have no locks
            log.warning("%s cannot be locked (%s): start no second server on it", run, error.strerror)
        yield
