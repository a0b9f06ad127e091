"""A run that is gone on with is the one that was begun, until it is complete or left."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from fedlora.base.pack import open_pack
from fedlora.config.run import RunConfig
from fedlora.errors import ConfigError, PackError
from fedlora_server.fleet.chosen_run import chosen_run
from fedlora_server.fleet.current_run import COMPLETED, write_current
from fedlora_server.fleet.settings import FleetSettings


@pytest.fixture
def settings(tmp_path: Path) -> FleetSettings:
    return FleetSettings(folder=tmp_path, host="localhost", run={"base": "nano", "server.rounds": 2})


def test_a_run_goes_on_as_it_was_begun(settings: FleetSettings) -> None:
    told: list[str] = []
    first = chosen_run(settings, ["server.rounds=6"], told.append)
    output = Path(first.output)
    output.mkdir(parents=True)
    (output / "config.json").write_text(json.dumps(first.config))
    assert chosen_run(settings, [], told.append) == first
    assert told == ["the run was begun with --set server.rounds=6"]
    later = chosen_run(settings, ["server.rounds=8"], told.append)
    assert (later.output, later.config["server.rounds"]) == (first.output, 8)
    with pytest.raises(ConfigError, match="--new"):
        chosen_run(settings, ["seed=5"], told.append)


def test_what_a_run_was_begun_with_ends_with_it(settings: FleetSettings) -> None:
    first = chosen_run(settings, ["server.rounds=6"], print)
    assert chosen_run(settings, [], print, is_new=True).config["server.rounds"] == 2
    write_current(settings.at("run.json"), replace(first, state=COMPLETED))
    assert chosen_run(settings, [], print).config["server.rounds"] == 2


def test_a_run_of_an_earlier_version_is_still_read(settings: FleetSettings) -> None:
    first = chosen_run(settings, [], print)
    path = settings.at("run.json")
    content = json.loads(path.read_text())
    del content["changes"]
    path.write_text(json.dumps(content))
    assert chosen_run(settings, [], print) == first


def test_devices_are_told_a_number_for_a_rate_that_is_left_to_fedlora_and_a_run_keeps_its_own(
    settings: FleetSettings,
) -> None:
    first = chosen_run(settings, [], print)
    assert first.config["train.lr"] == RunConfig().settled(open_pack("nano")).train.rate
    of_before = first.config | {"train.lr": 2e-4}
    write_current(settings.at("run.json"), replace(first, config=of_before))
    assert chosen_run(settings, [], print).config["train.lr"] == first.config["train.lr"], "it has not begun"
    write_current(settings.at("run.json"), replace(first, config=of_before))
    Path(first.output).mkdir(parents=True)
    (Path(first.output) / "config.json").write_text(json.dumps(of_before))
    assert chosen_run(settings, [], print).config["train.lr"] == 2e-4
    assert chosen_run(settings, [], print, is_new=True).config["train.lr"] == first.config["train.lr"]


def test_a_base_that_is_not_there_is_told_before_anything_is_written(settings: FleetSettings) -> None:
    with pytest.raises(PackError, match="not a base pack"):
        chosen_run(settings, ["base=nowhere"], print)
    assert not settings.at("run.json").exists()
