"""What a device tells of itself: the energy of its work, its logs, its journal; and what a full disk costs."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from fedlora.base.pack import BasePack
from fedlora.errors import ConfigError
from fedlora.files import atomic
from fedlora_client.policy.machine import Machine
from fedlora_client.service import state as state_module
from fedlora_client.service.logs import last_lines
from fedlora_client.service.state import StateFolder
from fedlora_client.service.work import DeviceWork
from fedlora_client.training.energy import EnergyMeter

from tests.client.service.devices import make_device, question


def zone(root: Path, name: str, energy: int, most: int = 1_000_000) -> None:
    folder = root / "sys/class/powercap" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "energy_uj").write_text(f"{energy}\n")
    (folder / "max_energy_range_uj").write_text(f"{most}\n")


def battery(root: Path, **files: int) -> None:
    folder = root / "sys/class/power_supply/BAT0"
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name).write_text(f"{value}\n")


def told_by(meter: EnergyMeter) -> tuple[str, float]:
    found = meter.joules()
    assert found is not None
    return found[1], round(found[0], 6)


def test_the_processors_counters_are_summed_and_go_round(tmp_path: Path) -> None:
    for name, energy in (("intel-rapl:0", 100_000), ("intel-rapl:1", 900_000), ("intel-rapl:0:0", 5)):
        zone(tmp_path, name, energy)
    battery(tmp_path, energy_now=1000)
    meter = EnergyMeter(tmp_path)
    zone(tmp_path, "intel-rapl:0", 600_000)
    zone(tmp_path, "intel-rapl:1", 100_000)  # round: 200_000 more
    zone(tmp_path, "intel-rapl:0:0", 900_000)  # is part of :0
    assert told_by(meter) == ("processor", 0.7)


def test_without_counters_it_is_what_the_battery_lost(tmp_path: Path) -> None:
    battery(tmp_path, energy_now=2_000_000)
    meter = EnergyMeter(tmp_path)
    assert meter.joules() is None
    battery(tmp_path, energy_now=1_000_000)
    assert told_by(meter) == ("battery", 3600.0)
    assert EnergyMeter(tmp_path / "nothing").joules() is None


def test_lines_of_all_processes_are_told_by_their_times(tmp_path: Path) -> None:
    (tmp_path / "trainer.log").write_text(
        "2026-11-30T10:00:00+0000 INFO a: first\n2026-11-30T10:00:02+0000 ERROR a: third\nTraceback: of the third\n"
    )
    (tmp_path / "link.log.1").write_text("2026-11-30T10:00:01+0000 INFO b: second\n")
    told = [line.rpartition(": ")[2] for line in last_lines(tmp_path, 9)]
    assert told == ["first", "second", "third", "of the third"]
    assert last_lines(tmp_path, 1) == ["trainer: Traceback: of the third"]
    assert last_lines(tmp_path, 0) == last_lines(tmp_path / "none", 9) == []


def test_the_journal_is_bounded_and_a_half_line_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_module, "_MOST_ROUNDS", 10)
    folder = StateFolder(tmp_path)
    folder.make()
    for number in range(100):
        folder.add_round({"round": number})
    lines = (tmp_path / "rounds.jsonl").read_text().splitlines()
    assert len(lines) <= 10
    assert json.loads(lines[-1]) == {"round": 99}
    with (tmp_path / "rounds.jsonl").open("a") as file:
        file.write('{"half')
    assert folder.rounds(3)[-1] == {"round": 99}


def test_a_full_disk_costs_what_is_told_and_no_round(
    tmp_path: Path, base: BasePack, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = DeviceWork(make_device(tmp_path, base), machine=Machine(tmp_path / "none"))
    assert not work(question(base, "evaluate", 1), lambda: True).said

    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(atomic, "_sync", full)
        for kind in ("train", "evaluate"):
            assert not work(question(base, "train" if kind == "train" else "evaluate", 2), lambda: True).said
    folder = StateFolder(tmp_path / "state")
    assert folder.read("adapter")["round"] == 1  # as it was
    assert not work(question(base, "evaluate", 3), lambda: True).said
    assert folder.read("adapter")["round"] == 3
    assert [path.name for path in (tmp_path / "state" / "adapters").iterdir() if path.name.startswith(".")] == []


def test_a_state_folder_of_another_user_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ConfigError, match="may not be read by this user"):
        StateFolder(tmp_path).check_readable()


def test_names_that_a_server_made_long_take_little_room(tmp_path: Path, base: BasePack) -> None:
    config = make_device(tmp_path, base)
    work = DeviceWork(config, machine=Machine(tmp_path / "none"))
    asked = question(base, "evaluate", 4, run="r" * 100_000)
    flat = {**asked.run_config, "name": "n" * 100_000}
    given = work(type(asked)(kind="evaluate", run_config=flat, run_id=7, seconds=60.0, data=asked.data), lambda: True)
    assert not given.said
    assert sum(path.stat().st_size for path in config.state.glob("*.json*")) < 10_000
    assert StateFolder(config.state).read("adapter")["round"] == 4


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777])
def test_a_state_folder_that_others_may_write_into_is_refused(tmp_path: Path, mode: int) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(mode)
    with pytest.raises(ConfigError, match=r"device\.state .*: others may write into it .*chmod go-w"):
        StateFolder(tmp_path / "state").make()
    (tmp_path / "state").chmod(0o755)
    StateFolder(tmp_path / "state").make()
