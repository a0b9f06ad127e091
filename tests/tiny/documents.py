"""A document of the project as something to learn from: its beginning, so that a batch is a fifth of the windows."""

from __future__ import annotations

from pathlib import Path

_PROJECT = Path(__file__).resolve().parents[2]
_CHARACTERS = 1500


def write_beginning(name: str, folder: Path) -> None:
    """Write the beginning of a document of the project into a folder, under its name."""
    text = (_PROJECT / name).read_text(encoding="utf-8")
    (folder / name).write_text(text[:_CHARACTERS], encoding="utf-8")
