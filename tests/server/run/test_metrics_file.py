"""The lines of a run's metrics: mended when it goes on, and read with care."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from fedlora.errors import RunError
from fedlora.wire.update import Update
from fedlora_server.run import metrics_file
from fedlora_server.run.metrics_file import MetricsFile
from fedlora_server.run.round_record import RoundRecord
from fedlora_server.run.run_directory import RunDirectory, read_metrics
from flwr.app import Message

from tests.server.fake_grid import Device, FakeGrid, Honest, Played, Player
from tests.server.run.stopped_runs import ROUNDS, Runs, Stopped, devices, left, stop


def lines_of(run: Path) -> list[str]:
    return (run / "metrics.jsonl").read_text().splitlines(keepends=True)


MENDED: Mapping[str, Callable[[list[str]], str]] = {
    "half of the last line": lambda lines: "".join(lines)[:-40],
    "no end of the last line": lambda lines: "".join(lines)[:-1],
    "no last line": lambda lines: "".join(lines[:-1]),
    "no lines": lambda lines: "",
    "a line twice": lambda lines: "".join([*lines, lines[-1]]),
    "no line in the middle": lambda lines: "".join([*lines[:1], *lines[2:]]),
    "garbage in the middle": lambda lines: "".join([*lines[:1], "\0\0\0\n[]\n{}\n", *lines[1:]]),
    "no first line": lambda lines: "".join(lines[1:]),
}


@pytest.mark.parametrize("damage", MENDED.values(), ids=list(MENDED))
@pytest.mark.parametrize("number", [3, 4], ids=["a run that goes on", "a complete run"])
def test_the_metrics_are_mended_where_there_is(runs: Runs, damage: Callable[[list[str]], str], number: int) -> None:
    stopped = runs.stopped(RunDirectory, "add_metrics", number)
    (stopped.path / "metrics.jsonl").write_text(damage(lines_of(stopped.path)))
    again = runs.goes_on(stopped)
    assert again.error is None
    assert left(again.path) == left(runs.whole().path)


def test_the_line_of_a_round_that_came_to_nothing_is_replaced_when_it_is_done_again(runs: Runs, play: Player) -> None:
    def broken(message: Message, update: Update) -> Sequence[Message]:
        raise OSError("the disk is gone")

    failing: dict[int, Device] = {node: Honest(node, broken, from_round=2) for node in range(1, 6)}
    stopped = play(
        failing | {2: Honest(2, broken, 2, "same"), 5: Honest(5, broken, 2, "same")}, rounds=3, devices_per_round=3
    )
    assert isinstance(stopped.error, RunError)
    assert [(record["round"], record["replies"]) for record in stopped.metrics] == [(0, 0), (1, 3), (2, 0)]
    again = runs.goes_on(stopped)
    assert again.error is None
    assert left(again.path) == left(runs.whole().path)


def test_a_line_of_a_round_that_came_to_nothing_does_not_stand_for_the_one_that_was_committed_later(
    runs: Runs, play: Player
) -> None:
    """The round fails and has its line; it is committed by the next server, which is killed before it writes its own."""
    stopped = runs.stopped(RunDirectory, "add_metrics", 3)
    failing: dict[int, Device] = {node: Honest(node, lambda message, update: []) for node in devices()}
    failed = play(failing, goes_on=stopped, rounds=3, devices_per_round=3, round_timeout_s=0.1)
    assert isinstance(failed.error, RunError)
    assert failed.metrics[-1]["replies"] == 0
    with pytest.MonkeyPatch.context() as patch:
        stop(patch, RunDirectory, "add_metrics", 1, before=True)
        killed = runs.goes_on(failed)
    assert isinstance(killed.error, Stopped)
    assert runs.goes_on(failed).error is None
    assert left(failed.path) == left(runs.whole().path)


def test_a_line_that_cannot_be_written_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics.put(RoundRecord(0).line())
    before = (tmp_path / "metrics.jsonl").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            metrics.put(RoundRecord(1).line())
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    metrics.put(RoundRecord(1).line())
    assert metrics.complete == 2


def test_a_line_that_cannot_be_written_ends_the_run_with_what_stands_and_how_to_go_on(runs: Runs) -> None:
    def full(path: Path, data: bytes) -> None:
        if json.loads(data)["round"] == 2:
            raise OSError(28, "No space left on device")
        append(path, data)

    append = metrics_file._append
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics_file, "_append", full)
        with pytest.raises(
            RunError, match=r"no line for round 2 .*No space left on device; the adapter of round 2 stands"
        ):
            runs.whole()
    (stopped,) = runs.folder.iterdir()
    assert runs.goes_on(Played(FakeGrid({}), stopped)).error is None
    assert left(stopped) == left(runs.whole().path)


def kinds() -> dict[str, tuple[str, object]]:
    """For every value of a record, and every value in one: something of each other kind."""
    wrong: dict[str, tuple[str, object]] = {}
    for key, default in RoundRecord(0).line().items():
        if key == "round":
            continue
        deeper: dict[str, object] = {"a": {"b": "5"}} if key == "costs" else {"a": {"b": 1}}  # by device and what
        for value in ("5", True, [], [1], math.nan, math.inf, 10**400, {"a": "5"}, {"a": None}, deeper):
            wrong[f"{key} {value!r:.20}"] = (key, value)
        if default is not None:
            wrong[f"{key} null"] = (key, None)
        wrong[f"{key} 5 or an object"] = (key, 5 if isinstance(default, dict) else {})
    return wrong


def test_a_value_of_another_kind_in_the_metrics_is_refused_by_file_line_and_value(runs: Runs) -> None:
    played = runs.whole()
    metrics = played.path / "metrics.jsonl"
    lines = metrics.read_text().splitlines()
    for key, value in kinds().values():
        changed = [*lines]
        changed[2] = json.dumps(json.loads(lines[2]) | {key: value})
        metrics.write_text("\n".join(changed) + "\n")
        with pytest.raises(RunError) as caught:
            MetricsFile(metrics)
        assert str(caught.value).startswith(f"{metrics}: line 3: {key} is ")
        assert len(str(caught.value)) < 400
    assert str(runs.goes_on(played).error) == str(caught.value)
    metrics.write_text("\n".join(lines[:2]) + "\n")  # without the wrong line, as the message says
    assert runs.goes_on(played).error is None


def test_a_line_of_the_metrics_without_some_of_its_values_is_read_as_one_that_has_none(runs: Runs) -> None:
    played = runs.whole()
    metrics = played.path / "metrics.jsonl"
    lines = metrics.read_text().splitlines()
    metrics.write_text("\n".join(['{"round": 0}', *lines[1:]]) + "\n")
    assert read_metrics(played.path)[0] == RoundRecord(0).line()
    assert runs.goes_on(played, rounds=ROUNDS + 1).error is None
