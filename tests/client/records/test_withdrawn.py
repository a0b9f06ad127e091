"""Records that were taken back are neither trained on nor measured on, wherever they stand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fedlora.config.run import DataConfig
from fedlora.data.examples import Chat, ChatMessage, Completion, Labelled, TextRecord
from fedlora.errors import DataError
from fedlora_client.data.files_dataset import files
from fedlora_client.data.version import version_of
from fedlora_client.records.jsonl import read_jsonl
from fedlora_client.records.withdrawn import digest_of, read_withdrawn, withdraw

EXAMPLES = (
    "a text",
    TextRecord("a text"),
    Completion("a", " text"),
    Completion("a ", "text"),
    Labelled("a text", "x"),
    Labelled("a text", 1),
    Labelled("a text", "1"),
    Chat((ChatMessage("user", "a"), ChatMessage("assistant", "text"))),
    Chat((ChatMessage("user", "a"), ChatMessage("assistant", "text", {"name": "b"}))),
)


def test_records_that_differ_in_what_is_learned_have_other_digests() -> None:
    assert len({digest_of(example) for example in EXAMPLES}) == len(EXAMPLES)
    assert [digest_of(example) for example in EXAMPLES] == [digest_of(example) for example in EXAMPLES]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    data.mkdir()
    for name in ("one", "two"):
        lines = [json.dumps({"prompt": f"{name} {n}", "completion": str(n)}) for n in range(10)]
        (data / f"{name}.jsonl").write_text("\n".join([*lines, json.dumps({"prompt": "same", "completion": "!"})]))
    (data / "diary.txt").write_text("dear diary\n" * 20)
    return data


def test_a_withdrawn_record_is_gone_from_every_file_and_the_others_stay_where_they_were(
    folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "withdrawn.jsonl"
    node = {"data-path": str(folder), "data-withdrawn": str(path)}
    before, version = files(DataConfig(name="files"), node), version_of(folder, path)
    first = read_jsonl(folder / "one.jsonl")[0]
    same = Completion("same", "!")
    entries = [{"digest": digest_of(first), "file": "one.jsonl"}, {"digest": digest_of(same), "file": "one.jsonl"}]
    assert withdraw(path, entries) == 2
    assert withdraw(path, entries) == 0
    assert version_of(folder, path) != version
    after = files(DataConfig(name="files"), node)
    assert after.train == tuple(example for example in before.train if example != first)
    assert after.held_out == tuple(example for example in before.held_out if example != same)
    assert [source.left_out for source in after.sources] == [0, 2, 1]
    assert withdraw(path, [{"file": "diary.txt"}]) == 1
    assert not any("diary" in str(example) for example in files(DataConfig(name="files"), node).train)
    assert "first" not in path.read_text()
    assert "one 0" not in path.read_text()


@pytest.mark.parametrize("text", ["{", "[]\n", '{"at": "today"}\n', "\xff"])
def test_withdrawals_that_cannot_be_read_stop_the_training(folder: Path, tmp_path: Path, text: str) -> None:
    path = tmp_path / "withdrawn.jsonl"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"withdrawn\.jsonl"):
        files(DataConfig(name="files"), {"data-path": str(folder), "data-withdrawn": str(path)})
    assert path.read_bytes() == text.encode("latin-1")


def test_no_file_withdraws_nothing(tmp_path: Path) -> None:
    assert read_withdrawn(tmp_path / "none.jsonl").remaining(EXAMPLES) == EXAMPLES
