"""Rounds that do not wait: a commit for every few updates, whoever they come from, and however old their adapters are."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from fedlora.config.run import ServerConfig
from fedlora.errors import ConfigError, RunError
from fedlora.lora.adapter import Adapter
from fedlora.wire.update import Update, encode_update
from fedlora_server.methods.fedavg import MeanAggregator
from fedlora_server.methods.method import Aggregator, Global, Method
from flwr.app import Error, Message

from tests.server.fake_grid import Device, FakeGrid, Honest, Played, Player, training_reply, update_of
from tests.server.paced_grid import PacedGrid, StoppingGrid
from tests.tiny.checkpoints import tree

TAKING = ["ffa", "fedavg", "fedex", "fedrot", "hetlora", "lorafair", "stack", "svd"]
REFUSING = {"fedsa": "keeps its B", "fedsvd": "the A of its round", "rolora": "take turns", "raflora": "component"}
SLOW = {4: 10.0}  # ten times slower than the others


def paced(*nodes: int, pace: Mapping[int, float] | None = None) -> PacedGrid:
    return PacedGrid({node: Honest(node) for node in nodes}, pace)


def same(got: Adapter, expected: Adapter) -> bool:
    return all(
        np.array_equal(pair.lora_A, expected.pairs[module].lora_A)
        and np.array_equal(pair.lora_B, expected.pairs[module].lora_B)
        for module, pair in got.pairs.items()
    )


def asked(grid: FakeGrid, kind: str = "train") -> Counter[int]:
    return Counter(node for what, node in grid.asked if what == kind)


@pytest.mark.parametrize("method", TAKING)
def test_a_device_ten_times_slower_slows_no_commit(play: Player, method: str) -> None:
    ticks = {}
    for mode in ("sync", "async"):
        for pace in ({}, SLOW):
            grid = paced(1, 2, 3, 4, pace=pace)
            play.soundly(grid, mode=mode, rounds=12, method=method, evaluate=False)
            ticks[mode, bool(pace)] = grid.clock / 12
    assert (ticks["sync", False], ticks["sync", True]) == (1, 10)
    assert ticks["async", False] == 1
    assert ticks["async", True] <= 4 / 3 + 0.1, "three devices send what four did"


@pytest.mark.parametrize("method", TAKING)
def test_while_nothing_is_late_a_commit_is_that_of_a_round(play: Player, method: str) -> None:
    waiting = play.soundly(paced(1, 2, 3, 4), rounds=1, method=method)
    buffered = play.soundly(paced(1, 2, 3, 4), rounds=1, method=method, mode="async", buffer_size=4)
    assert same(buffered.adapter(1), waiting.adapter(1))
    assert buffered.metrics[1]["staleness"] == {}
    for key in ("replies", "devices", "excluded", "aggregation_error", "train_loss", "nodes", "loss"):
        assert buffered.metrics[1][key] == waiting.metrics[1][key], key


@pytest.mark.parametrize("method", TAKING)
def test_a_free_device_is_always_asked_with_the_newest_adapter(play: Player, method: str) -> None:
    sent: list[Update] = []

    def device(message: Message) -> Sequence[Message]:
        if message.metadata.message_type == "train":
            sent.append(update_of(message))
        return Honest(message.metadata.dst_node_id)(message)

    grid = PacedGrid(dict.fromkeys((1, 2, 3), device), {3: 2.5})
    played = play.soundly(grid, rounds=4, mode="async", buffer_size=2, method=method, evaluate=False)
    assert played.metrics[4]["staleness"]["most"] >= 1
    assert [record["replies"] for record in played.metrics] == [0, 2, 2, 2, 2]
    assert all(record["aggregation_error"] is not None for record in played.metrics[1:])
    begun = [update.server_round for update in sent]
    assert begun == sorted(begun)
    assert set(begun) == {1, 2, 3, 4}


def test_a_device_that_is_asked_for_the_same_round_again_draws_other_batches(play: Player) -> None:
    seen: list[tuple[int, int]] = []

    def device(message: Message) -> Sequence[Message]:
        if message.metadata.message_type == "train":
            down = update_of(message)
            seen.append((down.server_round, down.task.again))
        return Honest(1)(message)

    played = play.soundly(PacedGrid({1: device}), rounds=2, mode="async", buffer_size=3, evaluate=False)
    assert seen == [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]
    assert [record["excluded"] for record in played.metrics] == [{}, {}, {}], "no update is the copy of another"
    assert played.metrics[1]["replies"] == 3


def test_an_update_counts_less_the_older_its_adapter_is(play: Player) -> None:
    """One device alone, and a late one that would carry the adapter away: with a high exponent it does not."""
    adapters = {}
    for exponent in (0.0, 10.0):
        grid = paced(1, 2, pace={2: 3.0})
        played = play.soundly(
            grid, rounds=4, mode="async", buffer_size=1, staleness_exponent=exponent, method="ffa", evaluate=False
        )
        adapters[exponent] = played.adapter(4), played.adapter(2)
        assert max(record["staleness"].get("most", 0) for record in played.metrics) >= 2
    assert not same(adapters[0.0][0], adapters[10.0][0])
    assert same(adapters[0.0][1], adapters[10.0][1]), "until the first late one came they are one"


def test_an_update_on_too_old_an_adapter_is_counted_as_stale(play: Player) -> None:
    grid = paced(1, 2, 3, 4, pace=SLOW)
    played = play.soundly(grid, rounds=12, mode="async", max_staleness=2, evaluate=False)
    excluded = sum((Counter(record["excluded"]) for record in played.metrics), Counter[str]())
    assert excluded == {"stale": 1}
    assert all(record["staleness"].get("most", 0) <= 2 for record in played.metrics)
    assert asked(grid)[4] == 2, "it is asked again"
    assert sum(record["bytes_up"] for record in played.metrics) <= grid.bytes_up


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda update: dataclasses.replace(update, server_round=update.server_round + 1), "wrong-round"),
        (lambda update: dataclasses.replace(update, server_round=max(0, update.server_round - 1)), "wrong-round"),
        (lambda update: dataclasses.replace(update, run="other"), "wrong-run"),
    ],
    ids=["of a later round", "of an earlier round", "of another run"],
)
def test_which_round_an_update_answers_is_what_was_asked_not_what_it_says(
    play: Player, change: Callable[[Update], Update], reason: str
) -> None:
    def lying(message: Message, update: Update) -> Sequence[Message]:
        return [training_reply(message, encode_update(change(update)), "liar")]

    grid = PacedGrid({1: Honest(1), 2: Honest(2), 3: Honest(3, lying)}, {3: 2.0})
    played = play.soundly(grid, rounds=4, mode="async", buffer_size=2, evaluate=False)
    excluded = sum((Counter(record["excluded"]) for record in played.metrics), Counter[str]())
    assert set(excluded) == {reason}
    assert all("liar" not in record["train_loss"] for record in played.metrics)


def test_a_device_whose_answer_is_none_is_left_alone_until_the_next_commit(play: Player) -> None:
    def failing(message: Message, update: Update) -> Sequence[Message]:
        return [Message(Error(2, "device broken: no disk"), reply_to=message)]

    grid = PacedGrid({1: Honest(1), 2: Honest(2), 3: Honest(3, failing)}, {3: 0.0})
    played = play.soundly(grid, rounds=5, mode="async", buffer_size=4, evaluate=False)
    assert asked(grid)[3] == 5, "once a commit"
    assert [record["excluded"] for record in played.metrics[1:]] == [{"device-error": 1}] * 5
    assert [record["devices"] for record in played.metrics[1:]] == [5] * 5


def test_where_every_answer_is_none_the_run_ends_and_what_was_committed_stays(play: Player) -> None:
    def failing(message: Message, update: Update) -> Sequence[Message]:
        raise OSError("the disk is gone")

    devices: dict[int, Device] = {node: Honest(node, failing, from_round=3) for node in (1, 2)}
    played = play(PacedGrid(devices), rounds=5, mode="async", buffer_size=2)
    assert isinstance(played.error, RunError)
    assert "round 3" in str(played.error)
    assert "adapter of round 2 stands" in str(played.error)
    assert played.committed() == ["0001", "0002"]
    assert played.metrics[-1]["excluded"]["device-error"] >= 1


def test_a_commit_has_updates_of_at_least_the_least_devices(play: Player) -> None:
    grid = paced(1, 2, pace={2: 6.0})
    settings: dict[str, Any] = {"buffer_size": 2, "min_devices": 2, "evaluate": False}
    played = play.soundly(grid, rounds=2, mode="async", max_share=1.0, **settings)
    assert [len(record["train_loss"]) for record in played.metrics[1:]] == [2, 2]
    assert all(record["replies"] >= 6 for record in played.metrics[1:])


@pytest.mark.parametrize(("share", "most"), [(0.5, 4), (0.3, 3), (1.0, 8)])
def test_of_a_commit_a_fast_device_gives_at_most_its_share(play: Player, share: float, most: int) -> None:
    grid = paced(1, 2, 3, 4, pace={1: 0.01})  # a hundred answers while the others give one
    played = play.soundly(grid, rounds=6, mode="async", buffer_size=8, max_share=share, evaluate=False)
    assert [record["replies"] for record in played.metrics[1:]] == [8] * 6
    assert 6 * most <= asked(grid)[1] <= 6 * most + 1, "and one that the last commit did not wait for"
    assert (sum(asked(grid)[node] for node in (2, 3, 4)) > 6) == (share < 1)


def test_a_device_gives_more_than_its_share_where_nobody_else_gives_anything(play: Player) -> None:
    def failing(message: Message, update: Update) -> Sequence[Message]:
        return [Message(Error(2, "device broken: no disk"), reply_to=message)]

    grid = PacedGrid({1: Honest(1), 2: Honest(2, failing), 3: Honest(3, failing)})
    played = play.soundly(grid, rounds=3, mode="async", buffer_size=4, evaluate=False)
    assert [record["replies"] for record in played.metrics[1:]] == [4, 4, 4]
    assert [list(record["train_loss"]) for record in played.metrics[1:]] == [["device-1"]] * 3


def test_a_device_whose_answer_is_there_is_not_asked_again_before_it_counts(play: Player) -> None:
    """All answer at the same moment: those whose turn comes later are no free devices meanwhile."""
    grid = paced(1, 2, 3, 4)
    played = play.soundly(grid, rounds=3, mode="async", buffer_size=4, evaluate=False)
    assert [record["replies"] for record in played.metrics[1:]] == [4, 4, 4]
    assert all(record["staleness"] == {} for record in played.metrics[1:2])
    assert sum(asked(grid).values()) == 12 + 3, "three of four were asked again before the last commit was full"


def test_a_commit_that_does_not_fill_in_time_is_made_of_what_came(play: Player) -> None:
    def silent(message: Message, update: Update) -> Sequence[Message]:
        return []

    devices = {1: Honest(1), 2: Honest(2, silent), 3: Honest(3, silent)}
    played = play.soundly(
        FakeGrid(devices), rounds=1, mode="async", buffer_size=10**6, round_timeout_s=0.4, evaluate=False
    )
    record = played.metrics[1]
    assert record["replies"] >= 1
    assert record["train_loss"] == {"device-1": 2.0}


def test_no_more_devices_train_at_a_time_than_are_wanted_and_all_have_their_turn(play: Player) -> None:
    nodes = range(1, 9)
    most = 0

    class Watched(PacedGrid):
        def push_messages(self, messages: Any) -> Any:
            nonlocal most
            ids = super().push_messages(messages)
            most = max(most, sum(at > self.clock for at in self._due.values()))
            return ids

    def play_once(seed: int) -> tuple[Played, list[tuple[str, int]]]:
        grid = Watched({node: Honest(node) for node in nodes})
        settings: dict[str, Any] = {"rounds": 12, "devices_per_round": 3, "buffer_size": 3, "evaluate": False}
        return play.soundly(grid, seed=seed, mode="async", **settings), grid.asked

    played, order = play_once(1)
    assert most == 3
    assert len({node for _, node in order}) == 8
    again, same_order = play_once(1)
    assert order == same_order, "the draws come from the seed"
    assert same(played.adapter(12), again.adapter(12))
    assert play_once(2)[1] != order


def test_an_evaluation_waits_for_nobody_and_the_last_one_is_of_all_devices(play: Player) -> None:
    grid = StoppingGrid({node: Honest(node) for node in (1, 2, 3, 4)}, SLOW)
    played = play.soundly(grid, rounds=12, mode="async")
    assert grid.clock <= 12 * (4 / 3 + 0.1)
    assert [record["round"] for record in played.metrics] == list(range(13))
    everybody = {f"device-{node}" for node in (1, 2, 3, 4)}
    assert set(played.metrics[0]["loss"]) == set(played.metrics[12]["loss"]) == everybody
    assert all(
        everybody >= set(record["loss"]) >= {"device-1", "device-2", "device-3"} for record in played.metrics[1:]
    )
    for record in played.metrics[1:]:
        for device, loss in record["loss"].items():
            assert loss == int(device[-1]) + 1 / (1 + record["round"]), "it measured this round's adapter"
        assert record["measured_of"] == len(record["loss"])
    assert sum(record["bytes_down"] for record in played.metrics) == grid.bytes_down


def test_evaluation_every_few_commits(play: Player) -> None:
    played = play.soundly(paced(1, 2, 3), rounds=5, mode="async", buffer_size=3, evaluate_every=2)
    assert [bool(record["loss"]) for record in played.metrics] == [True, False, True, False, True, True]


def test_a_run_that_was_stopped_goes_on_at_its_last_commit(play: Player) -> None:
    """What was out when the server died is asked for anew, with the adapter of the last commit."""
    settings: dict[str, Any] = {"mode": "async", "buffer_size": 3}
    grid = paced(1, 2, 3, 4, pace=SLOW)

    class StoppedError(Exception):
        pass

    push, committed = grid.push_messages, 0

    def stopping(messages: Any) -> Any:
        if grid.clock >= 3:
            raise StoppedError
        return push(messages)

    grid.push_messages = stopping  # type: ignore[method-assign]
    played = play(grid, rounds=6, **settings)
    assert isinstance(played.error, StoppedError)
    committed = len(played.committed())
    assert 1 <= committed < 6
    before = tree(played.path / "rounds")
    begun: list[int] = []

    def device(message: Message) -> Sequence[Message]:
        if message.metadata.message_type == "train":
            begun.append(update_of(message).server_round)
        return Honest(message.metadata.dst_node_id)(message)

    again = play.soundly(PacedGrid(dict.fromkeys((1, 2, 3, 4), device), SLOW), rounds=6, goes_on=played, **settings)
    assert again.committed() == [f"{number:04d}" for number in range(1, 7)]
    assert [record["round"] for record in again.metrics] == list(range(7))
    assert min(begun) == committed + 1
    now = tree(again.path / "rounds")
    assert {name: now[name] for name in before} == before, "what was committed is as it was"
    assert all(record["loss"] for record in again.metrics)


@pytest.mark.parametrize("method", REFUSING)
def test_a_method_to_which_an_old_update_means_nothing_refuses_at_the_start(play: Player, method: str) -> None:
    grid = paced(1, 2)
    played = play(grid, mode="async", method=method)
    assert isinstance(played.error, ConfigError)
    assert f"server.mode is async, which {method} does not take: " in str(played.error)
    assert REFUSING[method] in str(played.error)
    assert "use " in str(played.error)
    assert grid.asked == []


def test_a_method_of_elsewhere_says_itself_whether_it_takes_old_updates(
    play: Player, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Elsewhere(Method):
        def aggregator(self, down: Global, server_round: int) -> Aggregator:
            return MeanAggregator(down, "AB")

    monkeypatch.setattr("fedlora_server.aggregation.aggregation.find_method", lambda name: Elsewhere)
    played = play(paced(1, 2), mode="async", method="elsewhere")
    assert isinstance(played.error, ConfigError)
    assert "does not say what an update on an earlier adapter means to it" in str(played.error)
    monkeypatch.setattr(Elsewhere, "refuses_async", "")
    play.soundly(paced(1, 2), mode="async", method="elsewhere", aggregation=None)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mode": "later"}, "server.mode must be one of sync, async"),
        (
            {"mode": "async", "over_selection": 1.3, "devices_per_round": 4},
            "over_selection must be 1 where server.mode",
        ),
        ({"over_selection": 1.3}, "over_selection must be 1 where devices_per_round is 0"),
        ({"over_selection": 0.9, "devices_per_round": 4}, "over_selection must be from 1"),
        ({"buffer_size": 0}, "buffer_size must be at least 1"),
        ({"staleness_exponent": -0.1}, "staleness_exponent must be from 0"),
        ({"staleness_exponent": float("nan")}, "staleness_exponent must be from 0"),
        ({"max_staleness": -1}, "max_staleness must be from 0"),
        ({"max_share": 0.0}, "max_share must be above 0"),
        ({"max_share": 1.1}, "max_share must be above 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ServerConfig(**settings)


def test_an_honest_run_learns_from_the_slow_device_too(play: Player) -> None:
    grid = paced(1, 2, 3, 4, pace=SLOW)
    played = play.soundly(grid, rounds=12, mode="async", evaluate=False)
    assert any("device-4" in record["train_loss"] for record in played.metrics)
    late = [record["staleness"]["most"] for record in played.metrics if "device-4" in record["train_loss"]]
    assert late[0] >= 5


def test_an_outstanding_training_is_given_up_at_the_end(play: Player) -> None:
    grid = StoppingGrid({node: Honest(node) for node in (1, 2, 3, 4)}, {4: 10.0**6})
    play.soundly(grid, rounds=3, mode="async", buffer_size=3)
    assert grid.given_up
    assert grid.clock < 10
