"""Records of a Parquet file, or of a data set that the library `datasets` reads, by a process of its own.

Read are columns of text, numbers, true and false, and lists and structs of these. Another one is refused by name where it
is a field that counts; else it is told with the fields that are not learned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from fedlora.config.hub_source import hub_source
from fedlora.config.sections import FieldNames
from fedlora.errors import DataError, MissingExtraError, NotRecordsError
from fedlora.files.json_text import parse_json

from fedlora_client.records import arrow_child
from fedlora_client.records.asked_child import asked_child
from fedlora_client.records.byte_source import MAX_LINE_BYTES
from fedlora_client.records.record_forms import is_field
from fedlora_client.records.records import Records, collected

MAX_ROWS, MAX_BYTES = 1_000_000, 1 << 30  # of a file or a split
_SECONDS, _HUB_SECONDS = 120, 3600  # the latter with the download
_MEMORY_BYTES, _HUB_MEMORY_BYTES = 4 << 30, 32 << 30  # of addresses; what `datasets` keeps on the disk is mapped
_MOST_ROW_BYTES = 2 * MAX_LINE_BYTES  # as JSON


def read_parquet(path: Path, fields: FieldNames) -> Records:
    """The records of a Parquet file. Raises DataError."""
    if not path.is_file():
        raise FileNotFoundError(2, "No such file or directory", str(path))
    request = {"source": "parquet", "path": str(path.absolute())}
    (records,) = _splits(request, path, fields, _SECONDS, _MEMORY_BYTES).values()
    return records


def read_hub(source: str, fields: FieldNames) -> tuple[Records, Records | None]:
    """(the records of the split train, those of test, or else of validation) of `hf:...`; of another one all to train on.

    Raises ConfigError for a name without a revision, DataError, and MissingExtraError without `datasets`.
    """
    hub = hub_source(source)
    request = {"source": "hub", "name": hub.name, "config": hub.config, "revision": hub.revision}
    splits = _splits(request, Path(source), fields, _HUB_SECONDS, _HUB_MEMORY_BYTES)
    train = splits.get("train") or next(iter(splits.values()))
    test = splits.get("test") or splits.get("validation")
    return train, test if test is not train else None


def _splits(
    request: Mapping[str, Any], path: Path, fields: FieldNames, seconds: int, memory_bytes: int
) -> dict[str, Records]:
    """The records of each split, by its name. A row is let go of once its example is made."""
    bounds = {"rows": MAX_ROWS, "memory_bytes": memory_bytes}
    with asked_child(
        arrow_child.__file__, {**request, **bounds}, what="read a data set", seconds=seconds, memory_bytes=memory_bytes
    ) as answer:
        values = _values(answer, str(path), request["source"] == "hub")
        about, splits = next(values, None), {}
        while about is not None:
            following: list[Any] = []  # what is said of the next split, once this one has ended
            splits[about["split"]] = _records(about["columns"], _until_split(values, following), path, fields)
            about = following[0] if following else None
    return splits


def _until_split(values: Iterator[Any], following: list[Any]) -> Iterator[list[Any]]:
    """The rows of a split; what comes after them goes into `following`."""
    for value in values:
        if not isinstance(value, list):
            following.append(value)
            return
        yield value


def _values(answer: BinaryIO, where: str, is_hub: bool) -> Iterator[Any]:
    """What was written but for the end. Raises DataError where it ended otherwise than well."""
    size = 0
    while line := answer.readline(_MOST_ROW_BYTES + 1):
        size += len(line)
        if len(line) > _MOST_ROW_BYTES or size > MAX_BYTES:
            raise DataError(f"{where}: a row of more than {_MOST_ROW_BYTES} bytes, or {MAX_BYTES} in all; divide it")
        try:
            value = parse_json(line.decode("utf-8", "surrogatepass"))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: a row cannot be read: {error}; leave such columns out") from None
        if isinstance(value, list) or "split" in value:
            yield value
        elif not value:
            return
        elif value["kind"] == "missing":
            needed = f"{where}: reading it needs {value['error']}"
            if is_hub:
                raise MissingExtraError(f"{needed}; pip install 'fedlora[datasets]'")
            # Among other files it is left out.
            raise NotRecordsError(f"{needed}; pip install 'fedlora[datasets]', or give JSON Lines")
        elif value["kind"] == "bound":
            raise DataError(f"{where}: {value['error']}; divide it, or give JSON Lines")
        else:
            what = f"the library datasets does not read it: {value['error']}; check name, revision and network"
            raise DataError(f"{where}: {what if is_hub else _damaged(value['error'])}")
    raise DataError(f"{where}: reading it takes more memory or time than it may; divide it, or give JSON Lines")


def _damaged(error: str) -> str:
    return f"it is a Parquet file that cannot be read: {error}; copy it again"


def _records(
    columns: list[tuple[str, str, bool]], rows: Iterator[list[Any]], path: Path, fields: FieldNames
) -> Records:
    """Of `columns`: name, type, whether it is read."""
    unread = {name: kind for name, kind, is_read in columns if not is_read}
    for name, kind in unread.items():
        if is_field(name, fields):
            raise DataError(
                f"{path}: column {name:.60} holds {kind}; expected text, numbers, or lists and structs of these: leave it "
                "out of the file, or write it as one of them"
            )
    names = [name for name, _, is_read in columns if is_read]
    placed = ((f"row {number}", dict(zip(names, row, strict=True))) for number, row in enumerate(rows, 1))
    records = collected(path, placed, fields)
    return replace(records, ignored=(*records.ignored, *(f"{name} ({kind})" for name, kind in unread.items())))
