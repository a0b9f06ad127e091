"""A file that one process at a time holds; the kernel lets go of it when that process dies, however it does."""

from __future__ import annotations

import fcntl
import logging
import os
from pathlib import Path
from typing import BinaryIO

# A pipe would be waited for, and a link be another's file.
_OPEN = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW

log = logging.getLogger("fedlora.files")


def hold(path: Path, *, waits: bool = False) -> BinaryIO:
    """The file, made where it is missing, which this process holds until it is closed.

    Raises BlockingIOError where another process holds it and nobody `waits`, OSError where it cannot be written.
    """
    file = os.fdopen(os.open(path, _OPEN, 0o666), "ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX if waits else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise
    except OSError as error:  # some network file systems have no locks
        log.warning("%s cannot be locked (%s): let no second process work there", path, error.strerror)
    return file


def is_held(path: Path) -> bool:
    """Whether another process holds the file now; it is neither made nor changed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False
