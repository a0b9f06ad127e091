"""Records from a database: read, and only read, within bounds."""

from __future__ import annotations

import json
import resource
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from fedlora.config.run import DataConfig
from fedlora.config.sections import FieldNames
from fedlora.data.examples import Chat, Completion, TextRecord
from fedlora.errors import DataError
from fedlora_client.data.files_dataset import files
from fedlora_client.records.sqlite_rows import read_query

NO_NAMES = FieldNames()
ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT"


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "notes ?#%.db"
    with closing(sqlite3.connect(path)) as made, made:
        made.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY, question TEXT, answer TEXT, picture BLOB)")
        made.executemany(
            "INSERT INTO notes (question, answer, picture) VALUES (?, ?, ?)",
            [(f"what is {n}?", f"it is {n}", b"\x00\xff") for n in range(20)],
        )
        made.execute("CREATE TABLE chats (messages TEXT)")
        chat = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]
        made.execute("INSERT INTO chats VALUES (?)", (json.dumps(chat),))
    return path


def test_the_columns_of_a_row_are_the_fields_of_a_record(database: Path) -> None:
    records = read_query(database, "SELECT question AS prompt, answer AS completion FROM notes ORDER BY id", NO_NAMES)
    assert records.examples[3] == Completion("what is 3?", "it is 3")
    assert (len(records.examples), records.places[3]) == (20, "row 4")
    named = FieldNames(prompt="question", completion="answer")
    assert read_query(database, "SELECT question, answer FROM notes ORDER BY id", named).examples == records.examples
    counted = read_query(database, "SELECT upper(answer) || count(*) AS text FROM notes", NO_NAMES)
    assert counted.examples == (TextRecord("IT IS 1920"),) or isinstance(counted.examples[0], TextRecord)
    (chat,) = read_query(database, "SELECT messages FROM chats", NO_NAMES).examples
    assert isinstance(chat, Chat)


@pytest.mark.parametrize(
    "query",
    [
        "DELETE FROM notes",
        "UPDATE notes SET answer = 'x'",
        "DROP TABLE notes",
        "CREATE TABLE more (a)",
        "CREATE TEMP TABLE more AS SELECT * FROM notes",
        "INSERT INTO notes (answer) VALUES ('x') RETURNING answer AS text",
        "ATTACH '/tmp/other.db' AS other",
        "VACUUM INTO '/tmp/copy.db'",
        "PRAGMA journal_mode = DELETE",
        "PRAGMA table_info(notes)",
        "BEGIN",
        "EXPLAIN DELETE FROM notes",
        "SELECT load_extension('/tmp/x.so') AS text",
        "SELECT answer AS text FROM notes; DELETE FROM notes",
        "SELECT answer AS text FROM nothing",
        "SELECT",
        "",
        "SELECT 'a\0b' AS text",
        "not SQL",
    ],
)
def test_what_is_no_reading_is_refused_and_changes_nothing(database: Path, query: str) -> None:
    before = database.read_bytes()
    with pytest.raises(DataError, match="expected one SELECT"):
        read_query(database, query, NO_NAMES)
    assert database.read_bytes() == before
    assert [path.name for path in database.parent.iterdir()] == [database.name]


@pytest.mark.parametrize(
    ("query", "bound", "told"),
    [
        ("SELECT answer AS text FROM notes", {"max_rows": 19}, "more than 19 rows"),
        ("SELECT answer AS text FROM notes", {"max_bytes": 40}, "40 bytes"),
        (f"{ENDLESS} 'x' AS text FROM n", {"max_rows": 1000}, "more than 1000 rows"),
        (f"{ENDLESS} count(*) AS text FROM n", {"max_seconds": 0.2}, "longer than 0.2 s"),
        ("SELECT zeroblob(1 << 30) AS text", {}, "too big"),
        ("SELECT hex(zeroblob(1 << 30)) AS text", {}, "too big"),
        ("SELECT picture AS text FROM notes", {}, "column text holds bytes"),
        ("SELECT answer AS messages FROM notes", {}, "column messages is not JSON"),
        ("SELECT answer AS text, question AS text FROM notes", {}, "two columns of one name"),
        ("SELECT answer AS text FROM notes WHERE 0", {}, "no example in it"),
    ],
)
def test_a_query_is_bounded_in_rows_bytes_and_time(
    database: Path, query: str, bound: dict[str, float], told: str
) -> None:
    with pytest.raises(DataError, match=told):
        read_query(database, query, NO_NAMES, **bound)  # type: ignore[arg-type]


HOSTILE = {
    "one call that takes hours": "replace(printf('%.*c', 3000000, 'a'), printf('%.*c', 1500000, 'a') || 'b', 'c') AS text",
    "a row of gigabytes": ", ".join(f"printf('%.*c', 50000000, 'x') AS c{n}" for n in range(60)),
    "bytes without end": ", ".join(f"zeroblob(60000000) AS c{n}" for n in range(60)),
    "one text without end": f"({ENDLESS} group_concat(i) FROM n) AS text",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_a_view_of_the_database_takes_is_bounded(tmp_path: Path, what: str) -> None:
    path = tmp_path / "hostile.db"
    with closing(sqlite3.connect(path)) as made, made:
        made.execute(f"CREATE VIEW notes AS SELECT {HOSTILE[what]}")
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(DataError, match=r"takes (more|longer) than|gives a row of more than|too big|takes more memory"):
        read_query(path, "SELECT * FROM notes", NO_NAMES, max_seconds=1.0)
    assert time.process_time() - began < 5  # of this process
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000


def test_letters_of_every_kind_come_as_they_are(database: Path) -> None:
    letters = 'é \u6771 \U0001f600 \n\t\r\x1f \u2028 " \\ '
    query = f"SELECT '{letters}' || question AS prompt, answer AS completion FROM notes WHERE question = 'what is 3?'"
    assert read_query(database, query, NO_NAMES).examples == (Completion(f"{letters}what is 3?", "it is 3"),)


def test_what_is_no_database_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such database"):
        read_query(tmp_path / "none.db", "SELECT 1 AS text", NO_NAMES)
    (tmp_path / "text.db").write_text("this is no database at all" * 100)
    with pytest.raises(DataError, match="file is not a database"):
        read_query(tmp_path / "text.db", "SELECT a AS text FROM b", NO_NAMES)


def test_a_device_learns_the_rows_of_its_query_and_sees_new_ones(database: Path) -> None:
    node = {"data-path": str(database), "data-query": "SELECT answer AS text FROM notes ORDER BY id", "name": "kitchen"}
    data = files(DataConfig(name="files"), node)
    assert (data.name, len(data.train), len(data.held_out)) == ("kitchen", 18, 2)
    with closing(sqlite3.connect(database)) as grown, grown:
        grown.execute("INSERT INTO notes (answer) VALUES ('one more')")
    assert files(DataConfig(name="files"), node).held_out[-1] == TextRecord("one more")
    with pytest.raises(DataError, match="data-query reads a database"):
        files(DataConfig(name="files"), {**node, "data-path": str(database.parent)})
