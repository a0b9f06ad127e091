"""What tells that a device's data changed: names, sizes and times of its files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

_BESIDE = ("-wal", "-journal")  # of a database, where what is newest may lie


def version_of(*paths: Path) -> str:
    """A word that is another one when anything below the paths, or beside a database, was changed."""
    digest = hashlib.sha256()
    for path in paths:
        for file in _files(path):
            try:
                status = file.stat()
                told = f"{status.st_size} {status.st_mtime_ns} {status.st_ino}"
            except OSError as error:
                told = str(error.errno)
            digest.update(f"{file}\0{told}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        yield from (path.with_name(path.name + end) for end in _BESIDE)
        return
    for folder, folders, files in os.walk(path):
        folders.sort()
        yield from (Path(folder, name) for name in sorted(files))
