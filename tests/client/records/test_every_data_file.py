"""What may lie in the place of any data file: one clear refusal, in bounded time and memory."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import resource
import signal
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType

import pytest
from fedlora.config.run import FieldNames
from fedlora.data.examples import TextRecord
from fedlora.errors import DataError, NotRecordsError
from fedlora_client.records.data_file import read_file

MOST_SECONDS, MOST_KILOBYTES = 10, 200_000
NAMES = ("data.txt", "data", "data.jsonl", "data.json", "data.csv", "data.tsv", "data.jsonl.gz", "data.txt.xz")
LINE = b'{"text": "a sound line"}\n'


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def random(path: Path) -> None:
    path.symlink_to("/dev/urandom")


def folder(path: Path) -> None:
    path.mkdir()


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def nothing(path: Path) -> None:
    path.symlink_to("nowhere")


def hole(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 42)


def hole_behind_text(path: Path) -> None:
    path.write_bytes(LINE * 1000)
    with path.open("r+b") as file:
        file.truncate(1 << 42)


def brackets(path: Path) -> None:
    path.write_bytes(b'{"x":[' + b"[]," * 5_000_000 + b"[]]}")


def list_of_brackets(path: Path) -> None:
    path.write_bytes(b"[" + b"[]," * 5_000_000 + b"[]]")


def deep(path: Path) -> None:
    path.write_bytes(b"[" * 5_000_000)


@cache
def expanding(byte: bytes) -> bytes:
    """A gzip file of 64 MB of one byte."""
    return gzip.compress(byte * (64 << 20))


def bomb(path: Path) -> None:
    path.write_bytes(expanding(b"a"))


def bomb_of_zeros(path: Path) -> None:
    path.write_bytes(expanding(b"\0"))


# What is a sound text, whatever else it looks like.
TEXTS = {(name, kind) for name in ("data.txt", "data") for kind in (brackets, list_of_brackets, deep)}


@contextmanager
def bounded() -> Iterator[None]:
    def late(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"it still read after {MOST_SECONDS} s")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    previous = signal.signal(signal.SIGALRM, late)
    signal.alarm(MOST_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < MOST_KILOBYTES, f"{grown / 1000:.0f} MB"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "instead",
    [pipe, endless, random, folder, loop, nothing, hole, hole_behind_text, brackets, list_of_brackets, deep, bomb,
     bomb_of_zeros],
)  # fmt: skip
def test_whatever_lies_in_a_data_files_place_is_refused(
    tmp_path: Path, name: str, instead: Callable[[Path], None]
) -> None:
    path = tmp_path / name
    instead(path)
    with bounded():
        if (name, instead) in TEXTS:
            assert read_file(path, FieldNames()).all
            return
        with pytest.raises(DataError) as told:
            read_file(path, FieldNames())
    assert str(told.value).startswith(str(path))
    assert "\n" not in str(told.value)


def brackets_in(beginning: bytes, end: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(beginning + b"[]," * 5_000_000 + b"[]" + end)

    return write


JSON_IN_OTHERS = {
    "a cell": ("data.csv", brackets_in(b'messages\n"[', b']"\n')),
    "tools as a text": ("data.jsonl", brackets_in(b'{"messages":[{"role":"assistant","content":"x"}],"tools":"[', b']"}')),
    "the tools of turns": (
        "data.jsonl", brackets_in(b'{"conversations":[{"from":"gpt","value":"x"}],"tools":"[', b']"}')),
    "a call": ("data.jsonl", brackets_in(b'{"conversations":[{"from":"function_call","value":"[', b']"}]}')),
}  # fmt: skip


@pytest.mark.parametrize("where", JSON_IN_OTHERS)
def test_json_within_a_text_is_bounded_like_a_file_of_it(tmp_path: Path, where: str) -> None:
    name, write = JSON_IN_OTHERS[where]
    write(tmp_path / name)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"lists and objects|function_call"):
            read_file(tmp_path / name, FieldNames())
        assert tracemalloc.get_traced_memory()[1] < MOST_KILOBYTES * 1000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("beginning", [b"[", b'[{"text": "x"},'])
def test_a_text_that_looks_like_a_list_is_not_read_as_one(tmp_path: Path, beginning: bytes) -> None:
    path = tmp_path / "data.txt"
    brackets_in(beginning, b"]")(path)
    tracemalloc.start()
    try:
        content = read_file(path, FieldNames())
        assert tracemalloc.get_traced_memory()[1] < MOST_KILOBYTES * 1000
    finally:
        tracemalloc.stop()
    assert bool(content.notices) == (b"text" in beginning)


def test_a_table_of_very_many_columns_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("text," + ",".join(map(str, range(150_000))) + "\n" + "," * 150_000 + "\n")
    with bounded(), pytest.raises(NotRecordsError, match="names 150001 columns; expected at most 4096"):
        read_file(path, FieldNames())


@pytest.mark.parametrize("beginning", [b'"text', b'text,"x'])
def test_a_first_row_that_does_not_end_is_refused(tmp_path: Path, beginning: bytes) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes(beginning + b"a\n" * (1 << 25))
    with pytest.raises(NotRecordsError, match="the first line has more than 1048576 characters"):
        read_file(path, FieldNames())


@pytest.mark.parametrize("padding", [0, 4, 8188, 8192, 20_000])
@pytest.mark.parametrize("name", ["data.jsonl.gz", "data.jsonl.xz", "data.jsonl.bz2"])
def test_what_follows_zeros_behind_a_compressed_file_is_read_too(tmp_path: Path, name: str, padding: int) -> None:
    compressors: dict[str, Callable[[bytes], bytes]] = {
        ".gz": gzip.compress,
        ".xz": lzma.compress,
        ".bz2": bz2.compress,
    }
    compress = compressors[Path(name).suffix]
    sound = b"".join(compress(LINE * 8) + bytes(padding) for _ in range(3))
    (tmp_path / name).write_bytes(sound)
    assert len(read_file(tmp_path / name, FieldNames()).all) == 24
    for damaged in (sound + compress(LINE * 8)[:-5], sound + b"garbage", sound[:20] + b"????" + sound[24:]):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(DataError, match="cannot be read"):
            read_file(tmp_path / name, FieldNames())


def test_many_parts_and_large_ones_are_what_gzip_reads(tmp_path: Path) -> None:
    lines = [b'{"text": "%d %s"}\n' % (number, bytes([97 + number % 26]) * 9_000) for number in range(400)]
    parts = [b"".join(lines[:390]), b"", *lines[390:]]
    (tmp_path / "data.jsonl.gz").write_bytes(b"".join(map(gzip.compress, parts)))
    content = read_file(tmp_path / "data.jsonl.gz", FieldNames())
    assert [example.text for example in content.all if isinstance(example, TextRecord)] == [
        json.loads(line)["text"] for line in lines
    ]


def test_the_name_in_a_gzip_file_has_an_end(tmp_path: Path) -> None:
    (tmp_path / "data.txt.gz").write_bytes(b"\x1f\x8b\x08\x08" + bytes(6) + b"a" * 100_000_000)
    with bounded(), pytest.raises(DataError, match="cannot be read"):
        read_file(tmp_path / "data.txt.gz", FieldNames())


@pytest.mark.skipif(os.getuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("secret")
    (tmp_path / "x.txt").chmod(0)
    with pytest.raises(DataError, match="Permission denied"):
        read_file(tmp_path / "x.txt", FieldNames())
