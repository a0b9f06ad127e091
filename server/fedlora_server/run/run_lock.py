"""One server at a time in the directory of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedlora.errors import ConfigError
from fedlora.files.lock_file import hold

LOCK = "lock"
IN_USE = "{run} is in use: another server runs its rounds there; wait for its end, or name another output"


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold RUN/lock, making both where they are missing.

    Raises ConfigError where another server holds it, or `run` cannot be written to.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock = hold(run / LOCK)
    except BlockingIOError:
        raise ConfigError(IN_USE.format(run=run)) from None
    except OSError as error:
        raise ConfigError(f"{run}: cannot be written: {error.strerror}; name another output") from None
    with lock:
        yield
