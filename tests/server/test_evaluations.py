"""What devices say of their losses and examples, as a round records it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence

import pytest
from fedlora.wire.update import Update, encode_update
from fedlora_server.run.round_record import read_record
from flwr.app import ConfigRecord, Error, Message, MessageType, MetricRecord, RecordDict

from tests.server.fake_grid import (
    Honest,
    Player,
    evaluation_reply,
    honest,
    training_reply,
)


def test_round_0_measures_the_base_and_trains_nobody(play: Player) -> None:
    played = play.soundly(honest(1, 2, 3), rounds=1)
    record = played.metrics[0]
    assert record["loss"] == {"device-1": 2.0, "device-2": 3.0, "device-3": 4.0}
    assert (record["round"], record["devices"], record["replies"], record["bytes_up"]) == (0, 0, 0, 0)
    assert record["aggregation_error"] is None
    assert played.grid.asked[:3] == [("evaluate", node) for node in (1, 2, 3)]
    assert played.committed() == ["0001"]


def test_without_evaluation_no_device_is_asked_to_evaluate(play: Player) -> None:
    played = play.soundly(honest(1, 2), evaluate=False)
    assert {kind for kind, _ in played.grid.asked} == {"train"}
    assert [record["loss"] for record in played.metrics] == [{}, {}, {}]


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


def test_three_devices_of_names_that_run_into_each_other_are_all_measured(play: Player) -> None:
    played = play.soundly({1: Honest(1, name="x (3)"), 2: Honest(2, name="x"), 3: Honest(3, name="x")})
    for record in played.metrics:
        assert len(record["loss"]) == 3
