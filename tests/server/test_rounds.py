"""Runs over a grid in memory: a bad device costs only itself, and what is committed stays."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fedlora.config.run import AggregationConfig, RunConfig, ServerConfig
from fedlora.errors import ConfigError, RunError
from fedlora.lora.adapter import Adapter, LoraPair
from fedlora.lora.ranks import joined
from fedlora.peft.directory import read_peft
from fedlora.wire.update import Update, encode_update
from fedlora_server.run.round_record import RoundRecord, read_record
from fedlora_server.run.run_directory import RunDirectory, default_output, open_run
from flwr.app import ConfigRecord, Error, Message, MessageType, MetricRecord, RecordDict

from tests.server.fake_grid import (
    FINGERPRINT,
    Device,
    FakeGrid,
    Honest,
    Played,
    Player,
    evaluation_reply,
    trained,
    training_reply,
    update_of,
)
from tests.server.method_cases import METHODS
from tests.tiny.checkpoints import tree

METHOD_NAMES = sorted(METHODS)


def honest(*nodes: int) -> dict[int, Device]:
    return {node: Honest(node) for node in nodes}


def assert_same_adapter(got: Adapter, expected: Adapter) -> None:
    """Bit for bit. (A file keeps the modules in an order of its own.)"""
    assert (got.config.rank, got.config.alpha) == (expected.config.rank, expected.config.alpha)
    assert set(got.config.target_modules) == set(expected.config.target_modules)
    assert got.pairs.keys() == expected.pairs.keys()
    for module, pair in expected.pairs.items():
        np.testing.assert_array_equal(got.pairs[module].lora_A, pair.lora_A, err_msg=module)
        np.testing.assert_array_equal(got.pairs[module].lora_B, pair.lora_B, err_msg=module)


def filled(update: Update, value: float) -> Update:
    """The update with every number of its adapter replaced."""
    pairs = {
        module: LoraPair(np.full_like(pair.lora_A, value), np.full_like(pair.lora_B, value))
        for module, pair in update.adapter.pairs.items()
    }
    return dataclasses.replace(update, adapter=Adapter(update.adapter.config, pairs))


def replying(change: Callable[[Update], Update]) -> Callable[[Message, Update], Sequence[Message]]:
    return lambda message, update: [training_reply(message, encode_update(change(update)), "bad")]


def replying_bytes(change: Callable[[bytes], bytes]) -> Callable[[Message, Update], Sequence[Message]]:
    return lambda message, update: [training_reply(message, change(encode_update(update)), "bad")]


def raising(message: Message, update: Update) -> Sequence[Message]:
    raise OSError("the disk is gone")


# How a device is bad, and the reason that it is counted by.
BAD: dict[str, tuple[str, Callable[[Message, Update], Sequence[Message]]]] = {
    "replies an error": ("device-error", lambda message, _: [Message(Error(3, "out of memory"), reply_to=message)]),
    "raises": ("device-error", raising),
    "sends empty records": ("device-error", lambda message, _: [Message(RecordDict(), reply_to=message)]),
    "sends garbage": ("bad-header", replying_bytes(lambda data: bytes(reversed(data)))),
    "sends no bytes": ("bad-header", replying_bytes(lambda data: b"")),
    "sends a truncated update": ("truncated", replying_bytes(lambda data: data[:-1])),
    "sends half a header": ("bad-header", replying_bytes(lambda data: data[:40])),
    "sends a byte too many": ("truncated", replying_bytes(lambda data: data + b"\0")),
    "sends NaN": ("not-finite", replying(lambda update: filled(update, math.nan))),
    "sends infinity": ("not-finite", replying(lambda update: filled(update, math.inf))),
    "sends the round before": (
        "wrong-round",
        replying(lambda update: dataclasses.replace(update, server_round=update.server_round - 1)),
    ),
    "sends another run's": ("wrong-run", replying(lambda update: dataclasses.replace(update, run="other"))),
    "claims 10^12 examples": ("bad-weight", replying(lambda u: dataclasses.replace(u, num_examples=10**12))),
    "never replies": ("no-answer", lambda message, update: []),
}


@pytest.mark.parametrize(("reason", "change"), BAD.values(), ids=list(BAD))
@pytest.mark.parametrize("method", METHOD_NAMES)
def test_a_run_is_as_if_the_device_were_not_there_that(
    play: Player, method: str, reason: str, change: Callable[[Message, Update], Sequence[Message]]
) -> None:
    devices = honest(1, 2, 3, 4) | {3: Honest(3, change)}
    # Only a device that never replies makes the server wait.
    timeout_s = 0.2 if reason == "no-answer" else 30
    played = play.soundly(devices, method=method, min_devices=3, round_timeout_s=timeout_s)
    without = play.soundly(honest(1, 2, 4), method=method)
    for server_round in (1, 2):
        assert_same_adapter(played.adapter(server_round), without.adapter(server_round))
        record = played.metrics[server_round]
        assert (record["devices"], record["replies"], record["excluded"]) == (4, 3, {reason: 1})
        assert record["train_loss"] == {"device-1": 2.0, "device-2": 3.0, "device-4": 5.0}


def test_a_device_that_replies_twice_counts_once_with_its_first_reply(play: Player) -> None:
    def twice(message: Message, update: Update) -> Sequence[Message]:
        other = dataclasses.replace(filled(update, 1.0), num_examples=10**6)
        first, second = (training_reply(message, encode_update(u), "device-3") for u in (update, other))
        return [first, second]

    played = play.soundly(honest(1, 2, 3, 4) | {3: Honest(3, twice)})
    once = play.soundly(honest(1, 2, 3, 4))
    for server_round in (1, 2):
        assert_same_adapter(played.adapter(server_round), once.adapter(server_round))
        assert played.metrics[server_round]["replies"] == 4
        assert played.metrics[server_round]["excluded"] == {}


def test_a_node_that_takes_no_message_is_counted_as_no_answer(play: Player) -> None:
    grid = FakeGrid(honest(1, 2, 3))
    grid.lost = {2}
    played = play.soundly(grid, round_timeout_s=60)  # nobody waits for it
    assert_same_adapter(played.adapter(2), play.soundly(honest(1, 3)).adapter(2))
    assert played.metrics[1]["excluded"] == {"no-answer": 1}


def test_several_bad_devices_are_counted_by_their_reasons(play: Player) -> None:
    devices = honest(1, 2) | {
        3: Honest(3, BAD["sends NaN"][1]),
        4: Honest(4, BAD["sends infinity"][1]),
        5: Honest(5, BAD["raises"][1]),
        6: Honest(6, BAD["sends garbage"][1], from_round=2),
    }
    played = play.soundly(devices)
    assert [record["excluded"] for record in played.metrics] == [
        {},
        {"not-finite": 2, "device-error": 1},
        {"not-finite": 2, "device-error": 1, "bad-header": 1},
    ]
    assert [record["replies"] for record in played.metrics] == [0, 3, 2]


def refusing(reason: str, said: str) -> Callable[[Message, Update], Sequence[Message]]:
    def reply(message: Message, update: Update) -> Sequence[Message]:
        refusal = ConfigRecord({"reason": reason, "said": said})
        return [Message(RecordDict({"device": ConfigRecord({"device": "mine"}), "refusal": refusal}), reply_to=message)]

    return reply


def test_refusals_are_counted_by_the_word_of_each_devices_policy(
    play: Player, caplog: pytest.LogCaptureFixture
) -> None:
    devices = honest(1, 2) | {
        3: Honest(3, refusing("policy-hours", "from 22:00 to 07:00")),
        4: Honest(4, refusing("policy-hours", "from 23:00 to 06:00")),
        5: Honest(5, refusing("policy-battery", "it is at 12%")),
        6: Honest(6, refusing("policy-of-mine", "no")),
    }
    played = play.soundly(devices)
    expected = {"policy-hours": 2, "policy-battery": 1, "device-error": 1}
    assert [record["excluded"] for record in played.metrics] == [{}, expected, expected]
    assert_same_adapter(played.adapter(2), play.soundly(honest(1, 2)).adapter(2))
    assert "from 22:00 to 07:00" in caplog.text


@pytest.mark.parametrize("value", [1e6, 1e15, 1e18])
@pytest.mark.parametrize("method", METHOD_NAMES)
def test_an_update_of_large_numbers_is_counted_out_or_aggregated_but_does_not_end_the_run(
    play: Player, method: str, value: float
) -> None:
    large = replying(lambda update: dataclasses.replace(filled(update, value), num_examples=10**9))
    # Enough devices for the exact mean to pass the smaller side of every module.
    played = play.soundly(honest(*range(1, 9)) | {9: Honest(9, large)}, method=method, rounds=1)
    record = played.metrics[1]
    assert record["replies"] + sum(record["excluded"].values()) == 9
    played.adapter(1).check_finite("round 1")
    assert record["aggregation_error"] is None or math.isfinite(record["aggregation_error"])


def test_below_the_least_devices_the_run_ends_with_the_numbers_and_the_last_adapter_stays(play: Player) -> None:
    devices = honest(1, 2) | {
        3: Honest(3, BAD["sends NaN"][1], from_round=2),
        4: Honest(4, BAD["raises"][1], from_round=2),
    }
    played = play(devices, rounds=3, min_devices=3)
    assert isinstance(played.error, RunError)
    message = str(played.error)
    for part in ("round 2", "2 of 4 devices", "needs 3", "'not-finite': 1", "'device-error': 1", "of round 1 stands"):
        assert part in message
    assert played.committed() == ["0001"]
    assert_same_adapter(played.adapter(1), play.soundly(honest(1, 2, 3, 4), rounds=1).adapter(1))
    assert [record["round"] for record in played.metrics] == [0, 1, 2]
    assert played.metrics[2]["excluded"] == {"not-finite": 1, "device-error": 1}
    assert played.metrics[2]["aggregation_error"] is None


def test_a_first_round_without_a_sound_reply_commits_nothing(play: Player) -> None:
    played = play({1: Honest(1, BAD["sends garbage"][1])})
    assert isinstance(played.error, RunError)
    assert "0 of 1 devices" in str(played.error)
    assert played.committed() == []


def test_a_run_with_too_few_devices_ends_before_it_asks_any(play: Player) -> None:
    played = play(honest(1, 2), min_devices=3, round_timeout_s=0.01)
    assert isinstance(played.error, RunError)
    assert "2 devices are connected" in str(played.error)
    assert played.grid.asked == []


def test_round_0_measures_the_base_and_trains_nobody(play: Player) -> None:
    played = play.soundly(honest(1, 2, 3), rounds=1)
    record = played.metrics[0]
    assert record["loss"] == {"device-1": 2.0, "device-2": 3.0, "device-3": 4.0}
    assert (record["round"], record["devices"], record["replies"], record["bytes_up"]) == (0, 0, 0, 0)
    assert record["aggregation_error"] is None
    assert played.grid.asked[:3] == [("evaluate", node) for node in (1, 2, 3)]
    assert played.committed() == ["0001"]


def test_the_adapter_that_goes_down_first_changes_nothing_and_is_seeded(play: Player) -> None:
    def first_adapter(seed: int) -> Adapter:
        seen: list[Adapter] = []

        def device(message: Message) -> Sequence[Message]:
            seen.append(update_of(message).adapter)
            return Honest(1)(message)

        play.soundly({1: device}, rounds=1, seed=seed)
        return seen[0]

    first = first_adapter(1)
    assert not any(pair.lora_B.any() for pair in first.pairs.values())
    assert_same_adapter(first_adapter(1), first)
    module = next(iter(first.pairs))
    assert not np.array_equal(first_adapter(2).pairs[module].lora_A, first.pairs[module].lora_A)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_each_round_sends_down_what_the_round_before_committed(play: Player, method: str) -> None:
    down: dict[tuple[str, int], Adapter] = {}

    def device(message: Message) -> Sequence[Message]:
        update = update_of(message)
        # stack's own adapter is a new one in every round: what was committed stands beside it.
        whole = update.adapter if update.frozen is None else joined(update.adapter, update.frozen)
        down[message.metadata.message_type, update.server_round] = (
            (update.frozen or whole) if method == "stack" else whole
        )
        return Honest(1)(message)

    played = play.soundly({1: device, 2: Honest(2)}, rounds=3, method=method)
    for server_round in (1, 2, 3):
        assert_same_adapter(down[MessageType.EVALUATE, server_round], played.adapter(server_round))
    for server_round in (1, 2):
        assert_same_adapter(down[MessageType.TRAIN, server_round + 1], played.adapter(server_round))


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_the_committed_adapter_is_the_methods_and_its_error_is_the_dense_one(play: Player, method: str) -> None:
    sent: list[Update] = []

    def device(message: Message) -> Sequence[Message]:
        if message.metadata.message_type == MessageType.TRAIN:
            sent.append(trained(message.metadata.dst_node_id, update_of(message)))
        return Honest(message.metadata.dst_node_id)(message)

    played = play.soundly(dict.fromkeys((1, 2, 3), device), rounds=1, method=method)
    committed = played.adapter(1)
    total = sum(update.num_examples for update in sent)
    squared_error = squared_norm = 0.0
    for module in committed.pairs:
        mean = sum(u.num_examples / total * u.adapter.product(module).dense().astype(np.float64) for u in sent)
        squared_error += float(np.sum((committed.product(module).dense() - mean) ** 2))
        squared_norm += float(np.sum(np.square(mean)))
    expected = None if method == "fedsa" else pytest.approx(math.sqrt(squared_error / squared_norm), rel=1e-4, abs=1e-6)
    assert played.metrics[1]["aggregation_error"] == expected


def test_the_committed_directory_names_its_base(play: Player) -> None:
    played = play.soundly(honest(1), rounds=1)
    content = read_peft(RunDirectory.adapter_of(played.path, 1))
    assert content.base_fingerprint == FINGERPRINT


@pytest.mark.parametrize("codec", ["f32", "f16"])
@pytest.mark.parametrize("evaluate", [True, False])
def test_the_bytes_are_those_that_were_sent(play: Player, evaluate: bool, codec: str) -> None:
    devices = honest(1, 2, 3) | {3: Honest(3, BAD["sends a truncated update"][1])}
    played = play.soundly(devices, evaluate=evaluate, codec=codec)
    assert sum(record["bytes_down"] for record in played.metrics) == played.grid.bytes_down > 0
    assert sum(record["bytes_up"] for record in played.metrics) == played.grid.bytes_up > 0


def test_without_evaluation_no_device_is_asked_to_evaluate(play: Player) -> None:
    played = play.soundly(honest(1, 2), evaluate=False)
    assert {kind for kind, _ in played.grid.asked} == {"train"}
    assert [record["loss"] for record in played.metrics] == [{}, {}, {}]


def asked_in_rounds(played: Played, each: int) -> list[list[int]]:
    nodes = [node for kind, node in played.grid.asked if kind == "train"]
    return [nodes[start : start + each] for start in range(0, len(nodes), each)]


def test_sampling_is_seeded_and_repeatable(play: Player) -> None:
    settings: dict[str, Any] = {"rounds": 6, "devices_per_round": 2, "evaluate": False}
    nodes = range(1, 9)
    first = asked_in_rounds(play.soundly(honest(*nodes), seed=1, **settings), 2)
    again = asked_in_rounds(play.soundly(honest(*nodes), seed=1, **settings), 2)
    other = asked_in_rounds(play.soundly(honest(*nodes), seed=2, **settings), 2)
    assert first == again
    assert first != other
    assert len(first) == 6
    assert all(len(set(pair)) == 2 for pair in first)
    assert len({tuple(pair) for pair in first}) > 1, "the rounds take different devices"


def test_a_sampled_round_measures_every_device(play: Player) -> None:
    played = play.soundly(honest(1, 2, 3, 4), rounds=1, devices_per_round=2)
    assert played.metrics[1]["devices"] == 2
    assert sorted(played.metrics[1]["loss"]) == [f"device-{node}" for node in (1, 2, 3, 4)]


# As Flower draws them: 64 bits, on both sides of 2^63; the two in the middle are one and the same as floats.
DRAWN_IDS = (17, 4_611_686_018_427_387_905, 2**63 + 1, 2**63 + 2, 18_446_744_073_709_551_557)


def test_sampling_asks_nodes_by_the_ids_that_flower_drew(play: Player) -> None:
    settings: dict[str, Any] = {"rounds": 5, "devices_per_round": 2}
    played = play.soundly(honest(*DRAWN_IDS), **settings)
    asked = asked_in_rounds(played, 2)
    assert {node for pair in asked for node in pair} <= set(DRAWN_IDS)
    assert len({tuple(pair) for pair in asked}) > 1
    assert {tuple(record["excluded"]) for record in played.metrics} == {()}
    assert all(len(record["loss"]) == len(DRAWN_IDS) for record in played.metrics)


def test_a_run_of_such_nodes_goes_on_under_the_same_names(play: Player) -> None:
    settings: dict[str, Any] = {"devices_per_round": 2}
    whole = play.soundly(honest(*DRAWN_IDS), rounds=4, **settings)
    half = play.soundly(honest(*DRAWN_IDS), rounds=2, **settings)
    rest = play(honest(*DRAWN_IDS), goes_on=half, rounds=4, **settings)
    assert rest.error is None
    assert [record["loss"] for record in rest.metrics] == [record["loss"] for record in whole.metrics]
    assert_same_adapter(rest.adapter(4), whole.adapter(4))


def test_sampling_by_position_takes_those_that_sampling_by_id_took(play: Player) -> None:
    nodes, settings = range(1, 9), {"rounds": 6, "devices_per_round": 3, "evaluate": False}
    played = play.soundly(honest(*nodes), seed=5, **settings)
    expected = [
        sorted(np.random.default_rng([5, server_round]).choice(list(nodes), 3, replace=False).tolist())
        for server_round in range(1, 7)
    ]
    assert asked_in_rounds(played, 3) == expected


@pytest.mark.parametrize("wanted", [0, 3, 50])
def test_sampling_as_many_as_there_are_takes_all(play: Player, wanted: int) -> None:
    played = play.soundly(honest(1, 2, 3), rounds=1, devices_per_round=wanted, evaluate=False)
    assert asked_in_rounds(played, 3) == [[1, 2, 3]]


def test_a_device_that_joins_between_rounds_takes_part_in_the_next(play: Player) -> None:
    grid = FakeGrid(honest(1, 2))

    def host(message: Message) -> Sequence[Message]:
        if message.metadata.message_type == MessageType.TRAIN:
            grid.devices[5] = Honest(5)
        return Honest(1)(message)

    grid.devices[1] = host
    played = play.soundly(grid)
    assert [record["devices"] for record in played.metrics] == [0, 2, 3]


def losses_of_bad_evaluations() -> Mapping[str, Callable[[Message], Sequence[Message]]]:
    def broken(message: Message) -> Sequence[Message]:
        raise ValueError("no text")

    return {
        "raises": broken,
        "replies an error": lambda message: [Message(Error(3, "no text"), reply_to=message)],
        "sends empty records": lambda message: [Message(RecordDict(), reply_to=message)],
        "measures a list": lambda message: [
            Message(
                RecordDict(
                    {"metrics": MetricRecord({"loss": [1.0, 2.0]}), "device": ConfigRecord({"device": "device-2"})}
                ),
                reply_to=message,
            )
        ],
        "measures NaN": lambda message: [evaluation_reply(message, math.nan, "device-2")],
        "measures infinity": lambda message: [evaluation_reply(message, math.inf, "device-2")],
        "measures what has no square": lambda message: [evaluation_reply(message, 1e200, "device-2")],
        "measures what has no sum": lambda message: [evaluation_reply(message, 1.7e308, "device-2")],
        "measures less than nothing": lambda message: [evaluation_reply(message, -3.0, "device-2")],
    }


@pytest.mark.parametrize("evaluation", losses_of_bad_evaluations().values(), ids=list(losses_of_bad_evaluations()))
def test_an_evaluation_leaves_out_the_device_that(
    play: Player, evaluation: Callable[[Message], Sequence[Message]]
) -> None:
    def device(message: Message) -> Sequence[Message]:
        return (evaluation if message.metadata.message_type == MessageType.EVALUATE else Honest(2))(message)

    played = play.soundly({1: Honest(1), 2: device, 3: Honest(3)})
    assert [sorted(record["loss"]) for record in played.metrics] == [["device-1", "device-3"]] * 3
    assert [record["replies"] for record in played.metrics] == [0, 3, 3]


def test_a_mean_over_fewer_devices_says_over_how_many(play: Player, caplog: pytest.LogCaptureFixture) -> None:
    def device(message: Message) -> Sequence[Message]:
        if message.metadata.message_type == MessageType.EVALUATE:
            return [Message(Error(3, "device two: nothing is held out"), reply_to=message)]
        return Honest(2, name="two")(message)

    with caplog.at_level("INFO", "fedlora.server"):
        played = play.soundly({1: Honest(1), 2: device})
    assert [record["measured_of"] for record in played.metrics] == [2, 2, 2]
    assert caplog.text.count("over 1 of 2 devices") == 3
    assert "device two was not measured: nothing is held out" in caplog.text


@pytest.mark.parametrize("told", [1e200, 1.7e308, -1.0])
def test_a_loss_of_training_that_is_none_is_not_kept(play: Player, told: float) -> None:
    def lying(message: Message, update: Update) -> Sequence[Message]:
        changed = dataclasses.replace(update, metrics={"train_loss": told})
        return [training_reply(message, encode_update(changed), "device-2")]

    played = play.soundly({1: Honest(1), 2: Honest(2, lying)})
    assert all("device-2" not in record["train_loss"] for record in played.metrics)
    assert [record["replies"] for record in played.metrics] == [0, 2, 2]


@pytest.mark.parametrize("told", [3.0, -1.0, 1e300, None])
def test_what_a_device_says_of_its_examples_is_kept_if_it_can_be(play: Player, told: float | None) -> None:
    def with_counts(message: Message, update: Update) -> Sequence[Message]:
        metrics = {} if told is None else {"examples": told, "cut_examples": told, "left_out_examples": told}
        return [training_reply(message, encode_update(dataclasses.replace(update, metrics=metrics)), "device-2")]

    played = play.soundly({1: Honest(1), 2: Honest(2, with_counts)})
    for name in ("examples", "cut_examples", "left_out_examples"):
        assert [record[name] for record in played.metrics[1:]] == [{"device-2": 3} if told == 3.0 else {}] * 2


def test_a_record_of_an_earlier_version_has_no_counts(play: Player) -> None:
    played = play.soundly(honest(1), rounds=1)
    file = played.path / "rounds" / "0001" / "round.json"
    there = json.loads(file.read_text())
    for name in (
        "examples",
        "cut_examples",
        "left_out_examples",
        "held_out_examples",
        "held_out_left_out",
        "measured_of",
    ):
        del there[name]
    file.write_text(json.dumps(there))
    assert read_record(file).examples == {}


def refused(constant: str) -> float:
    raise AssertionError(f"{constant} is not JSON: other readers of metrics.jsonl refuse it")


def test_every_line_of_the_metrics_is_json_with_the_same_keys(play: Player) -> None:
    def without_metrics(message: Message, update: Update) -> Sequence[Message]:
        data = encode_update(dataclasses.replace(update, metrics={}))
        return [training_reply(message, data, "device-2")]

    played = play.soundly({1: Honest(1), 2: Honest(2, without_metrics)})
    lines = (played.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line, parse_constant=refused) for line in lines]
    assert [record["round"] for record in records] == [0, 1, 2]
    assert len({tuple(record) for record in records}) == 1


def test_two_devices_of_one_name_are_both_measured(play: Player) -> None:
    # The data set `files` names a device after its folder, and every device may keep its text in the same one.
    played = play.soundly({1: Honest(1, name="data"), 2: Honest(2, name="data"), 3: Honest(3, name="other")})
    for record in played.metrics:
        assert len(record["loss"]) == 3


def test_a_run_ends_with_its_configuration_beside_it(play: Player) -> None:
    played = play.soundly(honest(1), rounds=1, seed=77)
    config = RunConfig.from_flat(json.loads((played.path / "config.json").read_text(encoding="utf-8")), "config.json")
    assert (config.seed, config.server.rounds, config.lora.rank) == (77, 1, 2)


def test_a_directory_that_holds_a_run_is_refused_and_left_alone(play: Player) -> None:
    played = play.soundly(honest(1), rounds=1)
    before = tree(played.path)
    with (
        pytest.raises(ConfigError, match=r"holds a run already; name another output, or go on .*server\.resume = true"),
        open_run(played.path, RunConfig(seed=9), play.base, "run"),
    ):
        raise AssertionError("the block must not run")
    assert tree(played.path) == before


def test_a_round_is_not_committed_twice(play: Player, tmp_path: Path) -> None:
    adapter = play.soundly(honest(1), rounds=1).adapter(1)
    with open_run(tmp_path / "other", RunConfig(), play.base, "run") as directory:
        directory.commit(adapter, {}, RoundRecord(1))
        before = tree(directory.path)
        with pytest.raises(RunError, match="exists already"):
            directory.commit(adapter, {}, RoundRecord(1))
    assert tree(directory.path) == before


def test_a_commit_that_fails_leaves_no_round(play: Player, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedlora.peft.directory.write_in_order", full)
    played = play(honest(1), rounds=1)
    assert isinstance(played.error, RunError)
    for part in ("round 1 cannot be committed: No space left on device", "round 0 stands", "server.resume = true"):
        assert part in str(played.error)
    assert played.committed() == []
    assert [record["round"] for record in played.metrics] == [0, 1]


def test_an_unknown_method_is_refused_before_any_device_is_asked(play: Player) -> None:
    played = play(honest(1), method="fedavgg")
    assert isinstance(played.error, ConfigError)
    assert "did you mean 'fedavg'" in str(played.error)
    assert played.grid.asked == []


def test_a_run_without_an_output_goes_below_fedlora_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("FEDLORA_HOME", str(home))
    assert default_output("demo", "00ff") == home / "runs" / "demo-00ff"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_devices": 5, "devices_per_round": 3}, "min_devices must be at most devices_per_round"),
        ({"round_timeout_s": 0.0}, "round_timeout_s must be positive"),
        ({"rounds": 0}, "rounds must be at least 1"),
    ],
)
def test_a_server_configuration_that_cannot_work_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ServerConfig(**settings)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_a_large_adapter_that_f16_cannot_hold_goes_down_in_f32(play: Player, method: str) -> None:
    large = replying(lambda update: dataclasses.replace(filled(update, 999.0), num_examples=10**9))
    believing = AggregationConfig(robust="none", max_weight=0.0)
    devices = honest(1, 2, 3) | {4: Honest(4, large)}
    played = play.soundly(devices, method=method, codec="f16", rounds=3, aggregation=believing)
    assert [record["replies"] for record in played.metrics] == [0, 4, 4, 4]


def test_three_devices_of_names_that_run_into_each_other_are_all_measured(play: Player) -> None:
    played = play.soundly({1: Honest(1, name="x (3)"), 2: Honest(2, name="x"), 3: Honest(3, name="x")})
    for record in played.metrics:
        assert len(record["loss"]) == 3


def copying(original: int) -> Callable[[Message, Update], Sequence[Message]]:
    """A device that sends what another one trained, under its own name and number of examples."""

    def change(message: Message, update: Update) -> Sequence[Message]:
        copied = trained(original, update_of(message))
        return [training_reply(message, encode_update(dataclasses.replace(copied, num_examples=77)), "the copy")]

    return change


def test_the_copy_of_an_update_counts_once(play: Player) -> None:
    devices = honest(1, 2, 3, 4)
    alone = play.soundly(devices, rounds=1)
    together = play.soundly({**devices, 5: Honest(5, change=copying(2))}, rounds=1)
    assert together.metrics[1]["excluded"] == {"duplicate": 1}
    assert together.metrics[1]["replies"] == 4
    assert_same_adapter(together.adapter(1), alone.adapter(1))


def test_devices_that_change_nothing_are_no_copies_of_each_other(play: Player) -> None:
    def unchanged(message: Message, update: Update) -> Sequence[Message]:
        same = dataclasses.replace(update, adapter=update_of(message).adapter)
        return [training_reply(message, encode_update(same), str(update.num_examples))]

    played = play.soundly({node: Honest(node, change=unchanged) for node in (1, 2, 3)}, rounds=1)
    assert (played.metrics[1]["replies"], played.metrics[1]["excluded"]) == (3, {})


def giant(message: Message, update: Update) -> Sequence[Message]:
    pairs = {m: LoraPair(p.lora_A, -50 * p.lora_B) for m, p in update.adapter.pairs.items()}
    update = dataclasses.replace(update, adapter=Adapter(update.adapter.config, pairs), num_examples=10**9)
    return [training_reply(message, encode_update(update), "giant")]


def test_by_default_a_giant_is_left_out_and_counted_by_the_rule(play: Player) -> None:
    devices = honest(*range(1, 8))
    alone, attacked = play.soundly(devices, rounds=2), play.soundly({**devices, 9: Honest(9, change=giant)}, rounds=2)
    for server_round in (1, 2):
        assert attacked.metrics[server_round]["excluded"] == {"norm-bound": 1}
        assert attacked.metrics[server_round]["replies"] == 8  # all were sound
    for module, pair in alone.adapter(1).pairs.items():
        np.testing.assert_array_equal(attacked.adapter(1).pairs[module].lora_B, pair.lora_B)


def test_a_reply_that_is_larger_than_any_can_be_costs_only_its_device(play: Player) -> None:
    def endless(message: Message, update: Update) -> Sequence[Message]:
        return [training_reply(message, bytes(2 << 20), "endless")]

    played = play.soundly({**honest(1, 2), 3: Honest(3, change=endless)}, rounds=1)
    assert played.metrics[1]["excluded"] == {"oversized": 1}
    assert played.metrics[1]["bytes_up"] < 10_000
