"""A bad device costs only itself, and is counted by its reason."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from fedlora.lora.adapter import Adapter, LoraPair
from fedlora.wire.update import Update, encode_update
from flwr.app import ConfigRecord, Message, RecordDict

from tests.server.bad_devices import BAD, filled, replying
from tests.server.fake_grid import (
    FakeGrid,
    Honest,
    Player,
    assert_same_adapter,
    honest,
    trained,
    training_reply,
    update_of,
)
from tests.server.method_cases import METHOD_NAMES


@pytest.fixture(scope="module")
def sound_runs() -> dict[str, dict[int, Adapter]]:
    """{method: {round: what it committed}}"""
    return {}


@pytest.fixture
def without_the_bad_device(
    play: Player, sound_runs: dict[str, dict[int, Adapter]]
) -> Callable[[str], dict[int, Adapter]]:
    """The adapters of a run of the other devices alone, played once for each method."""

    def adapters(method: str) -> dict[int, Adapter]:
        if method not in sound_runs:
            without = play.soundly(honest(1, 2, 4), method=method)
            sound_runs[method] = {server_round: without.adapter(server_round) for server_round in (1, 2)}
        return sound_runs[method]

    return adapters


@pytest.mark.parametrize(("reason", "change"), BAD.values(), ids=list(BAD))
@pytest.mark.parametrize("method", METHOD_NAMES)
def test_a_run_is_as_if_the_device_were_not_there_that(
    play: Player,
    without_the_bad_device: Callable[[str], dict[int, Adapter]],
    method: str,
    reason: str,
    change: Callable[[Message, Update], Sequence[Message]],
) -> None:
    devices = honest(1, 2, 3, 4) | {3: Honest(3, change)}
    # Only a device that never replies makes the server wait.
    timeout_s = 0.2 if reason == "no-answer" else 30
    played = play.soundly(devices, method=method, min_devices=3, round_timeout_s=timeout_s)
    for server_round, expected in without_the_bad_device(method).items():
        assert_same_adapter(played.adapter(server_round), expected)
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
