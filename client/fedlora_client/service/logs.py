"""What a device's processes log: a file each in the state folder, bounded, and standard error."""

from __future__ import annotations

import logging
import logging.handlers
import re
import sys
from contextlib import suppress
from pathlib import Path

_FORMAT = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S%z")
_CHILD_FORMAT = logging.Formatter("%(asctime)s %(message)s", _FORMAT.datefmt)  # whose lines have a level of their own
_STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} ")
_FILE_BYTES, _FILES = 1 << 20, 3


def log_into(folder: Path, name: str) -> None:
    """Log to NAME.log and to standard error. A disk that is full costs the file's lines."""
    logging.raiseExceptions = False
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    with suppress(OSError):
        handlers.append(_file(folder, name))
    for handler in handlers:
        handler.setFormatter(_FORMAT)
    root = logging.getLogger("fedlora")
    root.handlers, root.propagate = handlers, False
    root.setLevel(logging.INFO)


def file_logger(folder: Path, name: str) -> logging.Logger:
    """A logger whose lines go to NAME.log alone."""
    logger = logging.getLogger(f"fedlora-child.{name}")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    with suppress(OSError):
        handler = _file(folder, name)
        handler.setFormatter(_CHILD_FORMAT)
        logger.handlers = [handler]
    return logger


def last_lines(folder: Path, count: int) -> list[str]:
    """The last lines of all files, by their times."""
    entries: list[tuple[str, str, int, str]] = []
    for path in folder.glob("*.log*"):
        stamp = ""
        with suppress(OSError):
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            for number, line in enumerate(lines):
                stamp = line[:19] if _STAMP.match(line) else stamp  # a line without a time goes on with the one before
                entries.append((stamp, path.name.partition(".")[0], number, line))
    return [f"{name}: {line}" for _, name, _, line in sorted(entries)[-count:]] if count else []


def _file(folder: Path, name: str) -> logging.Handler:
    folder.mkdir(parents=True, exist_ok=True)
    return logging.handlers.RotatingFileHandler(
        folder / f"{name}.log", maxBytes=_FILE_BYTES, backupCount=_FILES - 1, encoding="utf-8"
    )
