"""Files and directories that appear whole or not at all: write aside, fsync, rename."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fedlora.errors import ConfigError


@contextlib.contextmanager
def whole_file(path: Path, *, is_private: bool = False) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it becomes `path` when the block ends well, and vanishes otherwise.

    A private one is for its owner alone (mode 0600) from its first byte on.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}; name another output") from None
    os.close(descriptor)
    aside = Path(name)
    try:
        yield aside
        if not is_private:
            give_usual_mode(aside)
        _sync(aside)
        aside.replace(path)
        _sync(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def give_usual_mode(file: Path) -> None:
    """mkstemp makes files for their owner alone; a result is for whoever the directory is for."""
    file.chmod(0o666 & ~_umask())


def write_text(path: Path, text: str) -> None:
    """Write a small text file whole."""
    with whole_file(path) as aside:
        aside.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def whole_directory(path: Path, *, replace: str | None = None) -> Iterator[Path]:
    """Yield an empty directory beside `path`; it becomes `path` when the block ends well, and vanishes otherwise.

    `replace` names the file by which a directory of the same kind is known: only such a one, or an empty one, is replaced
    (by two renames: killed between them, the old one stands beside, as `.NAME.old.*`). Raises ConfigError for any other.
    """
    path = Path(os.path.abspath(path))
    check_directory(path, replace=replace)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}; name another output") from None
    try:
        yield aside
        aside.chmod(0o777 & ~_umask())
        for file in aside.rglob("*"):
            _sync(file)
        _sync(aside)
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
            path.rename(old / path.name)
            try:
                aside.rename(path)
            except BaseException:
                (old / path.name).rename(path)
                raise
            finally:
                shutil.rmtree(old)
        else:
            aside.rename(path)
        _sync(path.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def check_directory(path: Path, *, replace: str | None = None) -> None:
    """Raise ConfigError now where `whole_directory` would after the work is done."""
    if path.exists() and replace is None:
        raise ConfigError(f"{path} exists already; name another output, or pass --force to replace it")
    if path.exists() and not (path / str(replace)).is_file() and (path.is_file() or any(path.iterdir())):
        raise ConfigError(f"{path} exists and holds no {replace}: only its own kind is replaced; name another output")
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
