"""Records that whoever owns a device took back: it does not train on them, and measures nothing on them, any more.

A file of JSON Lines, one withdrawal each; it holds no text of a record.

    {"digest": "9f86...", "file": "chats.jsonl", "place": "line 12", "at": "2026-11-30T12:00:00+00:00"}
    {"file": "diary.txt", "at": "2026-11-30T12:00:00+00:00"}          the whole file, whatever it will hold
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedlora.data.examples import Example
from fedlora.errors import DataError
from fedlora.files.atomic import write_text
from fedlora.files.bounded import read_bounded
from fedlora.files.json_text import parse_json

_MAX_BYTES = 1 << 26


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """What is withdrawn: records, wherever they stand, and whole files."""

    digests: frozenset[str] = frozenset()
    files: frozenset[str] = frozenset()  # relative to the data's folder

    def remaining(self, examples: Iterable[Example]) -> tuple[Example, ...]:
        if not self.digests:
            return tuple(examples)
        return tuple(example for example in examples if digest_of(example) not in self.digests)


def digest_of(example: Example) -> str:
    """By which a record is known again: sha256 over all that is learned of it, and its form."""
    content = dataclasses.asdict(example, dict_factory=dict) if dataclasses.is_dataclass(example) else example
    text = json.dumps([type(example).__name__, content], sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def read_withdrawn(path: Path) -> Withdrawn:
    """What a file withdraws; nothing where there is no file. Raises DataError: what is taken back must not come back."""
    digests, files = set(), set()
    for number, entry in enumerate(_entries(path), 1):
        if isinstance(entry.get("digest"), str):
            digests.add(entry["digest"])
        elif isinstance(entry.get("file"), str):
            files.add(entry["file"])
        else:
            raise DataError(f"{path}: line {number} withdraws nothing; expected digest or file")
    return Withdrawn(frozenset(digests), frozenset(files))


def withdraw(path: Path, entries: Iterable[Mapping[str, str]]) -> int:
    """Add to what a file withdraws, whole or not at all; returns how many were new. Raises DataError."""
    before = _entries(path)
    known = {_key(entry) for entry in before}
    new = [dict(entry) for entry in entries if _key(entry) not in known]
    write_text(path, "".join(json.dumps(entry) + "\n" for entry in [*before, *new]))
    return len(new)


def _key(entry: Mapping[str, Any]) -> tuple[Any, Any]:
    digest = entry.get("digest")
    return digest, None if digest else entry.get("file")


def _entries(path: Path) -> list[dict[str, Any]]:
    try:
        lines = read_bounded(path, _MAX_BYTES).decode().splitlines()
        entries = [parse_json(line) for line in lines if line.strip()]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: what is withdrawn cannot be read: {error}; put back the file: nothing is trained on without it"
        ) from None
    if not all(isinstance(entry, dict) for entry in entries):
        raise DataError(f"{path}: expected a JSON object a line; put back the file that fedlora wrote")
    return entries


def _plain(value: object) -> object:
    return dict(value) if isinstance(value, Mapping) else repr(value)
