"""`fedlora partition`: who has what, as a table and a picture, before anything trains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from fedlora.config.partition import PartitionConfig
from fedlora.config.run import DataConfig, RunConfig, SimulationConfig
from fedlora.errors import DataError, RunError
from fedlora_simulations.commands.partition import partition
from fedlora_simulations.partition import Partition, partition_of, read_partition
from fedlora_simulations.reports.drawing import WIDE, svg
from fedlora_simulations.reports.figures import partition_chart

from tests.simulations.reports.parsed import pictures, texts

SCENARIO = """
[data]
name = "files"
path = "news"

[data.partition]
rule = "shards"

[simulation]
devices = 4
"""


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    (tmp_path / "news").mkdir()
    for name, count in (("train", 120), ("test", 9)):
        lines = (json.dumps({"text": f"text {n}", "label": n % 3}) for n in range(count))
        (tmp_path / "news" / f"{name}.jsonl").write_text("\n".join(lines))
    (tmp_path / "scenario.toml").write_text(SCENARIO)
    return tmp_path / "scenario.toml"


def said(*arguments: object) -> str:
    result = CliRunner().invoke(partition, [*map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_table_has_every_device_and_label_and_the_picture_is_written(scenario: Path, tmp_path: Path) -> None:
    told = said(scenario, "-o", tmp_path / "picture.svg")
    rows = {line.split()[0]: line.split()[1:] for line in told.splitlines() if line.strip()[:1].isdigit()}
    assert rows.keys() == {"0", "1", "2", "3"}
    assert all(int(row[0]) == 30 == sum(map(int, row[1:])) for row in rows.values())
    assert "all 4" in told
    assert "test set: 9 examples, which all devices measure together" in told
    assert (tmp_path / "picture.svg").read_text().startswith("<svg")


def test_a_key_is_changed_for_the_look_alone(scenario: Path) -> None:
    told = said(scenario, "--set", "data.partition.rule=iid", "--set", "simulation.devices=2")
    assert "all 2" in told


def test_a_device_that_never_trains_is_marked(scenario: Path) -> None:
    told = said(scenario, "--set", "data.partition.held_out=0.25")
    assert told.count("(never trains)") == 1


def test_what_cannot_be_dealt_is_told_before_anything_trains(scenario: Path) -> None:
    with pytest.raises(DataError, match="120 records: fewer than 200 devices of 2 shards"):
        said(scenario, "--set", "simulation.devices=200")


def test_devices_with_files_of_their_own_have_a_table_too(tmp_path: Path) -> None:
    for number in range(3):
        lines = (json.dumps({"text": f"text {n}", "label": f"label {n % (number + 1)}"}) for n in range(12))
        (tmp_path / f"{number}.jsonl").write_text("\n".join(lines))
    config = RunConfig(data=DataConfig(name="files", path=str(tmp_path)), simulation=SimulationConfig(devices=3))
    assert partition_of(config).devices["2"] == {"label 0": 4, "label 1": 4, "label 2": 4}
    plain = partition_of(RunConfig(simulation=SimulationConfig(devices=2)))
    assert [list(own) for own in plain.devices.values()] == [["examples"]] * 2


def test_many_labels_share_a_column_and_many_devices_a_picture() -> None:
    devices = {f"device {n}": {str(label): 1 + label for label in range(30)} for n in range(70)}
    found = Partition(devices=devices)
    assert found.kinds == [*map(str, range(18, 30)), "others"]
    assert found.rows()[0] == ("device 0", [*range(19, 31), sum(range(1, 19))])
    [picture] = pictures(svg(partition_chart(found), WIDE))
    assert {"18", "29", "others"} <= set(texts(picture)), "the legend"
    assert "device 0" not in texts(picture), "more names than can be read"


@pytest.mark.parametrize("name", ["$x$", "<b>", "\\frac", "ünï", "_a"])
def test_names_are_shown_as_they_are(name: str) -> None:
    [picture] = pictures(svg(partition_chart(Partition(devices={name: {name: 2, "other": 1}})), WIDE))
    assert texts(picture).count(name) == 2, "the device and its label"


def test_a_run_keeps_its_partition_and_one_that_was_changed_is_told(tmp_path: Path) -> None:
    assert read_partition(tmp_path) is None
    found = Partition(devices={"a": {"x": 2}}, test=3)
    found.write(tmp_path)
    assert read_partition(tmp_path) == found
    (tmp_path / "partition.json").write_text('{"devices": {"a": {"x": "2"}}, "test": 3}')
    with pytest.raises(RunError, match=r"partition\.json: expected examples by device and kind"):
        read_partition(tmp_path)


def test_a_partition_depends_on_its_own_seed_alone(scenario: Path) -> None:
    config = RunConfig(
        data=DataConfig(
            name="files", path=str(scenario.parent / "news"), partition=PartitionConfig(rule="dirichlet", least=5)
        ),
        simulation=SimulationConfig(devices=4),
    )
    assert partition_of(config) == partition_of(RunConfig(data=config.data, simulation=config.simulation, seed=9))
