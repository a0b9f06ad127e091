"""metrics.jsonl: one line of JSON per round, in order. A line that a killed server left cut in half counts as none."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedlora.errors import RunError
from fedlora.files.atomic import write_text
from fedlora.files.bounded import read_bounded
from fedlora.files.json_text import parse_json

from fedlora_server.run.round_record import wrong_value

METRICS = "metrics.jsonl"
_MAX_BYTES = 1 << 30


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl as they are there, without a line that is not whole.

    Raises RunError for a value of another kind than the record's: a server that was killed leaves none.
    """
    records = []
    for number, line in enumerate(_content(path).split(b"\n")[:-1], 1):
        if (record := _record(line)) is None:
            continue
        if name := wrong_value(record):
            raise RunError(
                f"{path}: line {number}: {name} is {record[name]!r:.60}; the file was changed: copy the run again, or "
                "remove the line"
            )
        records.append(record)
    return records


class MetricsFile:
    """A run's metrics.jsonl, of which a round has one line: a later one replaces it."""

    def __init__(self, path: Path) -> None:
        """What is not a line of a round is taken out of the file."""
        self._path = path
        lines = _by_round(path) if path.exists() else {}
        if lines and _content(path) != _text(lines).encode():
            write_text(path, _text(lines))
        self._rounds = set(lines)

    @property
    def complete(self) -> int:
        """The number of rounds, from round 0 on, that all have their line."""
        return next(number for number in range(len(self._rounds) + 1) if number not in self._rounds)

    def keep_up_to(self, server_round: int) -> None:
        """Take out the lines of later rounds. Raises OSError or ConfigError, and the file is then as it was."""
        if any(number > server_round for number in self._rounds):
            lines = {number: line for number, line in _by_round(self._path).items() if number <= server_round}
            write_text(self._path, _text(lines))
            self._rounds = set(lines)

    def put(self, record: Mapping[str, Any]) -> None:
        """Add one round's line, or replace it. Raises OSError or ConfigError, and the file is then as it was."""
        server_round = record["round"]
        if server_round > max(self._rounds, default=server_round):
            _append(self._path, _text({server_round: record}).encode())
        else:
            there = _by_round(self._path) if self._rounds else {}
            write_text(self._path, _text({**there, server_round: record}))
        self._rounds.add(server_round)


def _content(path: Path) -> bytes:
    try:
        return read_bounded(path, _MAX_BYTES)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}; copy the run again") from None


def _by_round(path: Path) -> dict[int, dict[str, Any]]:
    return {record["round"]: record for record in read_lines(path)}


def _text(lines: Mapping[int, Mapping[str, Any]]) -> str:
    return "".join(json.dumps(lines[number], allow_nan=False) + "\n" for number in sorted(lines))


def _append(path: Path, data: bytes) -> None:
    with path.open("ab", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            written = 0
            while written < len(data):
                written += file.write(data[written:])
            os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), size)
            raise


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        value = parse_json(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and type(value.get("round")) is int else None
