"""More devices are asked than a round needs: the first answers count, and nobody waits for the others."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from fedlora_server.exchange import TRAIN, Late, Outstanding, ask
from flwr.app import Error, Message

from tests.server.fake_grid import Honest, Player
from tests.server.paced_grid import PacedGrid, StoppingGrid
from tests.server.test_exchange import echo

SETTINGS: dict[str, Any] = {"rounds": 3, "devices_per_round": 4, "over_selection": 1.3, "evaluate": False}


def paced(count: int, **pace: float) -> PacedGrid:
    return PacedGrid({node: Honest(node) for node in range(1, count + 1)}, {int(n[1:]): p for n, p in pace.items()})


@pytest.mark.parametrize(
    ("wanted", "factor", "asked"), [(4, 1.3, 6), (10, 1.1, 11), (10, 1.3, 13), (10, 1.0, 10), (3, 2.0, 6), (1, 1.01, 2)]
)
def test_so_many_times_more_are_asked_rounded_up(play: Player, wanted: int, factor: float, asked: int) -> None:
    grid = paced(20)
    settings = SETTINGS | {"devices_per_round": wanted, "over_selection": factor, "rounds": 1}
    played = play.soundly(grid, **settings)
    record = played.metrics[1]
    assert len(grid.asked) == asked
    assert (record["devices"], record["replies"]) == (asked, wanted)
    assert record["excluded"] == ({"late": asked - wanted} if asked > wanted else {})


def test_the_first_answers_make_the_round_and_it_ends_with_them(play: Player) -> None:
    grid = paced(6, n1=50, n4=40)
    played = play.soundly(grid, rounds=1, devices_per_round=4, over_selection=1.5, evaluate=False)
    assert grid.clock == 1
    assert set(played.metrics[1]["train_loss"]) == {f"device-{node}" for node in (2, 3, 5, 6)}
    assert played.metrics[1]["excluded"] == {"late": 2}


def test_an_answer_that_is_none_does_not_count_as_one_of_the_first(play: Player) -> None:
    def failing(message: Message, update: Any) -> list[Message]:
        return [Message(Error(2, "device x: no disk"), reply_to=message)]

    grid = PacedGrid({node: Honest(node, failing if node < 3 else None) for node in range(1, 7)}, {6: 9.0})
    played = play.soundly(grid, rounds=1, devices_per_round=3, over_selection=2.0, evaluate=False)
    assert set(played.metrics[1]["train_loss"]) == {"device-3", "device-4", "device-5"}
    assert played.metrics[1]["excluded"] == {"device-error": 2, "late": 1}


def test_late_answers_are_ignored_and_counted_in_the_round_in_which_they_come(play: Player) -> None:
    grid = paced(4, n4=2.5)
    played = play.soundly(grid, rounds=4, devices_per_round=3, over_selection=1.4, evaluate=False)
    assert [record["late_answers"] for record in played.metrics] == [0, 0, 0, 1, 0]
    total = sum((Counter(record["excluded"]) for record in played.metrics), Counter[str]())
    assert total == {"late": 4}
    for record in played.metrics[1:]:
        assert set(record["train_loss"]) == {"device-1", "device-2", "device-3"}
        assert record["replies"] + sum(record["excluded"].values()) == record["devices"] == 4


def test_a_late_answer_changes_nothing_of_what_is_committed(play: Player) -> None:
    settings: dict[str, Any] = {"rounds": 3, "devices_per_round": 3, "over_selection": 1.4, "evaluate": False}
    late, never = paced(4, n4=1.5), paced(4, n4=10.0**6)
    got, expected = play.soundly(late, **settings), play.soundly(never, **settings)
    assert sum(record["late_answers"] for record in got.metrics) > 0
    for module, pair in expected.adapter(3).pairs.items():
        np.testing.assert_array_equal(got.adapter(3).pairs[module].lora_B, pair.lora_B)


def test_sampling_beyond_comes_from_the_seed(play: Player) -> None:
    orders = []
    for seed in (1, 1, 2):
        grid = paced(12)
        play.soundly(grid, seed=seed, **SETTINGS)
        orders.append(grid.asked)
    assert orders[0] == orders[1] != orders[2]


def test_where_there_are_no_more_devices_all_are_asked(play: Player) -> None:
    grid = paced(5)
    played = play.soundly(grid, **SETTINGS)
    assert [record["devices"] for record in played.metrics[1:]] == [5, 5, 5]
    assert [record["replies"] for record in played.metrics[1:]] == [4, 4, 4]


def test_a_simulation_stops_those_whom_nobody_waits_for(play: Player) -> None:
    grid = StoppingGrid({node: Honest(node) for node in range(1, 7)}, {6: 9.0})
    played = play.soundly(grid, rounds=3, devices_per_round=5, over_selection=1.2, evaluate=False)
    assert len(grid.given_up) == 3
    assert [record["late_answers"] for record in played.metrics] == [0, 0, 0, 0]


def test_the_answer_after_the_deadline_is_counted_where_it_comes(play: Player) -> None:
    """A device that slept through a round, on a grid that still brings its answer."""
    held: list[Message] = []

    def sleeping(message: Message, update: Any) -> list[Message]:
        held.append(message)
        if len(held) == 1:
            return []
        return [*Honest(3)(held[0]), *Honest(3)(message)] if len(held) == 2 else list(Honest(3)(message))

    grid = PacedGrid({1: Honest(1), 2: Honest(2), 3: Honest(3, sleeping)})
    played = play.soundly(grid, rounds=3, round_timeout_s=0.3, evaluate=False)
    assert [record["excluded"] for record in played.metrics] == [{}, {"no-answer": 1}, {}, {}]
    assert [record["late_answers"] for record in played.metrics] == [0, 0, 1, 0]


def test_flowers_word_that_a_message_is_gone_is_no_late_answer() -> None:
    held: list[Message] = []
    grid = PacedGrid({1: echo, 2: lambda message: held.append(message) or []})  # type: ignore[func-returns-value]
    late = Late(grid)
    assert [reply.node for reply in ask(grid, [1, 2], TRAIN, b"data", 1, 0.1, 1 << 20, late)] == [1]
    assert late.arrived() == 0
    grid._queue.append(Message(Error(3, "Message Unavailable"), reply_to=held[0]))
    assert late.arrived() == 0
    assert late.arrived() == 0


def test_what_is_outstanding_tells_its_nodes_and_what_is_overdue() -> None:
    grid = PacedGrid({1: echo, 2: lambda message: []})
    out = Outstanding(grid)
    out.send([1, 2], TRAIN, b"data", 4, 0.05)
    first = out.next(float("inf"))
    assert first is not None
    assert (first.node, first.server_round, first.kind) == (1, 4, TRAIN)
    assert out.nodes(TRAIN) == {2}
    while not (overdue := out.overdue()):
        pass
    assert [(reply.node, reply.reason) for reply in overdue] == [(2, "no-answer")]
    assert out.is_empty
    assert out.next(float("inf")) is None
