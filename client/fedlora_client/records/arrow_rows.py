"""Records of a Parquet file, or of a data set that the library `datasets` reads, by a process of its own.

Read are columns of text, numbers, true and false, and lists and structs of these. Another one is refused by name where it
is a field that counts; else it is told with the fields that are not learned.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from fedlora.config.hub_source import hub_source
from fedlora.config.sections import FieldNames
from fedlora.errors import DataError, MissingExtraError, NotRecordsError

from fedlora_client.records import arrow_child
from fedlora_client.records.asked_child import asked_child
from fedlora_client.records.byte_source import MAX_LINE_BYTES
from fedlora_client.records.record_forms import is_field
from fedlora_client.records.records import Records, collected

MAX_ROWS, MAX_BYTES = 1_000_000, 1 << 30  # of a file or a split
_SECONDS, _HUB_SECONDS = 120, 3600  # the latter with the download
_MEMORY_BYTES, _HUB_MEMORY_BYTES = 4 << 30, 32 << 30  # of addresses; what `datasets` keeps on the disk is mapped
_MOST_ROW_BYTES = 2 * MAX_LINE_BYTES  # as JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class _Split:
    name: str
    columns: tuple[tuple[str, str, bool], ...]  # name, type, whether it is read
    rows: tuple[list[Any], ...]


def read_parquet(path: Path, fields: FieldNames) -> Records:
    """The records of a Parquet file. Raises DataError."""
    if not path.is_file():
        raise FileNotFoundError(2, "No such file or directory", str(path))
    request = {"source": "parquet", "path": str(path.absolute())}
    (split,) = _splits(request, str(path), _SECONDS, _MEMORY_BYTES)
    return _records(split, path, fields)


def read_hub(source: str, fields: FieldNames) -> tuple[Records, Records | None]:
    """(the records of the split train, those of test, or else of validation) of `hf:...`; of another one all to train on.

    Raises ConfigError for a name without a revision, DataError, and MissingExtraError without `datasets`.
    """
    hub = hub_source(source)
    request = {"source": "hub", "name": hub.name, "config": hub.config, "revision": hub.revision}
    splits = {split.name: split for split in _splits(request, source, _HUB_SECONDS, _HUB_MEMORY_BYTES)}
    train = splits.get("train") or next(iter(splits.values()))
    test = splits.get("test") or splits.get("validation")
    place = Path(source)
    return _records(train, place, fields), _records(test, place, fields) if test and test is not train else None


def _splits(request: Mapping[str, Any], where: str, seconds: int, memory_bytes: int) -> list[_Split]:
    bounds = {"rows": MAX_ROWS, "memory_bytes": memory_bytes}
    with asked_child(
        arrow_child.__file__, {**request, **bounds}, what="read a data set", seconds=seconds, memory_bytes=memory_bytes
    ) as answer:
        found: list[tuple[dict[str, Any], list[list[Any]]]] = []
        for value in _values(answer, where, request["source"] == "hub"):
            if isinstance(value, dict):
                found.append((value, []))
            else:
                found[-1][1].append(value)
    return [
        _Split(name=about["split"], columns=tuple(map(tuple, about["columns"])), rows=tuple(rows))
        for about, rows in found
    ]


def _values(answer: BinaryIO, where: str, is_hub: bool) -> Iterator[Any]:
    """What was written but for the end. Raises DataError where it ended otherwise than well."""
    size = 0
    while line := answer.readline(_MOST_ROW_BYTES + 1):
        size += len(line)
        if len(line) > _MOST_ROW_BYTES or size > MAX_BYTES:
            raise DataError(f"{where}: a row of more than {_MOST_ROW_BYTES} bytes, or {MAX_BYTES} in all; divide it")
        value = json.loads(line.decode("utf-8", "surrogatepass"))
        if isinstance(value, list) or "split" in value:
            yield value
        elif not value:
            return
        elif value["kind"] == "missing":
            needed = f"{where}: reading it needs {value['error']}: pip install 'fedlora[datasets]'"
            if is_hub:
                raise MissingExtraError(needed)
            raise NotRecordsError(f"{needed}, or give JSON Lines")  # among other files it is left out
        elif value["kind"] == "bound":
            raise DataError(f"{where}: {value['error']}; divide it, or give JSON Lines")
        else:
            what = f"the library datasets does not read it: {value['error']}; check name, revision and network"
            raise DataError(f"{where}: {what if is_hub else _damaged(value['error'])}")
    raise DataError(f"{where}: reading it takes more memory or time than it may; divide it, or give JSON Lines")


def _damaged(error: str) -> str:
    return f"it is a Parquet file that cannot be read: {error}; copy it again"


def _records(split: _Split, path: Path, fields: FieldNames) -> Records:
    unread = {name: kind for name, kind, is_read in split.columns if not is_read}
    for name, kind in unread.items():
        if is_field(name, fields):
            raise DataError(
                f"{path}: column {name:.60} holds {kind}; expected text, numbers, or lists and structs of these: leave it "
                "out of the file, or write it as one of them"
            )
    names = [name for name, _, is_read in split.columns if is_read]
    rows = ((f"row {number}", dict(zip(names, row, strict=True))) for number, row in enumerate(split.rows, 1))
    records = collected(path, rows, fields)
    return replace(records, ignored=(*records.ignored, *(f"{name} ({kind})" for name, kind in unread.items())))
