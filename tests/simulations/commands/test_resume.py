"""`fedlora resume`: a simulation that was stopped, or killed at any moment, ends as one that was not."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result
from fedlora.cli import commands
from fedlora.errors import ConfigError, RunError
from fedlora.identity.audit import audited
from fedlora_server.run.run_directory import RunDirectory, last_round, read_metrics

from tests.server.records import without_records
from tests.tiny.checkpoints import tree

if TYPE_CHECKING:
    from tests.simulations.conftest import Simulator

TIMES = ("seconds", "server_s", "costs")
SCENARIO = """
[data]
name = "stdlib"
max_bytes = 3000
[lora]
rank = 2
alpha = 4
[train]
steps = 2
batch_size = 2
sequence_length = 32
lr = 0.01
[server]
rounds = 6
devices_per_round = 3
[simulation]
devices = 4
"""


def resumed(run: Path, *options: str) -> Result:
    arguments = ["resume", str(run), "--workers", "1", *options]
    return CliRunner().invoke(commands, arguments, catch_exceptions=False)


def left(run: Path) -> dict[str, object]:
    """What a run left, but for times, its number, its own path, what shows these, and what devices keep there."""
    files: dict[str, object] = {
        name: content
        for name, content in tree(run).items()
        if name != "report.html" and name.partition("/")[0] != "devices"
    }
    files["metrics.jsonl"] = [without_times(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for path in run.glob("rounds/*/round.json"):
        files[path.relative_to(run).as_posix()] = without_times(path.read_text())
    for path in run.glob("rounds/*/sealed.json"):
        files[path.relative_to(run).as_posix()] = json.loads(path.read_text()) | {"run": ""}
    files["run.json"] = json.loads((run / "run.json").read_text()) | {"run": ""}
    files["config.json"] = json.loads((run / "config.json").read_text()) | {"output": ""}
    list(audited(run))  # the records are whole; what devices say of their times is in them
    return without_records(files)


def without_times(text: str) -> dict[str, Any]:
    return {key: value for key, value in json.loads(text).items() if key not in TIMES}


@contextmanager
def stopped_at_commits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every run is stopped as soon as a round is committed."""
    commit = RunDirectory.commit

    def stopping(*arguments: Any, **options: Any) -> None:
        commit(*arguments, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "commit", stopping)
        yield


@pytest.fixture
def stopped(simulator: Simulator, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A simulation of two rounds that was stopped when the first was committed."""
    with stopped_at_commits(monkeypatch):
        name = re.sub(r"\W+", "-", request.node.name)
        with pytest.raises(RunError, match="stopped; 1 round of it is kept"):
            simulator(name)
    return simulator.folder / name


def test_a_simulation_that_was_stopped_goes_on_and_prints_and_writes_what_simulate_does(
    stopped: Path, tiny_run: tuple[Path, Result]
) -> None:
    result = resumed(stopped)
    assert result.exit_code == 0
    assert result.stdout == f"{stopped / 'report.html'}\n"
    assert f"{stopped} goes on after round 1 of 2" in result.stderr
    assert left(stopped) == left(tiny_run[0])
    assert (stopped / "report.html").is_file()


def test_a_simulation_that_is_complete_is_left_as_it_is_and_gets_more_rounds(
    simulator: Simulator, tiny_run: tuple[Path, Result]
) -> None:
    run, _ = simulator("one-round", "server.rounds=1")
    before = left(run)
    result = resumed(run)
    assert f"{run} has all of its 1 round" in result.stderr
    assert left(run) == before
    assert resumed(run, "--set", "server.rounds=2").exit_code == 0
    assert left(run) == left(tiny_run[0])


def test_a_simulation_does_not_go_on_with_what_would_change_its_result(stopped: Path) -> None:
    before = tree(stopped)
    with pytest.raises(ConfigError, match=r"holds another run: train\.lr is 0\.01 there, 0\.02 here; go on with"):
        resumed(stopped, "--set", "train.lr=0.02")
    assert tree(stopped) == before


def test_a_directory_without_a_simulation_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "nothing"
    with pytest.raises(ConfigError, match="nothing: there is no such file or folder"):
        resumed(folder)
    folder.mkdir()
    with pytest.raises(ConfigError, match=r"nothing holds no run: it has no config\.json"):
        resumed(folder)


def fedlora(*arguments: object) -> subprocess.Popen[str]:
    command = [str(Path(sys.executable).with_name("fedlora")), *map(str, arguments), "--workers", "1"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> None:
    _, error = process.communicate(timeout=600)
    assert process.returncode == 0, error[-3000:]


def has_its_run(process: subprocess.Popen[str], run: Path) -> bool:
    """Whether the process has come so far that it holds the run's lock."""
    try:
        return any(link.readlink() == run / "lock" for link in Path(f"/proc/{process.pid}/fd").iterdir())
    except OSError:  # it ended meanwhile, or closed what we looked at
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="it cannot be seen what a process has open")
@pytest.mark.parametrize("changes", [(), ("server.method=fedavg", "aggregation.optimizer=fedadam")], ids=" ".join)
def test_a_simulation_killed_20_times_at_random_moments_ends_to_the_bit_as_one_that_was_not(
    tmp_path: Path, changes: tuple[str, ...]
) -> None:
    scenario, run, whole = tmp_path / "scenario.toml", tmp_path / "run", tmp_path / "whole"
    scenario.write_text(SCENARIO, encoding="utf-8")
    options = [option for change in changes for option in ("--set", change)]
    ended(fedlora("simulate", scenario, "-o", whole, *options))
    round_s = min(record["seconds"] for record in read_metrics(whole))
    generator = random.Random(len(changes))
    killed_in: list[int] = []
    for _ in range(40):
        begun = (run / "config.json").exists()
        process = fedlora("resume", run) if begun else fedlora("simulate", scenario, "-o", run, *options)
        while process.poll() is None and not has_its_run(process, run):
            time.sleep(0.01)
        done, soon = last_round(run), generator.uniform(0, 0.2)
        ahead = done > len(killed_in) * 6 / 20
        dies_at = time.monotonic() + generator.uniform(0, round_s * (0.4 if ahead else 3))
        while process.poll() is None and time.monotonic() < dies_at:
            time.sleep(0.005)
            if last_round(run) > done:  # a round at most in each life: there are 20 of them, and 6 rounds
                done, dies_at = 99, time.monotonic() + soon
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if process.returncode == -signal.SIGKILL:
            killed_in.append(last_round(run))
        if len(killed_in) == 20:
            break
    print("rounds in which it was killed:", killed_in)
    ended(fedlora("resume", run))
    assert left(run) == left(whole)
    assert len(killed_in) == 20
    assert len(set(killed_in)) > 3, "it was killed in few rounds only"


def test_a_run_that_is_stopped_says_how_it_goes_on(simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    with stopped_at_commits(monkeypatch):
        with pytest.raises(RunError) as told:
            simulator("my run")
        run = simulator.folder / "my run"
        assert str(told.value) == f"stopped; 1 round of it is kept. To go on: fedlora resume '{run}'"
        with pytest.raises(RunError, match="stopped; 2 rounds of it are kept"):
            resumed(run)
    assert resumed(run).exit_code == 0


def test_a_run_that_is_stopped_before_it_began_keeps_nothing(
    simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fedlora_simulations.simulation.run_in_process", stop)
    with pytest.raises(RunError, match="stopped before the run began: nothing is kept"):
        simulator("never")
    assert not (simulator.folder / "never").exists()
