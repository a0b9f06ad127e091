"""Parquet and data sets of the library `datasets`: files that the real packages wrote, and what is refused."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fedlora.config.hub_source import HubSource, hub_source
from fedlora.config.partition import PartitionConfig
from fedlora.config.run import DataConfig, FieldNames, RunConfig, changed, read_scenario
from fedlora.data.examples import Chat, Labelled, MultipleChoice
from fedlora.errors import ConfigError, DataError, NotRecordsError
from fedlora_client.data.device_data import device_data
from fedlora_client.records import arrow_child, arrow_rows
from fedlora_client.records.arrow_rows import read_hub, read_parquet
from fedlora_client.records.data_file import read_file

NONE = FieldNames()
SHA = "0123456789abcdef0123456789abcdef01234567"
ROWS = [{"text": f"text {number}", "label": number % 3, "source": "a"} for number in range(60)]


def saved(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """What `datasets` itself writes as Parquet."""
    datasets.Dataset.from_list(rows).to_parquet(str(folder / "data.parquet"))
    return folder / "data.parquet"


def test_records_are_those_that_datasets_wrote(tmp_path: Path) -> None:
    content = read_file(saved(tmp_path, ROWS), NONE)
    assert content.all == tuple(Labelled(str(row["text"]), row["label"]) for row in ROWS)
    assert content.places[:2] == ("row 1", "row 2")
    assert "fields that are not learned: source" in content.notices[0]


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd", "brotli"])
def test_every_compression_is_read(tmp_path: Path, compression: str) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet", compression=compression, row_group_size=7)
    assert len(read_parquet(tmp_path / "a.parquet", NONE).examples) == 60


def test_lists_and_structs_are_what_json_has_of_them(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day"}]
    (chat,) = read_parquet(saved(tmp_path, [{"messages": messages}]), NONE).examples
    assert isinstance(chat, Chat)
    assert [message.text for message in chat.messages] == ["Hello", "Good day"]
    arc = {"question": "2 + 2 =", "choices": {"text": ["3", "4"], "label": ["A", "B"]}, "answerKey": "B"}
    fields = FieldNames(prompt="question", choices="choices", answer="answerKey")
    assert read_parquet(saved(tmp_path, [arc]), fields).examples == (MultipleChoice("2 + 2 =", ("3", "4"), 1),)


def test_a_column_that_counts_and_is_no_text_is_refused_by_name_and_another_is_told(tmp_path: Path) -> None:
    table = pa.table({"text": ["a"], "when": pa.array([0], pa.timestamp("ms")), "raw": pa.array([b"x"], pa.binary())})
    pq.write_table(table, tmp_path / "a.parquet")
    assert "when (timestamp[ms]), raw (binary)" in read_parquet(tmp_path / "a.parquet", NONE).notices()[0]
    with pytest.raises(DataError, match=r"a\.parquet: column raw holds binary; expected text, numbers, or lists"):
        read_parquet(tmp_path / "a.parquet", FieldNames(text="raw"))
    deep = pa.array([[[[[[["x"]]]]]]])
    pq.write_table(pa.table({"text": deep}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet: column text holds list<.*; expected text"):
        read_parquet(tmp_path / "b.parquet", NONE)
    pq.write_table(pa.table({"text": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64()))}), tmp_path / "c.parquet")
    with pytest.raises(DataError, match="column text holds map"):
        read_parquet(tmp_path / "c.parquet", NONE)


def test_what_is_damaged_or_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, ROWS)
    for name, content in (
        ("cut", path.read_bytes()[:-9]),
        ("flipped", bytes([*path.read_bytes()[:30], 255, 255, 255])),
        ("empty", b""),
    ):
        (tmp_path / f"{name}.parquet").write_bytes(content)
        with pytest.raises(DataError, match=rf"{name}\.parquet: it is a Parquet file that cannot be read"):
            read_parquet(tmp_path / f"{name}.parquet", NONE)
    monkeypatch.setattr(arrow_rows, "MAX_ROWS", 59)
    with pytest.raises(DataError, match=r"data\.parquet: 60 rows; at most 59 are read; divide it"):
        read_parquet(path, NONE)
    monkeypatch.undo()
    monkeypatch.setattr(arrow_rows, "MAX_BYTES", 500)
    with pytest.raises(DataError, match="or 500 in all; divide it"):
        read_parquet(path, NONE)


def test_a_small_file_that_expands_without_end_costs_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(pa.table({"text": ["a" * (1 << 27)]}), tmp_path / "bomb.parquet", compression="zstd")
    assert (tmp_path / "bomb.parquet").stat().st_size < 1 << 20
    monkeypatch.setattr(arrow_rows, "_MEMORY_BYTES", 1 << 29)
    with pytest.raises(DataError, match=r"bomb\.parquet: .*(memory|row of more than|cannot be read)"):
        read_parquet(tmp_path / "bomb.parquet", NONE)


def test_lists_of_nothing_cost_neither_a_row_nor_a_file_many_times_its_memory(tmp_path: Path) -> None:
    def of_lists(rows: int, lists: int) -> Path:
        nothing = pa.ListArray.from_arrays(pa.array([0] * (rows * lists + 1), pa.int32()), pa.array([], pa.int8()))
        ends = pa.array(range(0, rows * lists + 1, lists), pa.int32())
        table = pa.table({"text": ["a"] * rows, "x": pa.ListArray.from_arrays(ends, nothing)})
        pq.write_table(table, tmp_path / "a.parquet")
        return tmp_path / "a.parquet"

    assert of_lists(100, 2_500).stat().st_size < 10_000
    tracemalloc.start()
    assert len(read_parquet(tmp_path / "a.parquet", NONE).examples) == 100
    assert tracemalloc.get_traced_memory()[1] < 4 << 20  # 1 MB as JSON; all rows as lists are 16 MB
    tracemalloc.stop()
    with pytest.raises(DataError, match=r"a\.parquet: a row cannot be read: 400002 lists and objects in"):
        read_parquet(of_lists(1, 400_000), NONE)


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, ROWS)
    child = tmp_path / "child.py"
    text = (
        Path(str(arrow_child.__file__))
        .read_text()
        .replace("import pyarrow.parquet", "import pyarrow_that_is_not_there")
    )
    child.write_text(text)
    monkeypatch.setattr(arrow_child, "__file__", str(child))
    with pytest.raises(NotRecordsError, match=r"pip install 'fedlora\[datasets\]'"):
        read_parquet(path, NONE)


def test_a_directory_that_datasets_saved_is_dealt_out(tmp_path: Path) -> None:
    parts = {"train": ROWS, "validation": ROWS[:4], "test": ROWS[:9]}
    made = datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in parts.items()})
    made.save_to_disk(str(tmp_path / "saved"))
    train, test = read_hub(f"hf:{tmp_path / 'saved'}", NONE)
    assert test is not None
    assert (len(train.examples), len(test.examples)) == (60, 9)
    config = DataConfig(name="files", path=f"hf:{tmp_path / 'saved'}", partition=PartitionConfig(rule="iid"))
    shares = [device_data(config, (("num-partitions", 3), ("partition-id", number))) for number in range(3)]
    assert sum(len(share.train) + len(share.held_out) for share in shares) == 60
    assert sum(len(share.test) for share in shares) == 9


def test_a_folder_of_files_is_read_as_the_library_reads_it(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    for name, count in (("train", 12), ("test", 5)):
        lines = [json.dumps(row) for row in ROWS[:count]]
        (tmp_path / "own" / f"{name}.jsonl").write_text("\n".join(lines))
    train, test = read_hub(f"hf:{tmp_path / 'own'}", NONE)
    assert test is not None
    assert (len(train.examples), len(test.examples)) == (12, 5)
    with pytest.raises(DataError, match=r"the library datasets does not read it: .*; check name, revision and network"):
        read_hub(f"hf:{tmp_path / 'nothing'}", NONE)


def test_a_name_on_the_hub_needs_a_commit(tmp_path: Path) -> None:
    assert hub_source(f"hf:openai/gsm8k:main@{SHA}") == HubSource(name="openai/gsm8k", config="main", revision=SHA)
    assert hub_source(f"hf:ag_news@{SHA}") == HubSource(name="ag_news", revision=SHA)
    for wrong in ("hf:ag_news", "hf:ag_news@main", f"hf:a/b/c@{SHA}", "hf:", f"hf:-o@{SHA[:-1]}"):
        with pytest.raises(ConfigError, match="with the 40 digits of a commit"):
            hub_source(wrong)
    with pytest.raises(ConfigError, match=r"needs data\.name = .files. and a data\.partition\.rule"):
        changed(RunConfig(), [f"data.path=hf:ag_news@{SHA}"])
    (tmp_path / "a.toml").write_text(
        f'data = {{ name = "files", path = "hf:a/b@{SHA}", partition = {{ rule = "iid" }} }}'
    )
    assert read_scenario(tmp_path / "a.toml").data.path == f"hf:a/b@{SHA}"
    (tmp_path / "b.toml").write_text('data = { name = "files", path = "hf:./own", partition = { rule = "iid" } }')
    assert read_scenario(tmp_path / "b.toml").data.path == f"hf:{tmp_path / 'own'}"
