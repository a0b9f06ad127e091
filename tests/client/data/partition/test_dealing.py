"""One data set dealt out by a configuration: who gets what, what all measure together, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fedlora.config.partition import PartitionConfig
from fedlora.config.run import DataConfig, FieldNames, RunConfig
from fedlora.data.datasets import DeviceData
from fedlora.data.examples import Example, Labelled, text_of
from fedlora.errors import ConfigError, DataError
from fedlora_client.data.files_dataset import files
from fedlora_client.data.partition.dealing import dealing_of
from fedlora_client.device import Device


def write(place: Path, count: int = 200, **more: object) -> Path:
    """Records with labels of three kinds and owners of five."""
    lines = (
        {"text": f"text {n}", "label": "abc"[n * n % 7 % 3], "who": ["Zoë", "b", 3, "d", "e"][n % 5]} | more
        for n in range(count)
    )
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return place


def data(path: Path, rule: str = "iid", fields: FieldNames | None = None, **keys: object) -> DataConfig:
    partition = PartitionConfig(rule=rule, **keys)  # type: ignore[arg-type]
    return DataConfig(name="files", path=str(path), fields=fields or FieldNames(), partition=partition)


def devices(config: DataConfig, count: int) -> list[DeviceData]:
    return [files(config, {"partition-id": number, "num-partitions": count}) for number in range(count)]


def texts(*examples: Example) -> list[str]:
    return sorted(map(text_of, examples))


@pytest.mark.parametrize("rule", ["iid", "dirichlet", "shards", "quantity", "topics"])
def test_every_record_is_one_devices_to_train_on_or_to_hold_out(tmp_path: Path, rule: str) -> None:
    found = devices(data(write(tmp_path / "news.jsonl"), rule), 8)
    assert [device.name for device in found] == list("01234567")
    all_texts = texts(*(example for device in found for example in (*device.train, *device.held_out)))
    assert all_texts == sorted(f"text {n}" for n in range(200))
    for device in found:
        assert len(device.held_out) == max(1, len(device.train + device.held_out) // 10)
        assert (device.sources[0].train, device.sources[0].held_out) == (len(device.train), len(device.held_out))


def test_natural_devices_are_called_as_their_records_say(tmp_path: Path) -> None:
    config = data(write(tmp_path / "news.jsonl"), "natural", FieldNames(owner="who"))
    found = devices(config, 5)
    assert [device.name for device in found] == ["3", "Zoë", "b", "d", "e"]
    assert {int(text_of(one).split()[1]) % 5 for one in (*found[1].train, *found[1].held_out)} == {0}
    first = devices(config, 2)
    assert first[0].train == found[0].train
    assert "records of 5 owners, of which the first simulation.devices = 2" in first[0].notices[-1]
    with pytest.raises(DataError, match=r"records of 5 owners, and simulation\.devices is 6; set it to 5"):
        devices(config, 6)


def test_owners_of_few_records_take_no_part(tmp_path: Path) -> None:
    place = write(tmp_path / "news.jsonl")
    with place.open("a") as file:
        file.write('{"text": "alone", "who": "a single one"}\n')
    found = devices(data(place, "natural", FieldNames(owner="who")), 5)
    assert [device.name for device in found] == ["3", "Zoë", "b", "d", "e"]
    assert "1 of 6 owners have fewer than data.partition.least = 10 records, and take no part" in found[0].notices[-1]
    with pytest.raises(
        DataError, match=r"records of 5 owners \(1 of 6 owners have fewer .*\), and simulation.devices is 6"
    ):
        devices(data(place, "natural", FieldNames(owner="who")), 6)
    assert devices(data(place, "natural", FieldNames(owner="who"), least=1), 6)[2].name == "a single one"


def test_the_files_called_test_are_measured_by_all_devices_together(tmp_path: Path) -> None:
    write(tmp_path / "news" / "train.jsonl")
    write(tmp_path / "news" / "test.jsonl", 31, text="a test")
    found = devices(data(tmp_path / "news", "dirichlet"), 4)
    assert [len(device.test) for device in found] == [8, 8, 8, 7]
    assert sum(len(device.train) + len(device.held_out) for device in found) == 200
    assert not any("a test" in texts(*device.train, *device.held_out) for device in found)


def test_training_seeds_have_the_same_devices_and_another_dealing_is_asked_for(tmp_path: Path) -> None:
    place = write(tmp_path / "news.jsonl")
    first, second = (devices(data(place, "dirichlet", seed=seed), 4) for seed in (0, 1))
    assert [device.train for device in first] != [device.train for device in second]
    run = RunConfig(data=data(place, "dirichlet"), seed=7)
    assert Device(run, {"partition-id": 1, "num-partitions": 4}).data.train == first[1].train


def test_csv_and_lists_are_dealt_out_too(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"text {n},{n % 3}\n" for n in range(60)))
    found = devices(data(tmp_path / "a.csv", "shards"), 3)
    assert all(isinstance(one, Labelled) for device in found for one in device.train)
    assert sum(len(device.train) + len(device.held_out) for device in found) == 60


def test_the_kinds_in_a_table_are_topics_where_these_were_dealt_by(tmp_path: Path) -> None:
    place = write(tmp_path / "news.jsonl")
    assert set(dealing_of(data(place, "iid"), 3).kinds()) == {"a", "b", "c"}
    assert set(dealing_of(data(place, "topics", topics=2), 3).kinds()) <= {"topic 0", "topic 1"}


def test_records_without_what_the_rule_goes_by_are_told(tmp_path: Path) -> None:
    plain = tmp_path / "plain.jsonl"
    plain.write_text('{"text": "a"}\n' * 30)
    with pytest.raises(DataError, match=r"plain.jsonl: example 1 has no label, and the rule shards deals by labels"):
        devices(data(plain, "shards"), 2)
    with pytest.raises(
        DataError, match=r"line 1: who \(data.fields.owner\) must be a text or an integer, got a record"
    ):
        devices(data(plain, "natural", FieldNames(owner="who")), 2)
    (tmp_path / "book.txt").write_text("a book\n" * 30)
    with pytest.raises(DataError, match=r"book.txt: plain text, which is one example"):
        devices(data(tmp_path / "book.txt"), 2)


def test_a_real_device_is_told_that_its_data_are_not_dealt_out(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"this device has its own \(/mine\); leave data.partition out"):
        files(data(write(tmp_path / "news.jsonl")), {"data-path": "/mine"})
    with pytest.raises(DataError, match="num-partitions is None"):
        files(data(tmp_path / "news.jsonl"), {"partition-id": 0})


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"data.partition.rule": "dirichlett"}, "data.partition.rule must be one of natural, iid"),
        ({"data.partition.rule": "iid"}, "data.partition needs data.path"),
        ({"data.partition.alpha": 0.1}, r"data.partition.alpha means nothing to the rule \(none\)"),
        ({"data.partition.rule": "iid", "data.path": "x", "data.partition.shards": 3}, "it belongs to shards"),
        ({"data.partition.rule": "dirichlet", "data.path": "x", "data.partition.alpha": 0.0}, "alpha must be above 0"),
        ({"data.partition.rule": "natural", "data.path": "x"}, "natural needs the field that says whose a record is"),
        ({"data.fields.owner": "user"}, "data.fields.owner means something to data.partition.rule = natural alone"),
    ],
)
def test_keys_that_do_not_go_together_are_told(values: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        RunConfig.from_flat(values, "scenario")


def test_configurations_of_before_have_the_same_words(tmp_path: Path) -> None:
    """By its words a device finds what it saved: a key that is new must not be among them."""
    assert repr(DataConfig()) == "DataConfig(name='stdlib', path='', max_bytes=0)"
    assert "owner" not in repr(FieldNames(text="question"))
