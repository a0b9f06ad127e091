"""The records of a run that was played, but for what depends on times."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedlora.identity.audit import audited
from fedlora.identity.records import HEAD, RECORD, RoundEntry, read_sealed


def records_of(run: Path) -> list[dict[str, Any]]:
    """What the record of each round says, without moments and what holds some; the chain is whole."""
    list(audited(run))
    found = []
    for path in sorted(run.glob(f"rounds/*/{RECORD}")):
        entry = asdict(read_sealed(RoundEntry, path.read_bytes(), None, str(path)))
        del entry["at"], entry["previous"], entry["files"]["round.json"]
        found.append(entry)
    return found


def without_records(files: dict[str, object]) -> dict[str, object]:
    """The files of a run but for the records."""
    return {name: content for name, content in files.items() if Path(name).name not in (HEAD, RECORD)}


def entry_of(run: Path, server_round: int) -> RoundEntry:
    path = run / "rounds" / f"{server_round:04d}" / RECORD
    return read_sealed(RoundEntry, path.read_bytes(), None, str(path))
