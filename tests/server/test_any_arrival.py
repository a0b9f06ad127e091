"""What a run commits and records does not depend on the order in which its devices answer, its times apart."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from fedlora.wire.update import Update, encode_update
from flwr.app import Message

from tests.server.fake_grid import Device, FakeGrid, Honest, Played, Player, trained, training_reply, update_of
from tests.server.method_cases import METHODS

Order = Callable[[list[Message]], list[Message]]


def mixed(messages: list[Message]) -> list[Message]:
    return random.Random(4).sample(messages, len(messages))


def turned(messages: list[Message]) -> list[Message]:
    return messages[::-1]


ORDERS: tuple[Order, ...] = (list, turned, mixed)


def copying(original: int, examples: int) -> Callable[[Message, Update], Sequence[Message]]:
    """A device that sends what another one trained, with a number of examples of its own."""

    def change(message: Message, update: Update) -> Sequence[Message]:
        copied = dataclasses.replace(trained(original, update_of(message)), num_examples=examples)
        return [training_reply(message, encode_update(copied), f"copy-{examples}")]

    return change


def left(played: Played, rounds: int = 2) -> tuple[list[bytes], list[dict[str, Any]]]:
    """The bits of what was committed, and the records without times."""
    adapters = [played.adapter(number) for number in range(1, rounds + 1)]
    numbers = [a.tobytes() for each in adapters for p in each.pairs.values() for a in (p.lora_A, p.lora_B)]
    return numbers, [{k: v for k, v in r.items() if k not in ("seconds", "server_s", "costs")} for r in played.metrics]


def in_each_order(play: Player, devices: dict[int, Device], **server: Any) -> list[tuple[list[bytes], list[str]]]:
    results = []
    for order in ORDERS:
        numbers, records = left(play.soundly(FakeGrid(devices, order), **server))
        results.append((numbers, [repr(record) for record in records]))  # with the order of what they hold
    return results


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_order_of_arrival_changes_no_bit_and_no_record(play: Player, method: str) -> None:
    results = in_each_order(play, {node: Honest(node) for node in range(1, 7)}, method=method)
    assert results[0] == results[1] == results[2]


def test_of_two_devices_with_one_name_the_one_of_the_lower_node_has_it(play: Player) -> None:
    devices: dict[int, Device] = {node: Honest(node, name="laptop" if node in (2, 4) else "") for node in range(1, 6)}
    results = in_each_order(play, devices)
    assert results[0] == results[1] == results[2]
    assert "'laptop': 2" in results[0][1][0]
    assert "'laptop (4)': 4" in results[0][1][0]


@pytest.mark.parametrize("method", ["fedavg", "svd", "hetlora", "fedex"])
def test_of_two_equal_updates_that_of_the_lower_node_counts(play: Player, method: str) -> None:
    devices: dict[int, Device] = {node: Honest(node) for node in (1, 3, 4, 5)}
    devices |= {2: Honest(2, change=copying(4, 900)), 6: Honest(6, change=copying(3, 7))}
    results = in_each_order(play, devices, method=method)
    assert results[0] == results[1] == results[2]
    first = play.soundly(FakeGrid(devices, turned), method=method).metrics[1]
    assert (first["replies"], first["excluded"]) == (4, {"duplicate": 2})
    assert sorted(first["train_loss"]) == ["device-1", "device-2", "device-3", "device-5"]
