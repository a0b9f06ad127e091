"""Records from an SQLite database: the rows of one query, read only, within bounds."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fedlora.config.sections import FieldNames
from fedlora.errors import DataError
from fedlora.files.json_text import parse_json

from fedlora_client.records.byte_source import MAX_LINE_BYTES
from fedlora_client.records.records import Records, collected

MAX_ROWS, MAX_BYTES, MAX_SECONDS = 1_000_000, 1 << 30, 60.0
_ALLOWED = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE)
_NOT_FUNCTIONS = ("load_extension", "readfile", "writefile", "edit", "fts3_tokenizer")
_STEPS = 10_000  # of SQLite's machine, between two looks at the clock
_LISTS = ("messages", "conversations", "tools", "documents")  # fields that are lists: kept as JSON in a column


def read_query(
    path: Path, query: str, fields: FieldNames, *, max_rows: int = MAX_ROWS, max_bytes: int = MAX_BYTES,
    max_seconds: float = MAX_SECONDS,
) -> Records:  # fmt: skip
    """The records that a SELECT gives, a column for each field. Raises DataError.

    The database is opened read only; whatever is no reading is refused by SQLite itself as it compiles the query.
    """
    deadline = time.monotonic() + max_seconds
    try:
        if not path.is_file():
            raise DataError(f"{path}: there is no such database; give data-path that of an SQLite file")
        uri = f"file:{quote(str(path.absolute()))}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=max_seconds)) as database:
            database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_LINE_BYTES)
            database.set_authorizer(_authorize)
            database.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS)
            rows = _rows(database.execute(query), path, max_rows, max_bytes)
            return collected(path, rows, fields)
    except sqlite3.Error as error:
        if time.monotonic() > deadline:
            raise DataError(
                f"{path}: the query takes longer than {max_seconds:g} s; make it smaller, or give the table an index"
            ) from None
        raise DataError(
            f"{path}: the query {query!r:.120} cannot be read: {error}; expected one SELECT that only reads this database"
        ) from None
    except (sqlite3.Warning, ValueError, OverflowError) as error:  # several statements; a text with a null character
        raise DataError(f"{path}: the query {query!r:.120}: {error}; expected one SELECT") from None


def _authorize(action: int, first: str | None, second: str | None, database: str | None, trigger: str | None) -> int:
    if action in _ALLOWED or (action == sqlite3.SQLITE_FUNCTION and str(second).lower() not in _NOT_FUNCTIONS):
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY


def _rows(cursor: sqlite3.Cursor, path: Path, max_rows: int, max_bytes: int) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if cursor.description is None:
        raise DataError(f"{path}: the query gives no rows; expected one SELECT")
    names, size = [str(column[0]) for column in cursor.description], 0
    if len(set(names)) != len(names):
        raise DataError(f"{path}: the query gives two columns of one name; name them apart, with AS")
    for number, row in enumerate(cursor, 1):
        size += sum(len(value) if isinstance(value, str | bytes) else 8 for value in row)
        if number > max_rows or size > max_bytes:
            raise DataError(
                f"{path}: the query gives more than {max_rows} rows or {max_bytes} bytes; give it a LIMIT, at most that"
            )
        yield f"row {number}", {name: _value(name, value) for name, value in zip(names, row, strict=True)}


def _value(name: str, value: object) -> object:
    if isinstance(value, bytes):
        raise DataError(f"column {name:.40} holds bytes; select text, with CAST(... AS TEXT)")
    if name in _LISTS and isinstance(value, str):
        try:
            return parse_json(value)
        except (ValueError, RecursionError) as error:
            raise DataError(f"column {name} is not JSON: {error}; expected a list") from None
    return value
