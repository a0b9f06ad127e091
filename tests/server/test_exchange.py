"""Messages go out once to each node; every reply comes back once, until all came or the time is up."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence

import pytest
from fedlora.errors import RunError
from fedlora.wire.refusal import POLICY_REASONS
from fedlora_server import exchange
from fedlora_server.exchange import EVALUATE, TRAIN, ask, connected_nodes
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo

from tests.server.fake_grid import Device, FakeGrid, evaluation_reply, training_reply


def echo(message: Message) -> Sequence[Message]:
    """Send back what came, with the node's number before it."""
    node = message.metadata.dst_node_id
    data = message.content.array_records["update"]["update"].data
    return [training_reply(message, f"{node}:".encode() + data, f"device-{node}")]


def silent(message: Message) -> Sequence[Message]:
    return []


def content_of(**records: ArrayRecord | ConfigRecord | MetricRecord) -> RecordDict:
    return RecordDict(dict(records))


def test_ask_yields_the_reply_of_every_node_once() -> None:
    grid = FakeGrid(dict.fromkeys((3, 5, 8), echo))
    replies = list(ask(grid, [3, 5, 8], TRAIN, b"data", 1, 30))
    assert {reply.node: reply.data for reply in replies} == {3: b"3:data", 5: b"5:data", 8: b"8:data"}
    assert sorted(reply.device for reply in replies) == ["device-3", "device-5", "device-8"]
    assert len(replies) == 3
    assert sorted(grid.asked) == [("train", 3), ("train", 5), ("train", 8)]


def test_ask_sends_to_no_other_node() -> None:
    grid = FakeGrid(dict.fromkeys((3, 5, 8), echo))
    assert [reply.node for reply in ask(grid, [5], TRAIN, b"data", 1, 30)] == [5]
    assert grid.asked == [("train", 5)]


def test_ask_of_no_nodes_yields_nothing() -> None:
    assert list(ask(FakeGrid({1: echo}), [], TRAIN, b"data", 1, 30)) == []


def test_ask_yields_replies_as_they_arrive_in_any_order() -> None:
    nodes = list(range(1, 21))
    grid = FakeGrid(dict.fromkeys(nodes, echo), order=lambda replies: random.Random(2).sample(replies, len(replies)))
    arrived = [reply.node for reply in ask(grid, nodes, TRAIN, b"data", 1, 30)]
    assert sorted(arrived) == nodes
    assert arrived != nodes


def test_ask_yields_the_first_of_two_replies_to_one_message() -> None:
    def twice(message: Message) -> Sequence[Message]:
        return [training_reply(message, b"first", "a"), training_reply(message, b"second", "a")]

    replies = list(ask(FakeGrid({1: twice, 2: echo}), [1, 2], TRAIN, b"data", 1, 30))
    assert [reply.data for reply in replies] == [b"first", b"2:data"]


def test_ask_stops_at_its_deadline_with_the_replies_that_came() -> None:
    grid = FakeGrid({1: echo, 2: silent, 3: echo})
    assert [reply.node for reply in ask(grid, [1, 2, 3], TRAIN, b"data", 1, 0.2)] == [1, 3]


def test_ask_after_its_deadline_takes_no_reply_to_an_earlier_message() -> None:
    held: list[Message] = []

    def late(message: Message) -> Sequence[Message]:
        """Reply only when the next message comes, and then the earlier one too."""
        held.append(training_reply(message, f"reply {len(held)}".encode(), "late"))
        return held if len(held) > 1 else []

    grid = FakeGrid({1: late})
    assert list(ask(grid, [1], TRAIN, b"data", 1, 0.1)) == []
    assert [reply.data for reply in ask(grid, [1], TRAIN, b"data", 2, 30)] == [b"reply 1"]


def test_ask_takes_no_second_reply_to_an_earlier_message() -> None:
    sent: list[Message] = []

    def repeating(message: Message) -> Sequence[Message]:
        """Reply, and repeat the replies to all earlier messages."""
        sent.append(training_reply(message, f"reply {len(sent)}".encode(), "twice"))
        return sent

    grid = FakeGrid({1: repeating})
    for server_round in (1, 2, 3):
        replies = list(ask(grid, [1], TRAIN, b"data", server_round, 30))
        assert [reply.data for reply in replies] == [f"reply {server_round - 1}".encode()]


def test_what_a_device_says_of_itself_is_fit_for_a_log() -> None:
    grid = FakeGrid({
        1: lambda message: [training_reply(message, b"", "a\n\x1b[31mb")],
        2: lambda message: [Message(Error(3, "one\ntwo" + "x" * 1000), reply_to=message)],
    })  # fmt: skip
    name, error = ask(grid, [1, 2], TRAIN, b"data", 1, 30)
    assert name.device == r"a\n\x1b[31mb"
    assert error.error.startswith(r"one\ntwoxxx")
    assert len(error.error) < 520


def test_a_node_that_takes_no_message_costs_only_itself() -> None:
    # Flower: "The returned list has `None` for those messages", and an id of None cannot be pulled.
    grid = FakeGrid({1: echo, 2: echo, 3: echo})
    grid.lost = {2}
    assert sorted(reply.node for reply in ask(grid, [1, 2, 3], TRAIN, b"data", 1, 0.3) if not reply.error) == [1, 3]


