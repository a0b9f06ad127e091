"""What is no run to go on with is refused, and left alone."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from fedlora.config.run import AggregationConfig, RunConfig
from fedlora.errors import AdapterError, ConfigError, RunError
from fedlora_server.app import app
from fedlora_server.run.resume import check_goes_on
from fedlora_server.run.run_directory import RunDirectory, open_run
from fedlora_server.run.run_lock import locked
from flwr.app import Context, RecordDict
from flwr.app.user_config import UserConfig

from tests.server.fake_grid import FakeGrid, Played, Player
from tests.server.run.stopped_runs import Runs
from tests.tiny.checkpoints import tree


def test_a_run_of_another_configuration_is_refused_with_every_key_and_both_values(runs: Runs) -> None:
    stopped = runs.stopped(RunDirectory, "add_metrics", 2)
    before = tree(stopped.path)
    again = runs.goes_on(stopped, seed=2, method="fedavg", rounds=2)
    assert isinstance(again.error, ConfigError)
    for part in (
        f"{stopped.path} holds another run: seed is 1 there, 2 here; ",
        "; server.method is 'svd' there, 'fedavg' here",
        "server.rounds is 3 there, 2 here (it may rise, not fall)",
    ):
        assert part in str(again.error)
    assert "min_devices" not in str(again.error)
    assert tree(stopped.path) == before
    assert again.grid.asked == []


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_more_rounds_are_refused_where_the_learning_rate_depends_on_their_number(tmp_path: Path, schedule: str) -> None:
    flat = RunConfig().flat() | {"train.schedule": schedule, "server.rounds": 4}
    began = RunConfig.from_flat(flat, "there")
    check_goes_on(began, began, tmp_path)
    with pytest.raises(ConfigError, match=r"server\.rounds is 4 there, 6 here \(with train\.schedule = " + schedule):
        check_goes_on(began, RunConfig.from_flat(flat | {"server.rounds": 6}, "here"), tmp_path)


def test_a_run_on_another_base_is_refused_with_both_fingerprints(runs: Runs, play: Player) -> None:
    stopped = runs.stopped(RunDirectory, "add_metrics", 1)
    other = Player(dataclasses.replace(play.base, fingerprint="e" * 64), play.folder)
    again = Runs(other).goes_on(stopped)
    assert isinstance(again.error, ConfigError)
    assert f"{'f' * 64} there, {'e' * 64} here" in str(again.error)


@pytest.mark.parametrize("there", [True, False])
def test_a_directory_without_a_run_is_refused_and_left_alone(runs: Runs, tmp_path: Path, there: bool) -> None:
    folder = tmp_path / "empty"
    if there:
        folder.mkdir()
    again = runs.goes_on(Played(grid=runs.whole().grid, path=folder))
    assert isinstance(again.error, ConfigError)
    assert f"{folder} holds no run" in str(again.error)
    assert folder.exists() is there
    assert not there or tree(folder) == {}


def test_what_is_left_of_a_run_without_its_configuration_is_not_written_over(runs: Runs, play: Player) -> None:
    played = runs.whole()
    (played.path / "config.json").unlink()
    with pytest.raises(ConfigError, match="holds a run already"), open_run(played.path, RunConfig(), play.base, "run"):
        pass


def test_a_second_server_on_the_same_run_is_refused(runs: Runs, play: Player) -> None:
    stopped = runs.stopped(RunDirectory, "add_metrics", 2)
    with open_run(stopped.path.with_name("new"), RunConfig(), play.base, "run") as directory:
        for path, resume in ((directory.path, True), (directory.path, False)):
            config = dataclasses.replace(RunConfig(), server=dataclasses.replace(RunConfig().server, resume=resume))
            with (
                pytest.raises(ConfigError, match="new is in use: another server"),
                open_run(path, config, play.base, "run"),
            ):
                pass
    assert runs.goes_on(stopped).error is None


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def rescale(path: Path) -> None:
    config = path / "adapter" / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 6.0', '"lora_alpha": 7.0'))


DAMAGED: Mapping[str, tuple[Callable[[Path], object], str]] = {
    "an adapter that is cut": (
        lambda path: cut(path / "adapter" / "adapter_model.safetensors"),
        "adapter/adapter_model.safetensors is not as it was committed",
    ),
    "no adapter": (lambda path: shutil.rmtree(path / "adapter"), "adapter/adapter_config.json, adapter/adapter_model"),
    "moments that are cut": (
        lambda path: cut(path / "moments.safetensors"),
        "moments.safetensors is not as it was committed",
    ),
    "an adapter of another scaling": (rescale, "adapter/adapter_config.json is not as it was committed"),
    "no moments": (
        lambda path: (path / "moments.safetensors").unlink(),
        "moments.safetensors is not as it was committed",
    ),
    "no seal": (lambda path: (path / "sealed.json").unlink(), "sealed.json"),
    "the round before in its place": (
        lambda path: shutil.copytree(path.with_name("0001"), path, dirs_exist_ok=True),
        "it is round 1 of run",
    ),
    "a file more": (lambda path: (path / "adapter" / "more").touch(), "adapter/more is not as it was committed"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGED.values(), ids=list(DAMAGED))
def test_a_committed_round_that_was_damaged_is_refused_by_its_file(
    play: Player, damage: Callable[[Path], object], message: str
) -> None:
    runs = Runs(play, method="fedavg", aggregation=AggregationConfig(optimizer="fedadam"))
    stopped = runs.stopped(RunDirectory, "add_metrics", 3)
    damage(stopped.path / "rounds" / "0002")
    again = runs.goes_on(stopped)
    assert isinstance(again.error, (AdapterError, RunError))
    assert message in str(again.error)
    assert "0002" in str(again.error)


@pytest.mark.parametrize(
    ("key", "value"), [("replies", "3"), ("loss", [1]), ("norms", {"q": None}), ("round", None), ("more", 1)]
)
def test_a_record_that_was_changed_is_refused(runs: Runs, key: str, value: object) -> None:
    stopped = runs.stopped(RunDirectory, "commit", 2)
    path = stopped.path / "rounds" / "0002" / "round.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    again = runs.goes_on(stopped)
    assert isinstance(again.error, RunError)
    assert str(path) in str(again.error)
    assert key in str(again.error)


@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_what_is_no_lock_is_not_waited_for_and_not_followed(tmp_path: Path, kind: str) -> None:
    (tmp_path / "run").mkdir()
    if kind == "pipe":
        os.mkfifo(tmp_path / "run" / "lock")
    else:
        (tmp_path / "run" / "lock").symlink_to(tmp_path / "of another")
    with pytest.raises(ConfigError, match="cannot be written"), locked(tmp_path / "run"):
        pass
    assert not (tmp_path / "of another").exists()


def test_a_file_system_without_locks_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lockless(file: object, operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", lockless)
    with locked(tmp_path / "run"):
        assert "cannot be locked (No locks available): let no second process work there" in caplog.text


def test_a_run_that_goes_on_must_be_named() -> None:
    flat = UserConfig(RunConfig().flat() | {"server.resume": True})
    context = Context(1, 0, UserConfig(), RecordDict(), flat)
    with pytest.raises(ConfigError, match=r"server\.resume is true and output is empty; set output"):
        app(FakeGrid({}), context)
