"""JSON Lines: what is read, and what is said of each thing that cannot be."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fedlora.config.run import DataConfig
from fedlora.data.examples import Chat, ChatMessage, Completion, Example, Labelled, TextRecord
from fedlora.errors import DataError
from fedlora_client.data.files_dataset import files
from fedlora_client.records.jsonl import parse_example, read_jsonl
from hypothesis import given
from hypothesis import strategies as st

MESSAGES = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day."}]
CHAT = Chat((ChatMessage("user", "Hello"), ChatMessage("assistant", "Good day.")))


def written(path: Path, *records: object) -> Path:
    """A file of JSON Lines; compressed where its name says so."""
    data = "".join((record if isinstance(record, str) else json.dumps(record)) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["data.jsonl", "data.jsonl.gz"])
def test_a_file_gives_its_examples_in_order(tmp_path: Path, name: str) -> None:
    path = written(
        tmp_path / name,
        {"text": "Once"},
        {"prompt": "2 + 2 =", "completion": " 4", "source": "school"},
        "",
        "  \t",
        {"messages": MESSAGES, "prompt": "Hello", "id": 7},
    )
    assert read_jsonl(path) == (TextRecord("Once"), Completion("2 + 2 =", " 4"), CHAT)


def test_a_byte_order_mark_and_windows_line_ends_are_no_part_of_the_data(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b"}')
    assert read_jsonl(path) == (TextRecord("a"), TextRecord("b"))


def test_line_separators_inside_a_text_do_not_end_the_line(tmp_path: Path) -> None:
    text = "one\u2028two\x85three\x0bfour"
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"text": text}, ensure_ascii=False), encoding="utf-8")
    assert read_jsonl(path) == (TextRecord(text),)


def test_a_field_that_is_null_is_as_one_that_is_not_there() -> None:
    assert parse_example('{"text": null, "prompt": "a", "completion": "b", "messages": null}') == Completion("a", "b")


@pytest.mark.parametrize("label", ["good", 3, 0.5, True, ["a", "b"], {"a": 1}])
def test_a_label_is_kept_as_it_was_given(label: object) -> None:
    assert parse_example(json.dumps({"text": "a", "label": label})) == Labelled("a", label)
    with_pair = parse_example(json.dumps({"text": "a", "text_pair": "b", "label": label}))
    assert with_pair == Labelled("a", label, has_pair=True)


REFUSED = {
    "not-json": ("{broken", "not JSON: Expecting property name.*expected one JSON object a line"),
    "two-objects": ('{"text": "a"} {"text": "b"}', "not JSON: Extra data"),
    "deep": ("[" * 100_000, "not JSON: "),
    "long-number": ("9" * 10_000, "not JSON: "),
    "list": (
        '["a", "b"]',
        "expected a JSON object with text, or prompt and completion, or messages, .*, got a list of 2",
    ),
    "string": ('"once"', "expected a JSON object .*, got the string 'once'"),
    "number": ("3", "expected a JSON object .*, got 3"),
    "null": ("null", "expected a JSON object .*, got null"),
    "other-fields": ('{"question": "a", "answer": "b"}', "expected the fields text, .*, got question, answer; rename"),
    "no-fields": ("{}", "expected the fields text, .*, got none"),
    "null-fields": ('{"text": null}', r"expected the fields text, .*, got text \(null\)"),
    "half-a-pair": ('{"prompt": "a"}', "expected the fields text, or prompt and completion, .*, got prompt;"),
    "two-forms": (
        '{"text": "a", "prompt": "b", "completion": "c"}',
        "expected only one of .*, got text and prompt/completion; remove",
    ),
    "number-as-text": ('{"text": 7}', "text must be a string, got 7"),
    "list-as-prompt": ('{"prompt": ["a"], "completion": "b"}', "prompt must be a string, got a list of 1"),
    "object-as-completion": ('{"prompt": "a", "completion": {}}', "completion must be a string, got an object"),
    "empty-text": ('{"text": ""}', "text is empty"),
    "empty-completion": ('{"prompt": "a", "completion": ""}', "completion is empty"),
    "half-a-character": (r'{"text": "ab\ud83d"}', r"text is not text: \\ud83d is half of a character"),
    "messages-as-text": ('{"messages": "hello"}', "messages must be a list of objects .*, got the string 'hello'"),
    "message-as-text": ('{"messages": ["hello"]}', "message 1: expected an object .*, got the string 'hello'"),
    "no-role": ('{"messages": [{"content": "a"}]}', "message 1: role is missing"),
    "no-content": ('{"messages": [{"role": "user", "content": "a"}, {"role": "b"}]}', "message 2: content is missing"),
    "parts": (
        '{"messages": [{"role": "user", "content": [{"type": "text"}]}]}',
        'message 1: content: part 1: expected {"type": "text", "text": "..."}, got an object',
    ),
    "null-content": (
        '{"messages": [{"role": "user", "content": null}]}',
        "message 1: content must be a string or a list of parts, got null",
    ),
    "no-messages": ('{"messages": []}', r"no message of the role 'assistant' with content.*\(roles: none\)"),
    "no-assistant": ('{"messages": [{"role": "user", "content": "a"}]}', r"no message of the role 'assistant'"),
}


@pytest.mark.parametrize(("line", "message"), REFUSED.values(), ids=list(REFUSED))
def test_a_line_that_is_no_example_is_refused_by_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    path = written(tmp_path / "data.jsonl", {"text": "sound"}, "", line, {"text": "sound"})
    with pytest.raises(DataError, match=rf"data\.jsonl: line 3: {message}"):
        read_jsonl(path)


@pytest.mark.parametrize("name", ["data.jsonl", "data.jsonl.gz"])
@pytest.mark.parametrize("content", ["", "\n \n"])
def test_a_file_without_an_example_is_refused(tmp_path: Path, name: str, content: str) -> None:
    path = written(tmp_path / name, content)
    with pytest.raises(DataError, match=rf"{name}: no example in it; expected a JSON object a line"):
        read_jsonl(path)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_bytes_that_are_not_utf8_are_counted_from_the_beginning_of_the_file(tmp_path: Path, mark: bytes) -> None:
    path = tmp_path / "data.jsonl"
    for number, begin in ((1, b'{"text": "caf'), (2, b'{"text": "a"}\n{"text": "caf')):
        path.write_bytes(mark + begin + b'\xe9"}\n')
        place = len(mark + begin)
        with pytest.raises(DataError, match=rf"data\.jsonl: line {number}: not UTF-8 text: byte {place} is wrong"):
            read_jsonl(path)


def test_a_file_that_is_missing_or_a_folder_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.jsonl: cannot be read: No such file or directory"):
        read_jsonl(tmp_path / "absent.jsonl")
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read_jsonl(tmp_path)


def test_a_compressed_file_that_is_none_or_was_cut_short_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "data.jsonl.gz", *({"text": f"record {number * number}"} for number in range(200)))
    whole = path.read_bytes()
    for content, message in (
        (whole[:-20], "ended before"),
        (b'{"text": "a"}\n', "Not a gzipped file"),
        (whole[:40], ""),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"data\.jsonl\.gz: cannot be read: .*{message}.*; copy the file again"):
            read_jsonl(path)
    broken = bytearray(whole)
    broken[len(whole) // 2] ^= 0xFF
    path.write_bytes(bytes(broken))
    with pytest.raises(DataError, match=r"data\.jsonl\.gz: "):
        read_jsonl(path)


TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)


def records() -> st.SearchStrategy[tuple[dict[str, Any], Example]]:
    """(a JSON object, the example that it is)"""
    texts = TEXT.map(lambda text: ({"text": text}, TextRecord(text)))
    pairs = st.tuples(TEXT | st.just(""), TEXT).map(
        lambda pair: ({"prompt": pair[0], "completion": pair[1]}, Completion(*pair))
    )
    chats = st.lists(st.tuples(TEXT, TEXT), max_size=3).map(lambda said: [*said, ("assistant", "yes")])
    chat = chats.map(
        lambda said: (
            {"messages": [{"role": role, "content": content} for role, content in said]},
            Chat(tuple(ChatMessage(role, content) for role, content in said)),
        )
    )
    return texts | pairs | chat


@given(record=records(), ascii_only=st.booleans())
def test_what_was_written_is_what_is_read(record: tuple[dict[str, Any], Example], ascii_only: bool) -> None:
    written_record, example = record
    assert parse_example(json.dumps(written_record, ensure_ascii=ascii_only)) == example


@given(st.text(max_size=40))
def test_any_line_gives_an_example_or_a_data_error(line: str) -> None:
    try:
        parse_example(line)
    except DataError:
        return
    raise AssertionError(f"{line!r} is no example")


def own(path: Path) -> dict[str, str]:
    return {"data-path": str(path)}


def test_files_reads_texts_and_records_below_a_folder_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    written(tmp_path / "a.jsonl", *({"text": f"a{number}"} for number in range(20)))
    written(tmp_path / "deep" / "b.jsonl.gz", {"prompt": "p", "completion": "c"}, {"messages": MESSAGES})
    written(tmp_path / "d.jsonl", {"text": "a single one"})
    (tmp_path / "c.txt").write_text("line\n" * 10)
    (tmp_path / "e.json").write_text("[]")
    data = files(DataConfig(name="files"), own(tmp_path))
    assert data.train == (
        *(TextRecord(f"a{number}") for number in range(18)),
        "line\n" * 9,
        TextRecord("a single one"),
        Completion("p", "c"),
    )
    assert data.held_out == (TextRecord("a18"), TextRecord("a19"), "line\n", CHAT)


@pytest.mark.parametrize("name", ["kitchen.jsonl", "kitchen.jsonl.gz"])
def test_files_takes_a_single_file_and_its_name(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / name, {"text": "a"}, {"text": "b"})
    data = files(DataConfig(name="files"), own(path))
    assert (data.name, data.train, data.held_out) == ("kitchen", (TextRecord("a"),), (TextRecord("b"),))


def test_files_refuses_a_place_whose_files_are_empty(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("")
    with pytest.raises(DataError, match=rf"{tmp_path}: no text in 2 files; give this device data"):
        files(DataConfig(name="files"), own(tmp_path))


def test_files_names_a_folder_without_any_file_of_the_kinds_it_reads(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no \*\.txt file below it, nor \*\.jsonl, \*\.ndjson"):
        files(DataConfig(name="files"), own(tmp_path))


def real(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def test_real_articles_are_read_as_they_lie(shared: Path) -> None:
    path = shared / "data" / "ag_news" / "train10k.jsonl.gz"
    assert [record["text"] for record in real(path)] == [
        example.text for example in read_jsonl(path) if isinstance(example, Labelled)
    ]


def test_real_questions_are_refused_until_their_fields_are_renamed(shared: Path, tmp_path: Path) -> None:
    path = shared / "data" / "gsm8k" / "test.jsonl.gz"
    with pytest.raises(
        DataError, match=r"test\.jsonl\.gz: line 1: expected the fields .*, got question, answer; rename"
    ):
        read_jsonl(path)
    records = list(real(path))
    renamed = written(
        tmp_path / "gsm8k.jsonl", *({"prompt": one["question"], "completion": one["answer"]} for one in records)
    )
    examples = read_jsonl(renamed)
    assert len(examples) == 1319
    assert examples == tuple(Completion(one["question"], one["answer"]) for one in records)