def test_an_error_is_told_by_the_message_that_it_replies_to_not_by_its_source() -> None:
    def broken(message: Message) -> Sequence[Message]:
        raise ValueError("no disk")

    (reply,) = ask(FakeGrid({7: broken}), [7], TRAIN, b"data", 1, 30)
    assert (reply.node, reply.device, reply.data) == (7, "7", b"")
    assert "no disk" in reply.error


@pytest.mark.parametrize(
    ("said", "name", "error"),
    [
        ("device kitchen: no text: give it some", "kitchen", "no text: give it some"),
        ("device \x1b: no text", r"\x1b", "no text"),
        ("no device here: no text", "7", "no device here: no text"),
        (f"device {'x' * 65}: no text", "7", f"device {'x' * 65}: no text"),
    ],
)
def test_an_error_is_told_under_the_name_that_its_device_gives_itself(said: str, name: str, error: str) -> None:
    grid = FakeGrid({7: lambda message: [Message(Error(3, said), reply_to=message)]})
    (reply,) = ask(grid, [7], TRAIN, b"data", 1, 30)
    assert (reply.device, reply.error) == (name, error)


def test_an_error_without_a_reason_gives_its_code() -> None:
    (reply,) = ask(FakeGrid({7: lambda m: [Message(Error(3), reply_to=m)]}), [7], TRAIN, b"data", 1, 30)
    assert reply.error == "error 3"


def test_the_reply_to_an_evaluation_is_its_metrics() -> None:
    grid = FakeGrid({1: lambda message: [evaluation_reply(message, 1.5, "kitchen")]})
    (reply,) = ask(grid, [1], EVALUATE, b"data", 1, 30)
    assert (reply.device, reply.metrics, reply.error) == ("kitchen", {"loss": 1.5}, "")


def test_metrics_that_are_lists_are_left_out() -> None:
    content = content_of(device=NAME, metrics=MetricRecord({"loss": [1.0, 2.0], "tokens": 7}))
    grid = FakeGrid({1: lambda message: [Message(content, reply_to=message)]})
    (reply,) = ask(grid, [1], EVALUATE, b"data", 1, 30)
    assert reply.metrics == {"tokens": 7.0}


def test_a_device_that_gives_itself_an_endless_name_gets_its_beginning() -> None:
    grid = FakeGrid({1: lambda message: [training_reply(message, b"data", "x" * 10_000)]})
    (reply,) = ask(grid, [1], TRAIN, b"data", 1, 30)
    assert reply.device == "x" * 64


@pytest.mark.parametrize("kind", [TRAIN, EVALUATE])
@pytest.mark.parametrize("reason", POLICY_REASONS)
def test_a_refusal_is_told_by_the_word_of_the_devices_policy(reason: str, kind: str) -> None:
    content = content_of(device=NAME, refusal=ConfigRecord({"reason": reason, "said": "not\nnow"}))
    grid = FakeGrid({1: lambda message: [Message(content, reply_to=message)]})
    (reply,) = ask(grid, [1], kind, b"data", 1, 30)
    assert (reply.device, reply.reason, reply.error) == ("kitchen", reason, r"not\nnow")
    assert (reply.data, reply.metrics) == (b"", None)


UNKNOWN_REASONS: list[ConfigRecord] = [
    ConfigRecord({"reason": "policy-weather", "said": "it rains"}),
    ConfigRecord({"reason": "no-answer", "said": "a word of the server's own"}),
    ConfigRecord({"reason": "policy-rank\n", "said": "nearly known"}),
    ConfigRecord({"reason": "x" * 100_000, "said": "x" * 100_000}),
    ConfigRecord({"reason": ["policy-rank"], "said": ["a list"]}),
    ConfigRecord({"reason": b"policy-rank", "said": 1.5}),
    ConfigRecord({"reason": 7}),
    ConfigRecord({}),
]


@pytest.mark.parametrize("record", UNKNOWN_REASONS, ids=range(len(UNKNOWN_REASONS)))
def test_a_refusal_by_an_unknown_word_is_an_error_of_the_device(record: ConfigRecord) -> None:
    content = content_of(device=NAME, refusal=record)
    grid = FakeGrid({1: lambda message: [Message(content, reply_to=message)]})
    (reply,) = ask(grid, [1], TRAIN, b"data", 1, 30)
    assert reply.reason == "device-error"
    assert 0 < len(reply.error) < 520


def test_the_known_words_of_a_policy_are_short_and_of_letters() -> None:
    assert all(re.fullmatch("policy-[a-z-]{1,33}", word) for word in POLICY_REASONS)
    assert all(POLICY_REASONS.values())


