"""Runs over a grid in memory: what goes down, what is committed, and how a run ends."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fedlora.config.run import AggregationConfig, RunConfig, ServerConfig
from fedlora.errors import ConfigError, RunError
from fedlora.lora.adapter import Adapter
from fedlora.lora.ranks import joined
from fedlora.peft.directory import read_peft
from fedlora.wire.update import Update
from fedlora_server.run.round_record import RoundRecord
from fedlora_server.run.run_directory import RunDirectory, default_output, open_run
from flwr.app import Message, MessageType

from tests.server.bad_devices import BAD, filled, replying
from tests.server.fake_grid import (
    FINGERPRINT,
    Honest,
    Player,
    assert_same_adapter,
    honest,
    trained,
    update_of,
)
from tests.server.method_cases import METHOD_NAMES
from tests.tiny.checkpoints import tree


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
    assert "0 of 1 device gave" in str(played.error)
    assert played.committed() == []


def test_a_run_with_too_few_devices_ends_before_it_asks_any(play: Player) -> None:
    played = play(honest(1, 2), min_devices=3, round_timeout_s=0.01)
    assert isinstance(played.error, RunError)
    assert "2 devices connected" in str(played.error)
    assert played.grid.asked == []


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


# As Flower draws them: 64 bits, on both sides of 2^63; the two in the middle are one and the same as floats.


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
