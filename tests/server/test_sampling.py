"""Which devices a round asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, MessageType

from tests.server.fake_grid import (
    FakeGrid,
    Honest,
    Played,
    Player,
    assert_same_adapter,
    honest,
)

DRAWN_IDS = (17, 4_611_686_018_427_387_905, 2**63 + 1, 2**63 + 2, 18_446_744_073_709_551_557)


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