ARRAY = ArrayRecord({"update": Array(dtype="uint8", shape=(1,), stype="fedlora.update", data=b"x")})
NAME = ConfigRecord({"device": "kitchen"})
NO_REPLIES = {
    "nothing": (TRAIN, content_of()),
    "no name": (TRAIN, content_of(update=ARRAY)),
    "no array": (TRAIN, content_of(device=NAME)),
    "an array of another name": (TRAIN, content_of(device=NAME, update=ArrayRecord({"other": ARRAY["update"]}))),
    "metrics for training": (TRAIN, content_of(device=NAME, metrics=MetricRecord({"loss": 1.0}))),
    "an update for an evaluation": (EVALUATE, content_of(device=NAME, update=ARRAY)),
}


@pytest.mark.parametrize(("kind", "content"), NO_REPLIES.values(), ids=list(NO_REPLIES))
def test_records_that_are_not_a_reply_are_an_error(kind: str, content: RecordDict) -> None:
    grid = FakeGrid({4: lambda message: [Message(content, reply_to=message)]})
    (reply,) = ask(grid, [4], kind, b"data", 1, 30)
    assert reply.error.startswith(f"not an answer to {kind}")
    assert (reply.node, reply.device, reply.data, reply.metrics) == (4, "4", b"", None)


def test_connected_nodes_are_in_order() -> None:
    assert connected_nodes(FakeGrid(dict.fromkeys((9, 4, 6), echo)), 3, 30) == [4, 6, 9]


def test_too_few_connected_nodes_end_the_run_with_the_numbers() -> None:
    with pytest.raises(RunError, match=r"2 devices connected after 0\.01 s, the run needs 3"):
        connected_nodes(FakeGrid({1: echo, 2: echo}), 3, 0.01)


def test_connected_nodes_waits_for_nodes_that_come_later() -> None:
    class Growing(FakeGrid):
        def get_node_ids(self) -> list[int]:
            self.devices[len(self.devices) + 1] = echo
            return list(self.devices)

    assert connected_nodes(Growing({1: echo}), 3, 30) == [1, 2, 3]


def test_however_many_replies_wait_only_a_few_are_pulled_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = FakeGrid(dict.fromkeys(range(1, 41), echo))
    pull = grid.pull_messages
    sizes: list[int] = []

    def counted(message_ids: Iterable[str]) -> Iterable[Message]:
        ids = list(message_ids)
        sizes.append(len(ids))
        return pull(ids)

    monkeypatch.setattr(grid, "pull_messages", counted)
    assert len(list(ask(grid, range(1, 41), TRAIN, b"data", 1, 30.0))) == 40
    assert max(sizes) <= 8


class Restarting(FakeGrid):
    """Devices that were started again, each at the time in `started`; before that they answer to nothing."""

    def __init__(self, devices: Mapping[int, Device]) -> None:
        super().__init__(devices)
        self.started = dict.fromkeys(devices, "1")

    def get_nodes(self) -> list[NodeInfo]:
        return [NodeInfo(node_id=node, last_activated_at=at) for node, at in self.started.items()]


def test_a_device_that_was_started_again_is_asked_again_and_its_first_answer_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exchange, "_LOOK_S", 0.0)
    kept: list[Message] = []

    def forgets(message: Message) -> list[Message]:
        kept.append(message)
        if len(kept) == 1:
            grid.started[1] = "2"
            return []
        return [*echo(kept[0]), *echo(message)]  # it had not been lost after all

    grid = Restarting({1: forgets, 2: echo})
    replies = list(ask(grid, [1, 2], TRAIN, b"data", 1, 30.0))
    assert sorted(reply.node for reply in replies) == [1, 2]
    assert not any(reply.error for reply in replies)
    assert [node for _, node in grid.asked] == [1, 2, 1]


def test_an_error_of_a_device_that_was_asked_again_counts_only_where_no_other_answer_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exchange, "_LOOK_S", 0.0)
    kept: list[Message] = []

    def busy(message: Message) -> list[Message]:
        kept.append(message)
        grid.started[1] = str(len(kept))
        error = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "device kitchen: busy with another question")
        if len(kept) == 1:
            grid.started[1] = "2"
            return []
        return [Message(error, reply_to=message), *(echo(kept[0]) if sound else [Message(error, reply_to=kept[0])])]

    for sound in (True, False):
        kept.clear()
        grid = Restarting({1: busy})
        (reply,) = ask(grid, [1], TRAIN, b"data", 1, 30.0)
        assert bool(reply.error) is not sound


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_device_that_was_lost_from_sight_is_asked_again_if_it_is_back_before_long(
    monkeypatch: pytest.MonkeyPatch, comes_back: bool
) -> None:
    monkeypatch.setattr(exchange, "_LOOK_S", 0.0)
    monkeypatch.setattr(exchange, "_GRACE_S", 0.3)
    kept: list[Message] = []

    def lost(message: Message) -> Sequence[Message]:
        kept.append(message)
        if len(kept) > 1:
            return echo(message)
        if not comes_back:
            del grid.started[1]
        return [Message(Error(ErrorCode.NODE_UNAVAILABLE, "no heartbeat"), reply_to=message)]

    grid = Restarting({1: lost, 2: echo})
    replies = {reply.node: reply for reply in ask(grid, [1, 2], TRAIN, b"data", 1, 30.0)}
    assert sorted(replies) == [1, 2]
    assert replies[1].error == ("" if comes_back else "no heartbeat")
