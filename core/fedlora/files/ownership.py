"""Whose a file is, and who else may read or write it: looked at through the descriptor that is then read.

A secret is for its user alone. One that root hands out may be readable by a group too, as PostgreSQL takes its keys: so a
container that does not run as root reads what is mounted into it (Kubernetes: mode 0440 and the pod's fsGroup). Links are
followed, for there a secret is one; what counts is the file that they lead to.
"""

from __future__ import annotations

import os
import shlex
import stat
from pathlib import Path

from fedlora.errors import ConfigError
from fedlora.files.bounded import read_open

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_NOBODY_ELSE, _NOT_BY_OTHERS = 0o077, 0o037  # bits that a secret of ours, and one of root's, must not have
ROOT = 0


def is_others(status: os.stat_result) -> bool:
    """Whether a file or a folder belongs to another user than this one and root, or others may write it."""
    return hasattr(os, "getuid") and (status.st_uid not in (os.getuid(), ROOT) or bool(status.st_mode & _OTHERS_WRITE))


def read_secret(path: Path, max_bytes: int, where: str) -> bytes:
    """The content of a plain file that nobody else may read or write, opened once. Raises OSError where it cannot be read.

    Raises ConfigError, which begins with `where` and holds nothing of the content, where it is open to others.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))  # a pipe would be waited for
    with os.fdopen(descriptor, "rb") as file:
        if stat.S_ISREG((status := os.fstat(descriptor)).st_mode) and (told := _open_to_others(status, path)):
            raise ConfigError(f"{where}: {path}: {told}")
        return read_open(file, path, max_bytes)


def check_own_folder(folder: Path, what: str, *, of_group: bool = True) -> None:
    """Raise ConfigError for a folder into which any user may put files, where those that lie there are trusted.

    Without `of_group`, for one into which those of its group may, too.
    """
    try:
        status = folder.stat()
    except OSError:
        return  # it is not there yet, and is made for this user
    taken, others, letters = (stat.S_IWOTH, "every user", "o-w") if of_group else (_OTHERS_WRITE, "others", "go-w")
    if hasattr(os, "getuid") and stat.S_ISDIR(status.st_mode) and status.st_mode & taken:
        raise ConfigError(
            f"{what} {folder}: {others} may write into it (mode {_mode(status)}), and what lies there is trusted; close "
            f"it with: chmod {letters} {shlex.quote(str(folder))}, or name a folder in it"
        )


def open_to_others(path: Path) -> str:
    """Who else may read or write a file that holds a secret beside other things, and what closes it; empty for nobody."""
    try:
        return _open_to_others(path.stat(), path)
    except OSError:
        return ""


def mode_open_to_others(path: Path) -> str:
    """As `open_to_others`, whoever the file belongs to: it is one that somebody gave to this user, and is read once."""
    status = path.stat()
    taken = _NOT_BY_OTHERS if status.st_uid == ROOT else _NOBODY_ELSE
    if not hasattr(os, "getuid") or not status.st_mode & taken:
        return ""
    return (
        f"others may read or write it (mode {_mode(status)}), and it holds a key; close it with: chmod 600 "
        f"{shlex.quote(str(path))}"
    )


def _open_to_others(status: os.stat_result, path: Path) -> str:
    """Who else may read or write a secret, and what closes it; empty where nobody may."""
    if not hasattr(os, "getuid"):
        return ""
    quoted, mode = shlex.quote(str(path)), _mode(status)
    if status.st_uid == os.getuid() and not status.st_mode & _NOBODY_ELSE:
        return ""
    if status.st_uid == ROOT and not status.st_mode & _NOT_BY_OTHERS:
        return ""
    if status.st_uid == os.getuid():
        mounted = ", or, where it is mounted into a container, defaultMode: 0400" if status.st_uid == ROOT else ""
        return (
            f"others may read or write it (mode {mode}), and it holds a key; close it with: chmod 600 {quoted}{mounted}"
        )
    if status.st_uid == ROOT:
        return (
            f"root's, and others may read or write it (mode {mode}), and it holds a key; close it as root with: chmod 640 "
            f"{quoted}, or, where it is mounted into a container, with defaultMode: 0440 and fsGroup"
        )
    return (
        f"it belongs to user {status.st_uid}, and holds a key; expected one of this user ({os.getuid()}) or of root: as "
        f"root, chown {os.getuid()} {quoted} && chmod 600 {quoted}"
    )


def _mode(status: os.stat_result) -> str:
    return f"{stat.S_IMODE(status.st_mode):04o}"
