"""A file of a stranger, read whole within a bound: whatever lies under its name, and whoever changes it meanwhile."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """The content of a plain file. Raises OSError for anything else: no pipe is waited for, no device read.

    It is opened once, and what is open is looked at: a check of the name would be of another file than the one that is
    read. No more than `max_bytes` + 1 are read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))  # a pipe would be waited for
    with os.fdopen(descriptor, "rb") as file:
        return read_open(file, path, max_bytes)


def read_open(file: BinaryIO, path: Path, max_bytes: int) -> bytes:
    """As `read_bounded`, of a file that is open already, and was opened without waiting."""
    status = os.fstat(file.fileno())
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a plain file", str(path))
    content = b"" if status.st_size > max_bytes else file.read(max_bytes + 1)
    if len(content) > max_bytes or status.st_size > max_bytes:
        raise OSError(errno.EFBIG, f"more than {max_bytes} bytes", str(path))
    return content
