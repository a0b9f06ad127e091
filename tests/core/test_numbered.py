"""Names that are numbers, and those that only look so: oracle is Python's own `int`, where it takes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fedlora.config.partition import PartitionConfig
from fedlora.config.run import DataConfig, SimulationConfig
from fedlora.config.sections import FieldNames
from fedlora.errors import AdapterError, ConfigError
from fedlora.numbered import in_order, is_number, named_in_order
from fedlora.peft.directory import read_peft
from fedlora_client.data.partition.dealing import dealing_of
from fedlora_client.data.partition.rules import by_label
from fedlora_simulations.partition import _counted

LONG = "1" * 5000  # more digits than Python's int reads


@pytest.mark.parametrize("name", ["0", "007", "9" * 18])
def test_digits_are_a_number(name: str) -> None:
    assert is_number(name)


@pytest.mark.parametrize("name", ["", "-1", "1.0", " 1", "a", "9" * 19, LONG, "\u0663", "\u00b2"])
def test_what_int_would_raise_for_or_read_in_another_script_is_none(name: str) -> None:
    assert not is_number(name)


def test_names_are_in_the_order_of_their_numbers_where_all_are_numbers() -> None:
    assert named_in_order(["10", "9", "010"]) == ["9", "010", "10"]
    assert named_in_order(["10", "9", "x"]) == ["10", "9", "x"]
    assert named_in_order(["10", "9", LONG]) == ["10", LONG, "9"]
    assert in_order([("b", 10), ("a", 9)], lambda each: str(each[1])) == [("a", 9), ("b", 10)]


def test_labels_of_any_length_are_dealt_out_and_counted() -> None:
    assert list(by_label([LONG, "2", LONG])) == [LONG, "2"]
    assert _counted([LONG, f"topic {LONG}", "topic 2", "topic 10"]) == {
        LONG: 1, "topic 2": 1, "topic 10": 1, f"topic {LONG}": 1
    }  # fmt: skip


def test_owners_of_any_length_are_devices(tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    file.write_text("".join(json.dumps({"text": "a", "who": who}) + "\n" for who in (LONG, "2")))
    config = DataConfig(
        name="files", path=str(file), fields=FieldNames(owner="who"), partition=PartitionConfig(rule="natural", least=1)
    )
    assert [share.name for share in dealing_of(config, 2).shares] == [LONG, "2"]


def test_a_rank_of_any_length_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"simulation\.ranks must be integers from 1"):
        SimulationConfig(ranks=(LONG,))


@pytest.mark.parametrize("folder", ["7", "checkpoint-" + "9" * 200, "checkpoint-"])
def test_a_folder_with_a_number_for_a_name_is_told(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "adapter_config.json").write_text("{}")
    with pytest.raises(AdapterError, match="PEFT keeps an adapter in a folder of its name, and here are"):
        read_peft(tmp_path)
