"""A run that was stopped goes on as if it had not been; and what is no such run is refused."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from fedlora.config.run import AggregationConfig, RunConfig
from fedlora.errors import AdapterError, ConfigError, RunError
from fedlora.wire.update import Update, encode_update
from fedlora_server.aggregation.aggregation import Aggregation, Round, State
from fedlora_server.app import app
from fedlora_server.methods.method import Global
from fedlora_server.rounds import Rounds
from fedlora_server.run import metrics_file
from fedlora_server.run.metrics_file import MetricsFile
from fedlora_server.run.resume import check_goes_on
from fedlora_server.run.round_record import RoundRecord
from fedlora_server.run.run_directory import RunDirectory, as_it_began, open_run, read_config, read_metrics
from fedlora_server.run.run_lock import locked
from flwr.app import Context, Message, RecordDict
from flwr.app.user_config import UserConfig
from numpy.typing import NDArray

from tests.server.fake_grid import Device, FakeGrid, Honest, Played, Player, training_reply
from tests.server.method_cases import METHODS
from tests.server.records import records_of, without_records
from tests.tiny.checkpoints import tree

ROUNDS = 3
TIMES = ("seconds", "server_s", "costs")
PLAIN = AggregationConfig(max_rank=9)  # stack and fedex come to cut what they commit
CASES = {
    **{method: (method, PLAIN) for method in METHODS},
    **{
        f"{method}+{optimizer}": (method, dataclasses.replace(PLAIN, optimizer=optimizer))
        for method, kind in METHODS.items()
        for optimizer in ("fedadam", "fedavgm")
        if not kind.refuses_optimizer
        and (optimizer == "fedavgm" or not kind.refuses_adaptive)
        and (optimizer == "fedadam" or method in ("fedavg", "svd"))
    },
    "svd of multi-krum": ("svd", dataclasses.replace(PLAIN, robust="multi-krum", weights="uniform")),
}


class Stopped(Exception):  # noqa: N818
    """What the server of a test ends with."""


def devices() -> dict[int, Device]:
    """Five, two of which give themselves the same name."""
    return {node: Honest(node, name="same" if node in (2, 5) else "") for node in range(1, 6)}


def left(run: Path) -> dict[str, object]:
    """What a run left, but for times."""
    files: dict[str, object] = dict(tree(run))
    files["metrics.jsonl"] = [without_times(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for path in run.glob("rounds/*/round.json"):
        files[path.relative_to(run).as_posix()] = without_times(path.read_text())
    files["config.json"] = json.loads((run / "config.json").read_text()) | {"output": ""}
    return without_records(files) | {"records": records_of(run)}


def without_times(text: str) -> dict[str, Any]:
    return {key: value for key, value in json.loads(text).items() if key not in TIMES}


def stop(monkeypatch: pytest.MonkeyPatch, kind: type, name: str, number: int, *, before: bool) -> None:
    """Make the method raise in its call of that number, or after it."""
    method, calls = getattr(kind, name), iter(range(1, 1000))

    def stopping(*arguments: Any, **options: Any) -> Any:
        last = next(calls) == number
        if last and before:
            raise Stopped
        result = method(*arguments, **options)
        if last:
            raise Stopped
        return result

    monkeypatch.setattr(kind, name, stopping)


class Runs:
    """Runs of one configuration, whole and stopped."""

    def __init__(self, play: Player, **settings: Any) -> None:
        self.folder = play.folder
        self._play, self._settings = play, {"rounds": ROUNDS, "devices_per_round": 3} | settings

    def whole(self, **settings: Any) -> Played:
        return self._play.soundly(devices(), **self._settings | settings)

    def stopped(self, kind: type, name: str, number: int, *, before: bool = False) -> Played:
        with pytest.MonkeyPatch.context() as patch:
            stop(patch, kind, name, number, before=before)
            played = self._play(devices(), **self._settings)
        assert isinstance(played.error, Stopped)
        return played

    def goes_on(self, played: Played, **settings: Any) -> Played:
        return self._play(devices(), goes_on=played, **self._settings | settings)


@pytest.fixture(autouse=True)
def without_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here loses its power; the tests of a killed server do wait."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture
def runs(play: Player) -> Runs:
    return Runs(play)


@pytest.mark.parametrize(("method", "aggregation"), CASES.values(), ids=list(CASES))
def test_a_run_that_was_stopped_after_any_round_ends_as_one_that_was_not(
    play: Player, method: str, aggregation: AggregationConfig
) -> None:
    runs = Runs(play, method=method, aggregation=aggregation)
    expected = left(runs.whole().path)
    for server_round in range(ROUNDS + 1):
        stopped = runs.stopped(RunDirectory, "add_metrics", server_round + 1)
        assert len(stopped.committed()) == server_round
        again = runs.goes_on(stopped)
        assert again.error is None
        assert left(again.path) == expected


@pytest.mark.parametrize(("method", "aggregation"), CASES.values(), ids=list(CASES))
def test_what_is_read_back_of_a_round_is_what_it_made(
    play: Player, method: str, aggregation: AggregationConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, State]] = []
    result = Round.result

    def spied(this: Round) -> State:
        state = result(this)
        made.append((len(made) + 1, state))
        return state

    monkeypatch.setattr(Round, "result", spied)
    played = Runs(play, method=method, aggregation=aggregation).whole()
    config = read_config(played.path)
    first = config.first_adapter(play.base)
    whole = Aggregation(config, first)
    assert len(made) == ROUNDS
    for server_round, state in made:
        restored = whole.restored(*RunDirectory(played.path, play.base).read(server_round, first))
        assert whole.committed(restored).config == whole.committed(state).config
        assert parts(Global(whole.committed(restored))) == parts(Global(whole.committed(state)))
        down, expected = (whole.method.down(each.now, server_round + 1) for each in (restored, state))
        assert parts(down) == parts(expected)
        assert arrays(restored.moments) == arrays(state.moments)
        assert bool(state.moments) is (aggregation.optimizer != "none")


def parts(what: Global) -> list[object]:
    """All that a Global is, in its order."""
    return [
        (module, adapter.config.scaling_of(module), arrays({"A": pair.lora_A, "B": pair.lora_B}))
        for adapter in (what.adapter, what.frozen)
        if adapter is not None
        for module, pair in adapter.pairs.items()
    ]


def arrays(by_name: Mapping[str, NDArray[Any]]) -> list[tuple[str, tuple[int, ...], bytes]]:
    return [(name, array.shape, array.tobytes()) for name, array in by_name.items()]


@pytest.mark.parametrize(
    ("kind", "name", "before"),
    [
        (Rounds, "_sampled", False),
        (RunDirectory, "commit", True),
        (RunDirectory, "commit", False),
        (RunDirectory, "add_metrics", True),
    ],
    ids=["after sampling", "before the commit", "after the commit", "before the metrics"],
)
@pytest.mark.parametrize("server_round", [1, 3])
def test_a_run_that_was_stopped_within_a_round_ends_as_one_that_was_not(
    runs: Runs, kind: type, name: str, before: bool, server_round: int
) -> None:
    number = server_round + (name == "add_metrics")
    again = runs.goes_on(runs.stopped(kind, name, number, before=before))
    assert again.error is None
    assert left(again.path) == left(runs.whole().path)


def test_a_run_that_is_complete_is_left_as_it_is(runs: Runs, caplog: pytest.LogCaptureFixture) -> None:
    played = runs.whole()
    before = tree(played.path)
    with caplog.at_level("INFO", "fedlora.server"):
        again = runs.goes_on(played)
    assert again.error is None
    assert again.grid.asked == []
    assert tree(played.path) == before
    assert f"{played.path} is complete: it has all of its 3 rounds" in caplog.messages


def test_more_rounds_are_added_to_a_run_that_is_complete(runs: Runs) -> None:
    again = runs.goes_on(runs.whole(), rounds=5)
    assert again.error is None
    assert left(again.path) == left(runs.whole(rounds=5).path)


def test_what_changes_no_result_may_be_another(runs: Runs) -> None:
    stopped = runs.stopped(RunDirectory, "add_metrics", 2)
    again = runs.goes_on(stopped, min_devices=2, round_timeout_s=29.0)
    assert again.error is None
    config = json.loads((again.path / "config.json").read_text())
    assert (config["server.min_devices"], config["server.round_timeout_s"], config["server.resume"]) == (2, 29.0, False)


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


def test_what_a_killed_server_left_half_written_is_removed(runs: Runs) -> None:
    stopped = runs.stopped(RunDirectory, "add_metrics", 2)
    (stopped.path / "rounds" / ".0002.abcd" / ".adapter.efgh").mkdir(parents=True)
    (stopped.path / "rounds" / ".0002.abcd" / "round.json").write_text("{")
    (stopped.path / ".metrics.jsonl.abcd").write_text("{")
    (stopped.path / ".config.json.abcd").write_text("")
    again = runs.goes_on(stopped)
    assert again.error is None
    assert left(again.path) == left(runs.whole().path)


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


def test_the_rounds_that_a_person_removes_are_done_again(runs: Runs) -> None:
    played = runs.whole()
    for name in ("0002", "0003"):
        shutil.rmtree(played.path / "rounds" / name)
    again = runs.goes_on(played)
    assert again.error is None
    assert left(again.path) == left(runs.whole().path)


def test_a_reply_to_the_server_that_was_killed_does_not_count(runs: Runs, play: Player) -> None:
    """A device trained for the killed server; its reply comes to the one that goes on, which has another run's number."""
    stopped = runs.stopped(RunDirectory, "add_metrics", 3)

    def late(message: Message, update: Update) -> Sequence[Message]:
        data = encode_update(dataclasses.replace(update, run="the killed one's"))
        return [training_reply(message, data, "device-3")]

    others: dict[int, Device] = {node: Honest(node, late) for node in devices()}
    again = play(others, goes_on=stopped, rounds=3, devices_per_round=3)
    assert isinstance(again.error, RunError)
    assert "'wrong-run': 3" in str(again.error)
    assert again.committed() == ["0001", "0002"]
    assert runs.goes_on(stopped).error is None


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


