"""A folder's files, by their names: what is trained on, what is held out, what is left out and why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fedlora.config.run import DataConfig
from fedlora.data.datasets import DeviceData
from fedlora.data.examples import TextRecord
from fedlora.errors import DataError
from fedlora_client.data.files_dataset import files

ROWS = 20


def holding(place: Path, *names: str) -> Path:
    """A folder with files of these names, each with records or lines that tell where they come from."""
    for name in names:
        file = place / name
        file.parent.mkdir(parents=True, exist_ok=True)
        records = [{"text": f"{name} {number}"} for number in range(ROWS)]
        plain = name.lower()
        if plain.endswith(".json"):
            file.write_text(json.dumps(records))
        elif plain.endswith(".csv"):
            file.write_text("text\n" + "".join(f"{record['text']}\n" for record in records))
        elif plain.endswith(".jsonl"):
            file.write_text("".join(json.dumps(record) + "\n" for record in records))
        else:
            file.write_text(f"{name}\n" * ROWS)
    return place


def read(place: Path, **fields: str) -> DeviceData:
    return files(DataConfig(name="files"), {"data-path": str(place)})


def sources(data: DeviceData) -> dict[str, tuple[int, int]]:
    return {source.name: (source.train, source.held_out) for source in data.sources}


FOLDERS: dict[str, tuple[list[str], dict[str, tuple[int, int]], list[str]]] = {
    "train and valid and test": (
        ["train.jsonl", "valid.jsonl", "test.jsonl"], {"train.jsonl": (20, 0), "valid.jsonl": (0, 20)},
        ["test.jsonl: a test set is never trained on"],
    ),
    "train and test": (["train.csv", "test.csv"], {"train.csv": (20, 0), "test.csv": (0, 20)}, []),
    "train alone": (["train.json"], {"train.json": (18, 2)}, []),
    "other words": (["training.json", "dev.json"], {"training.json": (20, 0), "dev.json": (0, 20)}, []),
    "capitals": (["Train.JSONL", "VAL.jsonl"], {"Train.JSONL": (20, 0), "VAL.jsonl": (0, 20)}, []),
    "in folders": (
        ["train/a.jsonl", "train/b.jsonl", "validation/a.jsonl"],
        {"train/a.jsonl": (20, 0), "train/b.jsonl": (20, 0), "validation/a.jsonl": (0, 20)}, [],
    ),
    "in pieces": (
        ["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "test-00000-of-00001.jsonl"],
        {"train-00000-of-00002.jsonl": (20, 0), "train-00001-of-00002.jsonl": (20, 0),
         "test-00000-of-00001.jsonl": (0, 20)}, [],
    ),
    "behind a name": (
        ["pets_train.jsonl", "pets_test.jsonl"], {"pets_train.jsonl": (20, 0), "pets_test.jsonl": (0, 20)}, []
    ),
    "train by size": (["train10k.jsonl", "test.jsonl"], {"train10k.jsonl": (20, 0), "test.jsonl": (0, 20)}, []),
    "others beside train": (
        ["train.jsonl", "notes.txt", "more.jsonl"], {"train.jsonl": (18, 2)},
        ["more.jsonl, notes.txt: a file is called so that it is to train on"],
    ),
    "no train": (["a.jsonl", "test.jsonl"], {"a.jsonl": (20, 0), "test.jsonl": (0, 20)}, []),
    "licence": (
        ["LICENSE.txt", "README.txt", "train.json"], {"train.json": (18, 2)}, ["LICENSE.txt, README.txt: it is about"]
    ),
    "notes that begin so": (["dev-notes.txt", "test_plan.txt"], {"dev-notes.txt": (1, 1), "test_plan.txt": (1, 1)}, []),
    "a README alone": (["README.txt"], {"README.txt": (1, 1)}, []),
    "hidden": (["a.txt", ".git/notes.txt", "._a.txt", "__MACOSX/a.txt"], {"a.txt": (1, 1)}, []),
    "no data": (["a.txt", "run.py", "b.md"], {"a.txt": (1, 1)}, ["b.md, run.py: neither text nor records"]),
}  # fmt: skip


@pytest.mark.parametrize(("names", "read_ones", "left_out"), FOLDERS.values(), ids=list(FOLDERS))
def test_the_files_of_a_folder_are_what_their_names_say(
    tmp_path: Path, names: list[str], read_ones: dict[str, tuple[int, int]], left_out: list[str]
) -> None:
    data = read(holding(tmp_path, *names))
    assert sources(data) == read_ones
    told = [notice for notice in data.notices if "left out" in notice]
    assert len(told) == len(left_out)
    for notice, words in zip(told, left_out, strict=True):
        assert f"{tmp_path}: left out: {words}" in notice


def test_what_is_held_out_is_never_trained_on(tmp_path: Path) -> None:
    data = read(holding(tmp_path, "train.jsonl", "valid.jsonl", "test.jsonl"))
    assert data.train == tuple(TextRecord(f"train.jsonl {number}") for number in range(ROWS))
    assert data.held_out == tuple(TextRecord(f"valid.jsonl {number}") for number in range(ROWS))


def test_a_folder_with_nothing_to_train_on_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"only test\.jsonl to measure on, nothing to train on; .*name one file"):
        read(holding(tmp_path, "test.jsonl"))
    assert read(tmp_path / "test.jsonl").name == "test", "the file itself is split as any other"


def test_json_and_tables_that_hold_no_records_are_left_out_of_a_folder(tmp_path: Path) -> None:
    holding(tmp_path, "notes.txt")
    (tmp_path / "config.json").write_text('{"a": 1, "b": [2]}')
    (tmp_path / "dataset_info.json").write_text('{"mine": {"file_name": "mine.json"}}')
    (tmp_path / "prices.csv").write_text("item,price\napple,3\n")
    data = read(tmp_path)
    assert sources(data) == {"notes.txt": (1, 1)}
    assert "config.json: an object with a, b" in data.notices[0]
    assert "dataset_info.json: an object with mine" in data.notices[1]
    assert "prices.csv: the first line must name the columns" in data.notices[2]
    (tmp_path / "notes.txt").rename(tmp_path / "notes.md")
    with pytest.raises(DataError, match=r"no text in 3 files; .*an object with a, b"):
        read(tmp_path)


def test_a_file_to_train_on_is_never_left_out(tmp_path: Path) -> None:
    holding(tmp_path, "notes.txt")
    (tmp_path / "train.csv").write_text("item,price\napple,3\n")
    with pytest.raises(DataError, match=r"train\.csv: the first line must name the columns"):
        read(tmp_path)
    (tmp_path / "train.csv").unlink()
    (tmp_path / "train.parquet").write_bytes(b"PAR1....PAR1")
    with pytest.raises(DataError, match=r"train\.parquet: it is a Parquet file"):
        read(tmp_path)
    (tmp_path / "train.parquet").rename(tmp_path / "old.parquet")
    with pytest.raises(DataError, match=r"old\.parquet: it is a Parquet file that cannot be read"):
        read(tmp_path)


def clients(place: Path, count: int | None, *, number: int = 0) -> DeviceData:
    node: dict[str, bool | int | float | str] = {"partition-id": number}
    if count is not None:
        node["num-partitions"] = count
    return files(DataConfig(name="files", path=str(place)), node)


def test_devices_may_have_files_and_folders_by_their_own_names(tmp_path: Path) -> None:
    holding(tmp_path, "carol.txt", "alice.jsonl", "bob/notes.txt", "bob/more.jsonl", "README.txt", ".hidden.txt")
    found = [clients(tmp_path, 3, number=number) for number in range(3)]
    assert [data.name for data in found] == ["alice", "bob", "carol"]
    assert [set(sources(data)) for data in found] == [{"alice.jsonl"}, {"notes.txt", "more.jsonl"}, {"carol.txt"}]
    assert not found[0].notices


def test_more_or_fewer_devices_than_data_are_told(tmp_path: Path) -> None:
    holding(tmp_path, "carol.txt", "alice.jsonl", "bob.txt")
    assert (
        "data of 3 devices, of which simulation.devices = 2 take part; left out: carol.txt"
        in clients(tmp_path, 2).notices[0]
    )
    assert not clients(tmp_path, 2, number=1).notices
    with pytest.raises(DataError, match=r"data of 3 devices \(alice.jsonl, bob.txt, carol.txt\), .* is 8: set it to 3"):
        clients(tmp_path, 8, number=3)
    holding(tmp_path / "numbered", "0/a.txt", "1/a.txt", "2/a.txt", "old/a.txt")
    assert "left out: 2, old" in clients(tmp_path / "numbered", 2).notices[0]
    assert clients(tmp_path / "numbered", 3, number=2).name == "2"


def test_two_devices_of_one_name_keep_their_suffixes_and_numbers_their_order(tmp_path: Path) -> None:
    holding(tmp_path / "same", "alice.jsonl", "alice.txt")
    assert [clients(tmp_path / "same", 2, number=number).name for number in range(2)] == ["alice.jsonl", "alice.txt"]
    holding(tmp_path / "numbers", *(f"{number}.txt" for number in range(11)))
    names = [clients(tmp_path / "numbers", 11, number=number).name for number in range(11)]
    assert names == [str(number) for number in range(11)]


def test_parts_of_one_data_set_are_no_devices(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"test\.jsonl, train\.jsonl are parts of one data set, not devices"):
        clients(holding(tmp_path, "train.jsonl", "test.jsonl"), 2)
