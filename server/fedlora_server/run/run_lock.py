"""One server at a time in the directory of a run."""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedlora.errors import ConfigError

LOCK = "lock"

log = logging.getLogger("fedlora.server")


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold RUN/lock, making both where they are missing; the kernel lets go of it when the process dies, however it does.

    Raises ConfigError where another server holds it, or `run` cannot be written to.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = (run / LOCK).open("ab")
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
