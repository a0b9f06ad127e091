"""Records from an SQLite database: the rows of one query, read only, within bounds, by a process of its own."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from fedlora.config.sections import FieldNames
from fedlora.errors import DataError
from fedlora.files.json_text import parse_json

from fedlora_client.records import sqlite_child
from fedlora_client.records.asked_child import asked_child
from fedlora_client.records.byte_source import MAX_LINE_BYTES
from fedlora_client.records.records import Records, collected

MAX_ROWS, MAX_BYTES, MAX_SECONDS = 1_000_000, 1 << 30, 60.0
_MEMORY_BYTES = 1 << 30  # of addresses, of the process that reads
_MOST_ROW_BYTES = 2 * MAX_LINE_BYTES  # as JSON
_LISTS = ("messages", "conversations", "tools", "documents")  # fields that are lists: kept as JSON in a column


def read_query(
    path: Path, query: str, fields: FieldNames, *, max_rows: int = MAX_ROWS, max_bytes: int = MAX_BYTES,
    max_seconds: float = MAX_SECONDS,
) -> Records:  # fmt: skip
    """The records that a SELECT gives, a column for each field. Raises DataError.

    The database is opened read only; whatever is no reading is refused by SQLite itself as it compiles the query. What its
    views and functions take of time and memory is bounded (`sqlite_child`).
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such database; give data-path that of an SQLite file")
    request = {
        "uri": f"file:{quote(str(path.absolute()))}?mode=ro", "query": query, "seconds": max_seconds,
        "memory_bytes": _MEMORY_BYTES, "value_bytes": MAX_LINE_BYTES,
    }  # fmt: skip
    with asked_child(
        sqlite_child.__file__, request, what="read a database", seconds=max_seconds, memory_bytes=_MEMORY_BYTES
    ) as answer:
        return collected(path, _rows(_values(answer, path, query, max_seconds), path, max_rows, max_bytes), fields)


def _values(answer: BinaryIO, path: Path, query: str, seconds: float) -> Iterator[list[Any]]:
    """The names of the columns, and each row. Raises DataError where it ended otherwise than well."""
    began = time.monotonic()
    while line := answer.readline(_MOST_ROW_BYTES + 1):
        if len(line) > _MOST_ROW_BYTES:
            raise DataError(f"{path}: the query gives a row of more than {_MOST_ROW_BYTES} bytes; select less of it")
        value = json.loads(line.decode("utf-8", "surrogatepass"))
        if isinstance(value, list):
            yield value
        elif not value:
            return
        elif value["kind"] == "bound":
            raise DataError(f"{path}: the query {value['error']}; make it smaller, or give the table an index")
        else:
            raise DataError(
                f"{path}: the query {query!r:.120} cannot be read: {value['error']}; expected one SELECT that only reads "
                "this database"
            )
    took = f"longer than {seconds:g} s" if time.monotonic() - began > seconds else "more memory or time than it may"
    raise DataError(f"{path}: the query takes {took}; make it smaller, or give the table an index")


def _rows(
    values: Iterator[list[Any]], path: Path, max_rows: int, max_bytes: int
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    names, size = [str(name) for name in next(values)], 0
    if len(set(names)) != len(names):
        raise DataError(f"{path}: the query gives two columns of one name; name them apart, with AS")
    for number, row in enumerate(values, 1):
        size += sum(len(value) if isinstance(value, str) else 8 for value in row)
        if number > max_rows or size > max_bytes:
            raise DataError(
                f"{path}: the query gives more than {max_rows} rows or {max_bytes} bytes; give it a LIMIT, at most that"
            )
        yield f"row {number}", {name: _value(name, value) for name, value in zip(names, row, strict=True)}


def _value(name: str, value: object) -> object:
    if isinstance(value, dict):
        raise DataError(f"column {name:.40} holds bytes; select text, with CAST(... AS TEXT)")
    if name in _LISTS and isinstance(value, str):
        try:
            return parse_json(value)
        except (ValueError, RecursionError) as error:
            raise DataError(f"column {name} is not JSON: {error}; expected a list") from None
    return value
