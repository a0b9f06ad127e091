"""Files as people have them: what is read by its content, and what is refused by what it is."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from fedlora.config.run import FieldNames
from fedlora.data.examples import Completion, Labelled, TextRecord
from fedlora.errors import DataError
from fedlora_client.records import byte_source
from fedlora_client.records.byte_source import read_text
from fedlora_client.records.data_file import read_file
from hypothesis import given, settings
from hypothesis import strategies as st

RECORDS = [{"prompt": f"{number}: ", "completion": f'line\none, "two"; {number * number}\t.'} for number in range(30)]
EXAMPLES = tuple(Completion(record["prompt"], record["completion"]) for record in RECORDS)
LINES = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress
}  # fmt: skip


def table(separator: str) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=separator)
    writer.writerows([("prompt", "completion"), *(tuple(record.values()) for record in RECORDS)])
    return out.getvalue().encode()


CONTENT = {
    ".jsonl": LINES, ".ndjson": LINES, ".jsonlines": LINES, ".JSONL": LINES,
    ".json": json.dumps(RECORDS, indent=1).encode(), "-of-lines.json": LINES,
    "-in-data.json": json.dumps({"data": RECORDS}).encode(), "-list.jsonl": json.dumps(RECORDS).encode(),
    ".csv": table(","), "-semicolon.csv": table(";"), ".tsv": table("\t"), ".Csv": table(","),
}  # fmt: skip


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "mark"])
@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("name", CONTENT)
def test_the_same_records_are_read_however_they_are_written(
    tmp_path: Path, name: str, compression: str, mark: bytes
) -> None:
    file = tmp_path / f"data{name}{compression}"
    file.write_bytes(COMPRESS[compression](mark + CONTENT[name]))
    assert read_file(file, FieldNames()).all == EXAMPLES


@pytest.mark.parametrize("compression", [".gz", ".bz2", ".xz"])
def test_a_compressed_file_is_known_by_its_first_bytes(tmp_path: Path, compression: str) -> None:
    file = tmp_path / "data.jsonl"
    file.write_bytes(COMPRESS[compression](LINES[: len(LINES) // 2]) + COMPRESS[compression](LINES[len(LINES) // 2 :]))
    assert read_file(file, FieldNames()).all == EXAMPLES, "and may be several that were put one after another"


@pytest.mark.parametrize("compression", COMPRESS)
def test_the_mark_and_the_line_ends_of_a_text_are_not_learned(tmp_path: Path, compression: str) -> None:
    file = tmp_path / f"notes.txt{compression}"
    file.write_bytes(COMPRESS[compression](b"\xef\xbb\xbfone\r\ntwo\rthree\n"))
    assert read_file(file, FieldNames()).all == ("one\ntwo\nthree\n",)


@pytest.mark.parametrize("compression", [".gz", ".bz2", ".xz"])
def test_a_compressed_file_that_was_cut_or_damaged_is_refused(tmp_path: Path, compression: str) -> None:
    whole = COMPRESS[compression](LINES)
    file = tmp_path / f"data.jsonl{compression}"
    for content in (whole[:-8], whole[: len(whole) // 2], b'{"text": "a"}\n'):
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"data\.jsonl\.\w+: cannot be read: .*; copy the file again"):
            read_file(file, FieldNames())


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("data.jsonl", LINES)
    return out.getvalue()


def tarred() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        entry = tarfile.TarInfo("data.jsonl")
        entry.size = len(LINES)
        archive.addfile(entry, io.BytesIO(LINES))
    return out.getvalue()


WIDE = "hello there, these are words\n" * 4
FOREIGN = {
    "zstd": (b"\x28\xb5\x2f\xfd\x24\x00rest", "compressed with Zstandard; decompress it first: zstd -d "),
    "lz4": (b"\x04\x22\x4d\x18rest", "compressed with LZ4"),
    "parquet": (b"PAR1\x15\x04rest", r"a Parquet file; call it \.parquet, or convert it .*read_parquet"),
    "arrow": (b"ARROW1\x00\x00rest", "an Arrow file; convert it"),
    "zip": (zipped(), "a zip archive"),
    "tar": (tarred(), "a tar archive; .*tar -xf "),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n", "a git-lfs pointer, .*git lfs pull"),
    "html": (b"\n<!DOCTYPE html><html><body>Not found</body></html>", "a page of HTML"),
    "pdf": (b"%PDF-1.7\n", "a PDF document"),
    "utf-16": (WIDE.encode("utf-16"), r"UTF-16 text \(little-endian\); convert it: iconv -f UTF-16 -t UTF-8"),
    "utf-16-be": (b"\xfe\xff" + WIDE.encode("utf-16-be"), r"UTF-16 text \(big-endian\)"),
    "utf-16-le without a mark": (WIDE.encode("utf-16-le"), r"UTF-16 text \(little-endian\)"),
    "utf-16-be without a mark": (WIDE.encode("utf-16-be"), r"UTF-16 text \(big-endian\)"),
    "utf-32": (WIDE.encode("utf-32"), r"UTF-32 text \(little-endian\)"),
    "utf-32-be without a mark": (WIDE.encode("utf-32-be"), r"UTF-32 text \(big-endian\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", ["data.jsonl", "data.txt", "data.csv", "data.json", "data", "data.jsonl.gz"])
@pytest.mark.parametrize("what", FOREIGN)
def test_what_is_no_text_is_refused_by_what_it_is(tmp_path: Path, what: str, name: str) -> None:
    content, message = FOREIGN[what]
    file = tmp_path / name
    file.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(DataError, match=rf"(it|what is compressed in it) is {message}"):
        read_file(file, FieldNames())


def test_a_file_that_is_compressed_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl.gz").write_bytes(gzip.compress(bz2.compress(LINES)))
    with pytest.raises(DataError, match="compressed once more; decompress it first"):
        read_file(tmp_path / "data.jsonl.gz", FieldNames())


@cache
def expanding(compression: str) -> bytes:
    """A compressed file of 32 MB of spaces."""
    return COMPRESS[compression]((b" " * 1023 + b"\n") * (1 << 15))


@pytest.mark.parametrize("name", ["bomb.jsonl", "bomb.txt", "bomb.json", "bomb.csv"])
@pytest.mark.parametrize("compression", [".gz", ".bz2", ".xz"])
def test_a_file_that_expands_without_end_is_refused_in_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, compression: str
) -> None:
    monkeypatch.setattr(byte_source, "_FREE_BYTES", 1 << 21)
    file = tmp_path / f"{name}{compression}"
    file.write_bytes(expanding(compression))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="bytes that expand to more than"):
            read_file(file, FieldNames())
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()


def test_an_xz_file_may_not_ask_for_any_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(byte_source, "_XZ_MEMORY_BYTES", 1 << 16)
    (tmp_path / "data.jsonl.xz").write_bytes(lzma.compress(LINES))
    with pytest.raises(DataError, match=r"data\.jsonl\.xz: cannot be read: Memory usage limit"):
        read_file(tmp_path / "data.jsonl.xz", FieldNames())


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedlora_client.records.jsonl.MAX_LINE_BYTES", 1 << 20)
    (tmp_path / "data.jsonl").write_bytes(b'{"text": "a"}\n{"text": "' + b"a" * (1 << 21) + b'"}\n')
    with pytest.raises(DataError, match=r"data\.jsonl: line 2 is longer than 1 MiB"):
        read_file(tmp_path / "data.jsonl", FieldNames())


TABLES = {
    "header": (".csv", "question,answer\na,b\n", "the first line must name the columns: .* got question, answer; rename"),
    "no header": (".csv", "2 + 2 =,4\n3 + 3 =,6\n", "the first line must name the columns"),
    "cells": (".csv", "prompt,completion\na,b\nc,d,e\n", r"data\.csv: line 3: 3 cells, and the first line names 2 columns"),
    "quotation": (".csv", 'prompt,completion\n"a"b,c\n', r"data\.csv: line 2: not a table: .*quotation marks"),
    "open quotation": (".csv", 'prompt,completion\n"a,b\nc,d\n', "not a table: "),
    "twice": (".csv", "text,label,label\na,b,c\n", "names label twice"),
    "empty": (".csv", "", "the first line must name the columns"),
    "header only": (".csv", "prompt,completion\n", "no example in it"),
    "list": (".csv", "messages\n\"[{'role': 'user'}]\"\n", r"line 2: messages is not JSON: .*not as Python does"),
    "nothing to learn": (".tsv", "prompt\tcompletion\na\t\n", "line 2: completion is empty"),
}  # fmt: skip


@pytest.mark.parametrize(("suffix", "content", "message"), TABLES.values(), ids=list(TABLES))
def test_a_table_that_cannot_be_read_is_refused_by_its_place(
    tmp_path: Path, suffix: str, content: str, message: str
) -> None:
    (tmp_path / f"data{suffix}").write_text(content)
    with pytest.raises(DataError, match=message):
        read_file(tmp_path / f"data{suffix}", FieldNames())


def test_a_table_with_tabs_needs_no_quotation_marks(tmp_path: Path) -> None:
    (tmp_path / "dev.tsv").write_text('sentence\tlabel\n"it \'s a charming" journey .\t1\nan "open one\t0\n')
    examples = read_file(tmp_path / "dev.tsv", FieldNames(text="sentence", label="label")).all
    assert examples == (Labelled('"it \'s a charming" journey .', "1"), Labelled('an "open one', "0"))


def test_an_empty_cell_is_no_value_where_no_text_is_due(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text(",text,label,weight\n0,good one,,1\n1,bad one,bad,\n2,neither,,0\n")
    content = read_file(tmp_path / "data.csv", FieldNames())
    assert content.all == (TextRecord("good one"), Labelled("bad one", "bad"))
    assert content.left_out == 1
    assert content.notices == (
        "1 record left out: their weight is 0, or train is false", "fields that are not learned: column 1"
    )  # fmt: skip


JSON = {
    "other object": ('{"train_x": [1], "y": 2}', "an object with train_x, y; expected a list of objects with text"),
    "list of texts": ('["a", "b"]', "record 1: expected a JSON object .*, got the string 'a'"),
    "number": ("3", "record 1: expected a JSON object .*, got 3"),
    "empty": ("", "no example in it"),
    "empty list": ("[]", "no example in it"),
    "broken list": ('[{"text": "a"}, {"text": ]', "not JSON: .*expected one list of objects, or one JSON object a line"),
    "broken record": ('[{"text": "a"}, {"text": 3}]', "record 2: text must be a string, got 3"),
    "columns": ('{"prompt": ["a"], "completion": ["b"]}', "columns, not records: .* python -c"),
    "columns of chats": ('{"id": [1], "messages": [[{"role": "user"}]]}', "columns, not records"),
    "columns of pandas": ('{"text": {"0": "a", "1": "b"}}', "columns, not records"),
    "no list": ('{"name": "x"}', "an object with name; expected a list of objects"),
    "splits": ('{"train": [{"text": "a"}], "test": [{"text": "b"}]}', "an object with train, test; expected"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "message"), JSON.values(), ids=list(JSON))
def test_json_that_holds_no_records_is_refused_by_its_place(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "data.json").write_text(content)
    with pytest.raises(DataError, match=rf"data\.json: {message}"):
        read_file(tmp_path / "data.json", FieldNames())


def test_records_in_a_text_file_are_learned_as_text_and_told(tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_bytes(LINES)
    content = read_file(tmp_path / "data.txt", FieldNames())
    assert content.all == (LINES.decode(),)
    assert "a file of records ends in .jsonl" in content.notices[0]
    (tmp_path / "data.txt").write_text('[\n  {"text": "a"},\n  {"text": "b"}\n]\n')
    assert "a file of them ends in .json" in read_file(tmp_path / "data.txt", FieldNames()).notices[0]
    for plain in ("[1] a note\n", "[]\n", "[1, 2]\n", '["a"]\n', "[" * 99999):
        (tmp_path / "data.txt").write_text(plain)
        assert read_file(tmp_path / "data.txt", FieldNames()).notices == ()


def test_one_record_alone_may_name_its_fields_otherwise(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text('{"question": "a", "answer": "b"}')
    content = read_file(tmp_path / "data.json", FieldNames(prompt="question", completion="answer"))
    assert content.all == (Completion("a", "b"),)


@settings(max_examples=60)
@given(
    content=st.binary(max_size=300),
    name=st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.tsv", "a.txt", "a.gz", "a.xz"]),
)
def test_any_bytes_give_examples_or_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str
) -> None:
    file = tmp_path_factory.mktemp("any") / name
    file.write_bytes(content)
    try:
        read_file(file, FieldNames())
    except DataError as error:
        assert str(file) in str(error)


@settings(max_examples=60)
@given(place=st.integers(0, 10_000), byte=st.integers(0, 255), compression=st.sampled_from([".gz", ".bz2", ".xz"]))
def test_a_damaged_byte_of_a_compressed_file_gives_examples_or_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, place: int, byte: int, compression: str
) -> None:
    content = bytearray(COMPRESS[compression](LINES))
    content[place % len(content)] = byte
    file = tmp_path_factory.mktemp("damaged") / f"a.jsonl{compression}"
    file.write_bytes(content)
    try:
        read_file(file, FieldNames())
    except DataError as error:
        assert str(file) in str(error)


def test_real_texts_are_read_as_gzip_gives_them(shared: Path) -> None:
    file = shared / "data" / "tinyshakespeare" / "input.txt.gz"
    assert read_text(file) == gzip.decompress(file.read_bytes()).decode()


def test_real_questions_and_answers_are_read_by_their_names(shared: Path) -> None:
    names = FieldNames(prompt="question", completion="answer")
    content = read_file(shared / "data" / "gsm8k" / "test.jsonl.gz", names)
    assert len(content.all) == 1319
    assert not content.notices


def test_real_instructions_of_dolly_are_alpacas_by_other_names(shared: Path) -> None:
    names = FieldNames(input="context", output="response")
    content = read_file(shared / "data" / "dolly-clients" / "global_test.jsonl.gz", names)
    assert len(content.all) == 80
    assert content.notices == ("fields that are not learned: category",)
