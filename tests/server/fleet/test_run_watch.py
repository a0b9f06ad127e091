"""A run is begun, watched and gone on with; what SuperLink says of it is played by a fake."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fedlora.config.run import RunConfig, changed
from fedlora.errors import ConfigError, RunError
from fedlora_server.fleet.current_run import COMPLETED, FAILED, CurrentRun, new_run, read_current, with_config
from fedlora_server.fleet.run_watch import RunWatch

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)


class FakeControl:
    """SuperLink's word on runs, as a test has it."""

    def __init__(self) -> None:
        self.runs: dict[int, str] = {}
        self.started: list[dict[str, Any]] = []
        self.stopped: list[int] = []

    def start_run(self, app: str, fab_hash: str, config: dict[str, Any]) -> int:
        self.started.append(config)
        number = len(self.started)
        self.runs[number] = "running"
        return number

    def status(self, run: int) -> str:
        return self.runs.get(run, "")

    def stop_run(self, run: int) -> None:
        self.stopped.append(run)
        self.runs[run] = "finished:stopped"


@pytest.fixture
def control() -> FakeControl:
    return FakeControl()


@pytest.fixture
def current(tmp_path: Path) -> CurrentRun:
    return new_run(tmp_path, changed(RunConfig(), ["server.rounds=3", "data.name=files"]), NOW)


@pytest.fixture
def watch(tmp_path: Path, control: FakeControl, current: CurrentRun) -> RunWatch:
    made = RunWatch(current, tmp_path / "run.json", control, "digest", lambda line: None, SimpleNamespace(error=""))  # type: ignore[arg-type]
    made.begin()
    return made


def commit(watch: RunWatch, *rounds: int) -> None:
    """What a ServerApp leaves in the run's directory."""
    for number in rounds:
        (Path(watch.current.output) / "rounds" / f"{number:04d}").mkdir(parents=True)
    (Path(watch.current.output) / "config.json").write_text("{}")


def test_a_run_begins_with_what_differs_from_the_apps_own_configuration(watch: RunWatch, control: FakeControl) -> None:
    assert control.started == [{"server.rounds": 3, "data.name": "files", "output": watch.current.output}]


def test_a_run_that_completes_is_over_and_remembered(watch: RunWatch, control: FakeControl, tmp_path: Path) -> None:
    watch.look(1, 0.0)
    assert not watch.is_over
    control.runs[1] = "finished:completed"
    watch.look(0, 1.0)
    assert watch.is_over
    stored = read_current(tmp_path / "run.json")
    assert stored is not None
    assert (stored.state, stored.flower_run) == (COMPLETED, 1)


def test_a_run_that_failed_goes_on_after_a_pause_in_the_same_directory(watch: RunWatch, control: FakeControl) -> None:
    commit(watch, 1)
    control.runs[1] = "finished:failed"
    watch.look(0, 0.0)
    watch.look(0, 1.0)
    assert len(control.started) == 1
    watch.look(0, 5.0)
    assert control.started[1]["server.resume"] is True
    assert control.started[1]["output"] == watch.current.output


def test_a_run_whose_serverapp_is_gone_is_ended_and_goes_on(watch: RunWatch, control: FakeControl) -> None:
    watch.look(0, 0.0)  # its ServerApp has not started yet
    watch.look(1, 1.0)
    for second in range(2, 14):
        watch.look(0, float(second))
    assert control.stopped == [1]
    assert len(control.started) == 2


def test_a_run_that_fails_without_a_new_round_again_and_again_is_given_up(
    watch: RunWatch, control: FakeControl
) -> None:
    now = 0.0
    with pytest.raises(RunError, match="3 times in a row without a new round"):
        for _ in range(20):
            control.runs[len(control.started)] = "finished:failed"
            watch.look(0, now)
            now += 60
    assert watch.current.state == FAILED
    assert len(control.started) == 3


def test_a_run_that_fails_after_each_new_round_goes_on(watch: RunWatch, control: FakeControl) -> None:
    now = 0.0
    for number in range(1, 6):
        if number == 1:
            commit(watch, 1)
        else:
            (Path(watch.current.output) / "rounds" / f"{number:04d}").mkdir()
        control.runs[len(control.started)] = "finished:failed"
        watch.look(0, now)
        watch.look(0, now + 100)
        now += 200
    assert len(control.started) == 6


def test_a_server_that_comes_back_ends_what_flower_still_has_of_the_run(
    tmp_path: Path, control: FakeControl, watch: RunWatch
) -> None:
    again = read_current(tmp_path / "run.json")
    assert again is not None
    RunWatch(again, tmp_path / "run.json", control, "digest", lambda line: None, SimpleNamespace(error="")).begin()  # type: ignore[arg-type]
    assert control.stopped == [1]
    assert [config["output"] for config in control.started] == [watch.current.output] * 2


def test_a_run_goes_on_under_what_changes_no_result_and_no_other(tmp_path: Path, current: CurrentRun) -> None:
    config = changed(RunConfig(), ["server.rounds=3", "data.name=files"])
    assert with_config(current, changed(config, ["seed=2"])).config["seed"] == 2  # it has not begun
    output = Path(current.output)
    output.mkdir(parents=True)
    (output / "config.json").write_text(json.dumps(config.flat()))
    assert with_config(current, changed(config, ["server.min_devices=5"])).config["server.min_devices"] == 5
    with pytest.raises(ConfigError, match=r"seed is 1 there, 2 here.*--new"):
        with_config(current, changed(config, ["seed=2"]))


def test_two_runs_of_one_second_have_two_directories(tmp_path: Path) -> None:
    first = new_run(tmp_path, RunConfig(), NOW)
    Path(first.output).mkdir(parents=True)
    assert new_run(tmp_path, RunConfig(), NOW).output != first.output
