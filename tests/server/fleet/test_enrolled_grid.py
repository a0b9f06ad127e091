"""A fleet's devices have the names of their enrolment, whatever they say; whoever is revoked is heard no more."""

from __future__ import annotations

from pathlib import Path

import pytest
from fedlora_server.exchange import TRAIN, ask
from fedlora_server.fleet.enrolled_grid import EnrolledGrid
from fedlora_server.fleet.roll import Roll
from flwr.app import Error, Message

from tests.server.fake_grid import FakeGrid, training_reply

FIRST, SECOND, THIRD = 7, (1 << 63) + 11, 13


class Book(Roll):
    """A roll that a test writes."""

    def __init__(self, **nodes: int) -> None:
        self.names = {node: name for name, node in nodes.items()}

    def name_of(self, node: int) -> str | None:
        return self.names.get(node)


def honest(name: str):  # type: ignore[no-untyped-def]
    return lambda message: [training_reply(message, b"numbers", name)]


def fails(message: Message) -> list[Message]:
    return [Message(Error(1, "device kitchen: no data"), reply_to=message)]


def heard(grid: EnrolledGrid) -> dict[str, str]:
    """{name: reason, or what it sent} of everybody who is asked."""
    replies = ask(grid, sorted(grid.get_node_ids()), TRAIN, b"down", 1, 5.0)
    return {reply.device: reply.reason if reply.error else reply.data.decode() for reply in replies}


def test_a_device_has_the_name_that_its_key_was_enrolled_under() -> None:
    inner = FakeGrid({FIRST: honest("cellar"), SECOND: honest("cellar")})
    assert heard(EnrolledGrid(inner, Book(kitchen=FIRST, cellar=SECOND))) == {"kitchen": "numbers", "cellar": "numbers"}


def test_an_error_has_the_name_of_its_device_and_not_the_one_that_it_tells() -> None:
    inner = FakeGrid({FIRST: fails, SECOND: lambda message: 1 / 0})  # type: ignore[dict-item, return-value]
    grid = EnrolledGrid(inner, Book(cellar=FIRST, attic=SECOND))
    assert heard(grid) == {"cellar": "device-error", "attic": "device-error"}


def test_a_node_that_is_not_enrolled_is_not_asked() -> None:
    inner = FakeGrid({FIRST: honest("a"), SECOND: honest("b"), THIRD: honest("c")})
    assert heard(EnrolledGrid(inner, Book(kitchen=SECOND))) == {"kitchen": "numbers"}
    assert inner.asked == [("train", SECOND)]


def test_the_answer_of_a_device_that_is_revoked_meanwhile_does_not_count() -> None:
    book = Book(kitchen=FIRST, cellar=SECOND)

    def answers_too_late(message: Message) -> list[Message]:
        del book.names[FIRST]
        return [training_reply(message, b"numbers", "kitchen")]

    grid = EnrolledGrid(FakeGrid({FIRST: answers_too_late, SECOND: honest("x")}), book)
    assert heard(grid) == {str(FIRST): "revoked", "cellar": "numbers"}
    assert heard(grid) == {"cellar": "numbers"}


def test_a_node_that_takes_no_message_is_left_out() -> None:
    inner = FakeGrid({FIRST: honest("a"), SECOND: honest("b")})
    inner.lost = {FIRST}
    assert heard(EnrolledGrid(inner, Book(kitchen=FIRST, cellar=SECOND))) == {"cellar": "numbers"}


def test_what_bounds_replies_finds_flowers_client_through_it() -> None:
    inner = FakeGrid({})
    grid = EnrolledGrid(inner, Book())
    inner._client = "flower's"  # type: ignore[attr-defined]
    assert grid._client == "flower's"
    grid._client = "a meter"
    assert inner._client == "a meter"  # type: ignore[attr-defined]
    assert grid.holds_replies
    with pytest.raises(AttributeError):
        _ = grid.nothing


def test_a_roll_of_a_file_serves_a_grid(tmp_path: Path) -> None:
    path = tmp_path / "devices.json"
    path.write_text('{"format": "fedlora-devices-1", "devices": []}')
    assert heard(EnrolledGrid(FakeGrid({FIRST: honest("a")}), Roll(path))) == {}
