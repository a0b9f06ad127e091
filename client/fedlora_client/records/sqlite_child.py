"""The process that reads an SQLite database: whatever a view or a function of it takes, it costs this process alone.

It is run as a file, with a request, a JSON object, on its standard input. The database may be anybody's: one call of a
function can take hours, where SQLite looks at no clock, and one row of a view gigabytes. So it is run within bounds of
processor time and memory (`fedlora.files.limited`). It writes a JSON value a line: the names of the columns, a list for
each row, and at last an object that says how it ended: {}, or {"error": a line, "kind": "query" or "bound"}. Bytes are
written as {"bytes": their number}.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import time
from contextlib import closing, suppress
from typing import Any

_ALLOWED = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE)
_NOT_FUNCTIONS = ("load_extension", "readfile", "writefile", "edit", "fts3_tokenizer")
_STEPS = 10_000  # of SQLite's machine, between two looks at the clock


def _authorize(action: int, first: str | None, second: str | None, database: str | None, trigger: str | None) -> int:
    if action in _ALLOWED or (action == sqlite3.SQLITE_FUNCTION and str(second).lower() not in _NOT_FUNCTIONS):
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY


def _say(value: object) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False, default=_bytes) + "\n")


def _bytes(value: object) -> object:
    return {"bytes": len(value)} if isinstance(value, bytes) else str(value)


def _read(request: dict[str, Any]) -> dict[str, str]:
    """How it ended."""
    deadline = time.monotonic() + request["seconds"]
    try:
        with closing(sqlite3.connect(request["uri"], uri=True, timeout=request["seconds"])) as database:
            database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, request["value_bytes"])
            database.set_authorizer(_authorize)
            database.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS)
            cursor = database.execute(request["query"])
            if cursor.description is None:
                return {"kind": "query", "error": "it gives no rows"}
            _say([str(column[0]) for column in cursor.description])
            for row in cursor:
                _say(row)
    except sqlite3.Error as error:
        if time.monotonic() > deadline:
            return {"kind": "bound", "error": f"takes longer than {request['seconds']:g} s"}
        return {"kind": "query", "error": str(error)}
    except (sqlite3.Warning, ValueError, OverflowError) as error:  # several statements; a text with a null character
        return {"kind": "query", "error": str(error)}
    except MemoryError:
        return {"kind": "bound", "error": f"takes more than {request['memory_bytes'] >> 20} MB of memory"}
    return {}


def _main() -> None:
    request = json.load(sys.stdin)
    sys.stdout.reconfigure(encoding="utf-8", errors="surrogatepass")  # type: ignore[union-attr]
    with suppress(BrokenPipeError):
        _say(_read(request))
        sys.stdout.flush()


if __name__ == "__main__":
    _main()
