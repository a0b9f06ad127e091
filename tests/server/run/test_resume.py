"""A run that was stopped goes on as if it had not been."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from fedlora.config.run import AggregationConfig
from fedlora.errors import RunError
from fedlora.wire.update import Update, encode_update
from fedlora_server.aggregation.aggregation import Aggregation, Round, State
from fedlora_server.methods.method import Global
from fedlora_server.rounds import Rounds
from fedlora_server.run.run_directory import RunDirectory, as_it_began, read_config
from flwr.app import Message
from numpy.typing import NDArray

from tests.server.fake_grid import Device, Honest, Player, training_reply
from tests.server.method_cases import METHODS
from tests.server.run.stopped_runs import PLAIN, ROUNDS, Runs, devices, left
from tests.tiny.checkpoints import tree

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


def test_what_a_killed_server_left_half_written_is_removed(runs: Runs) -> None:
    stopped = runs.stopped(RunDirectory, "add_metrics", 2)
    (stopped.path / "rounds" / ".0002.abcd" / ".adapter.efgh").mkdir(parents=True)
    (stopped.path / "rounds" / ".0002.abcd" / "round.json").write_text("{")
    (stopped.path / ".metrics.jsonl.abcd").write_text("{")
    (stopped.path / ".config.json.abcd").write_text("")
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
