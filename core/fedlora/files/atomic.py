"""Files and directories that appear whole or not at all: write aside, fsync, rename."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from fedlora.errors import ConfigError
from fedlora.files.temporary import Reserved, clear_leftovers


@contextlib.contextmanager
def whole_file(path: Path, *, is_private: bool = False) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it becomes `path` when the block ends well, and vanishes otherwise.

    Where the process is killed it vanishes too, as soon as another one writes there. A private one is for its owner alone
    (mode 0600) from its first byte on.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        reserved = Reserved(path.parent, f".{path.name}")
        os.close(os.open(reserved.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}; name another output") from None
    aside = reserved.path
    try:
        yield aside
        if not is_private:
            give_usual_mode(aside)
        _sync(aside)
        aside.replace(path)
        _sync(path.parent)
    finally:
        reserved.release()


def give_usual_mode(file: Path) -> None:
    """What is in the making is for its owner alone; a result is for whoever the directory is for."""
    file.chmod(0o666 & ~_umask())


def write_text(path: Path, text: str) -> None:
    """Write a small text file whole."""
    with whole_file(path) as aside:
        aside.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def whole_directory(path: Path, *, replace: str | None = None) -> Iterator[Path]:
    """Yield an empty directory beside `path`; it becomes `path` when the block ends well, and vanishes otherwise.

    `replace` names the file by which a directory of the same kind is known: only such a one, or an empty one, is replaced
    (by two renames: where the process is killed between them, the old one is put back by the next that writes there).
    Raises ConfigError for any other.
    """
    path = Path(os.path.abspath(path))
    clear_leftovers(path.parent)
    check_directory(path, replace=replace)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        reserved = Reserved(path.parent, f".{path.name}")
        reserved.path.mkdir(mode=0o700)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}; name another output") from None
    aside = reserved.path
    try:
        yield aside
        aside.chmod(0o777 & ~_umask())
        for file in aside.rglob("*"):
            _sync(file)
        _sync(aside)
        try:
            if path.exists():
                path.rename(reserved.old)
            aside.rename(path)
        except BaseException:  # an interrupt between the two as well
            _put_back(reserved, path)
            raise
        _sync(path.parent)
    finally:
        reserved.release()


def _put_back(reserved: Reserved, path: Path) -> None:
    """Give the old one its name again; where that cannot be, leave it for the next that writes there."""
    if os.path.lexists(path) or not os.path.lexists(reserved.old):
        return
    try:
        reserved.old.rename(path)
    except OSError:
        reserved.leave()


def check_directory(path: Path, *, replace: str | None = None) -> None:
    """Raise ConfigError now where `whole_directory` would after the work is done."""
    if path.exists() and replace is None:
        raise ConfigError(f"{path} exists already; name another output, or pass --force to replace it")
    if path.exists() and not (path / str(replace)).is_file() and (path.is_file() or any(path.iterdir())):
        raise ConfigError(f"{path} exists and holds no {replace}: only its own kind is replaced; name another output")
    check_writable(path)


def check_writable(path: Path) -> None:
    """Raise ConfigError unless something can be made at `path`."""
    there = next(parent for parent in Path(os.path.abspath(path)).parents if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"{path}: cannot be written: {there} is no folder that may be written; name another output")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
