"""Files and folders in the making, and folders for a while: gone when they are done with, whatever became of the process.

A process that is killed cannot clear up. So each of them has a lock beside it, which the kernel lets go of when its process
dies, however it does; whoever makes the next one in the same place takes away what nobody holds any more:

    .pack.temp-5f0c93aa-k2j8x_1q         in the making, to become `pack`
    .pack.temp-5f0c93aa-k2j8x_1q.lock    held while its process lives
    .pack.temp-5f0c93aa-k2j8x_1q.old     the `pack` that it takes the place of, which is put back where that did not happen

The first number is the machine's: on a disk that several share, locks of another one may not be seen. Only what this user
owns is taken away, and no link is followed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import shutil
import stat
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from random import SystemRandom

from fedlora.errors import ConfigError

if sys.platform != "win32":
    import fcntl

_LETTERS, _LENGTH = "abcdefghijklmnopqrstuvwxyz0123456789_", 8
_MACHINE = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
_LOCK = re.compile(rf"(?P<stem>\.?(?P<name>.+)\.temp-{_MACHINE}-[a-z0-9_]{{{_LENGTH}}})\.lock", re.DOTALL)
_OPEN = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)

_cleared: set[str] = set()
_clearing = threading.Lock()


class Reserved:
    """A path that nobody else uses, for what is made there; `release` takes away what is still at it."""

    def __init__(self, parent: Path, name: str) -> None:
        """`name` is what it is called before its number. Raises OSError."""
        clear_leftovers(parent)
        parent = Path(os.path.abspath(parent))
        self.path, self._descriptor = _reserved(parent, name)
        self._release = weakref.finalize(self, _released, self.path, self._descriptor, os.getpid())

    @property
    def old(self) -> Path:
        """Where that which it takes the place of is meanwhile."""
        return Path(f"{self.path}.old")

    def release(self) -> None:
        self._release()

    def leave(self) -> None:
        """Let go of it as a killed process would: whoever makes the next one there puts back what it stood in for."""
        if self._release.detach() is not None:
            os.close(self._descriptor)
            with _clearing:
                _cleared.discard(os.path.realpath(self.path.parent))


class OwnFolder(Reserved):
    """An empty folder for this user alone."""

    def __init__(self, purpose: str, parent: Path | None = None) -> None:
        """In `parent`, or in the system's place for temporary files ($TMPDIR). Raises ConfigError without room for it."""
        place = parent or Path(tempfile.gettempdir())
        try:
            super().__init__(place, f"fedlora-{purpose}" if parent is None else f".{purpose}")
            self.path.mkdir(mode=0o700)
        except OSError as error:
            elsewhere = "place in $TMPDIR" if parent is None else "output"
            raise ConfigError(
                f"{place}: no folder can be made there: {error.strerror}; name another {elsewhere}"
            ) from None


@contextlib.contextmanager
def own_folder(purpose: str, parent: Path | None = None) -> Iterator[Path]:
    """An `OwnFolder` as long as the block runs. Raises ConfigError."""
    folder = OwnFolder(purpose, parent)
    try:
        yield folder.path
    finally:
        folder.release()


def clear_leftovers(parent: Path) -> None:
    """Take away what killed processes left in `parent`; looked for once by each process."""
    place = os.path.realpath(parent)
    with _clearing:
        if place in _cleared:
            return
        _cleared.add(place)
    with contextlib.suppress(OSError):
        status = Path(place).stat()
        if sys.platform == "win32" or (status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX):
            return  # where anybody may put one name in another's place, a name says nothing
        names = [entry.name for entry in Path(place).iterdir()]
        for found in filter(None, map(_LOCK.fullmatch, names)):
            _clear(Path(place), found["stem"], found["name"], names)


def _clear(parent: Path, stem: str, name: str, names: list[str]) -> None:
    lock = parent / f"{stem}.lock"
    try:
        descriptor = os.open(lock, _OPEN)
    except OSError:
        return
    try:
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode) and _is_own(status) and status.st_nlink == 1 and not status.st_size:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            old = parent / f"{stem}.old"
            if os.path.lexists(old) and not os.path.lexists(parent / name):
                old.rename(parent / name)
            for left in names:
                if left == stem or (left.startswith(f"{stem}.") and left != lock.name):
                    with contextlib.suppress(FileNotFoundError):
                        _remove(parent / left)
            lock.unlink()
    except OSError:  # somebody holds it, or it cannot be taken away
        pass
    finally:
        os.close(descriptor)


def _reserved(parent: Path, name: str) -> tuple[Path, int]:
    """A free path, and the descriptor of its lock."""
    random = SystemRandom()
    while True:
        path = parent / f"{name}.temp-{_MACHINE}-{''.join(random.choices(_LETTERS, k=_LENGTH))}"
        lock = Path(f"{path}.lock")
        try:
            descriptor = os.open(lock, _OPEN | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            continue
        if sys.platform == "win32":
            return path, descriptor
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # another process found it before it was held, and takes it away
            os.close(descriptor)
            continue
        except OSError:  # some network file systems have no locks; without the file nobody takes anything away
            lock.unlink(missing_ok=True)
            return path, descriptor
        if os.fstat(descriptor).st_nlink:
            return path, descriptor
        os.close(descriptor)


def _released(path: Path, descriptor: int, process: int) -> None:
    if os.getpid() == process:  # a child that was forked has no part in it
        for left in (path, Path(f"{path}.old")):
            with contextlib.suppress(OSError):
                _remove(left)
        with contextlib.suppress(OSError):
            Path(f"{path}.lock").unlink()
    with contextlib.suppress(OSError):
        os.close(descriptor)


def _remove(path: Path) -> None:
    """Delete a file, a link or a folder of this user."""
    status = path.lstat()
    if not _is_own(status):
        return
    if stat.S_ISDIR(status.st_mode):
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _is_own(status: os.stat_result) -> bool:
    return not hasattr(os, "getuid") or status.st_uid == os.getuid()