def test_a_run_from_before_the_defaults_changed_goes_on_as_it_began(play: Player) -> None:
    """Its configuration names no rule and knows no bound on weights; one that goes on leaves both to fedlora."""
    old = AggregationConfig(robust="none", max_weight=0.0, fixed_signs=False)
    whole = play.soundly(devices(), rounds=ROUNDS, aggregation=old)
    played = play.soundly(devices(), rounds=1, aggregation=old)
    config = json.loads((played.path / "config.json").read_text())
    del config["aggregation.max_weight"], config["aggregation.fixed_signs"]
    (played.path / "config.json").write_text(json.dumps(config))
    began = read_config(played.path)
    assert (began.aggregation.robust, began.aggregation.max_weight) == ("none", 0.0)
    asked = dataclasses.replace(began, aggregation=AggregationConfig())
    assert as_it_began(asked, played.path).aggregation == began.aggregation
    again = play.soundly(devices(), rounds=ROUNDS, aggregation=began.aggregation, goes_on=played)
    assert (again.path / "rounds/0003/sealed.json").read_text() == (whole.path / "rounds/0003/sealed.json").read_text()


def test_a_run_keeps_the_rule_that_the_default_stood_for_when_it_began(play: Player) -> None:
    for method, robust in (("svd", "norm-bound"), ("fedavg", "none"), ("ffa", "norm-bound")):
        played = play.soundly(devices(), rounds=1, method=method)
        assert read_config(played.path).aggregation.robust == robust
        assert play(devices(), rounds=2, method=method, goes_on=played).error is None
