"""The in-process grid keeps devices apart, turns what they raise into replies, and gives each reply once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from types import SimpleNamespace

import pytest
from fedlora.errors import RunError
from fedlora_client.training.wanted import check_wanted
from fedlora_simulations import grid as grid_module
from fedlora_simulations.grid import InProcessGrid
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

Handle = Callable[[Message, Context], Message]

WAIT_S = 30.0  # no test waits for so long; one that would has failed


def nodes(count: int) -> list[dict[str, int]]:
    return [{"partition-id": number, "num-partitions": count} for number in range(count)]


def grid_of(handle: Handle, *, devices: int = 3, workers: int = 2) -> InProcessGrid:
    app = ClientApp()
    app.train()(handle)
    return InProcessGrid(app, {"train.lr": 0.5}, run_id=7, nodes=nodes(devices), workers=workers)


def content(text: str = "", data: bytes = b"") -> RecordDict:
    array = Array(dtype="uint8", shape=(len(data),), stype="test", data=data)
    return RecordDict({"config": ConfigRecord({"text": text}), "arrays": ArrayRecord({"array": array})})


def text_of(message: Message) -> str:
    return str(message.content.config_records["config"]["text"])


def echo(message: Message, context: Context) -> Message:
    """Reply with the device's number and what it was sent."""
    return Message(content(f"{context.node_id}: {text_of(message)}"), reply_to=message)


def to(node: int, text: str = "hello", kind: str = "train") -> Message:
    return Message(content(text), node, kind, group_id="1")


def pulled(grid: InProcessGrid, ids: list[str]) -> list[Message]:
    """Pull until every message has its reply, or until it is clear that one never comes."""
    replies: list[Message] = []
    deadline = time.monotonic() + WAIT_S
    while len(replies) < len(ids) and time.monotonic() < deadline:
        replies += grid.pull_messages(ids)
    return replies


def test_the_nodes_are_numbered_from_1() -> None:
    with grid_of(echo, devices=4) as grid:
        assert list(grid.get_node_ids()) == [1, 2, 3, 4]
        assert grid.run.run_id == 7


def test_each_message_is_replied_to_by_the_node_that_it_was_sent_to() -> None:
    with grid_of(echo) as grid:
        replies = list(grid.send_and_receive([to(3, "c"), to(1, "a"), to(2, "b")], timeout=WAIT_S))
    assert sorted(text_of(reply) for reply in replies) == ["1: a", "2: b", "3: c"]


def test_a_reply_names_the_message_that_it_replies_to() -> None:
    with grid_of(echo) as grid:
        ids = list(grid.push_messages([to(1), to(2)]))
        replies = pulled(grid, ids)
    assert {r.metadata.reply_to_message_id: r.metadata.src_node_id for r in replies} == {ids[0]: 1, ids[1]: 2}
    assert len({reply.metadata.message_id for reply in replies} | set(ids)) == 4


def test_a_reply_is_pulled_once() -> None:
    with grid_of(echo) as grid:
        ids = list(grid.push_messages([to(1), to(2)]))
        assert len(pulled(grid, ids)) == 2
        assert list(grid.pull_messages(ids)) == []


def test_a_reply_is_pulled_only_by_who_asks_for_it() -> None:
    with grid_of(echo) as grid:
        (first,) = grid.push_messages([to(1, "first")])
        (second,) = grid.push_messages([to(2, "second")])
        assert [text_of(reply) for reply in pulled(grid, [second])] == ["2: second"]
        assert [text_of(reply) for reply in pulled(grid, [first])] == ["1: first"]


def test_a_message_of_no_known_id_has_no_reply() -> None:
    with grid_of(echo) as grid:
        assert list(grid.pull_messages(["nobody"])) == []
        assert list(grid.pull_messages([])) == []


def test_what_a_device_changes_in_its_message_reaches_nobody_else() -> None:
    def vandal(message: Message, context: Context) -> Message:
        seen = text_of(message) + message.content.array_records["arrays"]["array"].data.decode()
        message.content.config_records["config"]["text"] = "spoilt"
        message.content.array_records["arrays"]["array"].data = b"spoilt"
        del message.content.array_records["arrays"]
        return Message(content(seen), reply_to=message)

    shared = content("a", b"b")
    with grid_of(vandal) as grid:
        messages = [Message(shared, node, "train") for node in (1, 2, 3)]
        replies = list(grid.send_and_receive(messages, timeout=WAIT_S))
    assert [text_of(reply) for reply in replies] == ["ab"] * 3
    assert shared.config_records["config"]["text"] == "a"
    assert shared.array_records["arrays"]["array"].data == b"b"


def test_what_a_device_changes_in_its_reply_after_it_was_sent_does_not_count() -> None:
    kept: list[RecordDict] = []

    def vandal(message: Message, context: Context) -> Message:
        for earlier in kept:
            earlier.config_records["config"]["text"] = "spoilt"
        kept.append(content(text_of(message)))
        return Message(kept[-1], reply_to=message)

    with grid_of(vandal, devices=1, workers=1) as grid:
        ids = [next(iter(grid.push_messages([to(1, text)]))) for text in ("first", "second")]
        pulled(grid, ids[1:])
        assert [text_of(reply) for reply in pulled(grid, ids[:1])] == ["first"]


def test_what_the_server_changes_after_it_sent_does_not_reach_a_device() -> None:
    go = threading.Event()

    def slow(message: Message, context: Context) -> Message:
        go.wait(WAIT_S)
        return echo(message, context)

    shared = content("a")
    with grid_of(slow, devices=1) as grid:
        ids = list(grid.push_messages([Message(shared, 1, "train")]))
        shared.config_records["config"]["text"] = "changed"
        go.set()
        assert [text_of(reply) for reply in pulled(grid, ids)] == ["1: a"]


def test_a_device_that_raises_becomes_an_error_reply_and_costs_only_itself() -> None:
    def second_breaks(message: Message, context: Context) -> Message:
        if context.node_id == 2:
            raise ZeroDivisionError("no batteries")
        return echo(message, context)

    with grid_of(second_breaks) as grid:
        replies = list(grid.send_and_receive([to(1), to(2), to(3)], timeout=WAIT_S))
    errors = {reply.metadata.src_node_id: reply.error.reason for reply in replies if reply.has_error()}
    assert errors == {2: "ZeroDivisionError('no batteries')"}
    assert len(replies) == 3


def test_a_message_that_the_client_does_not_know_becomes_an_error_reply() -> None:
    with grid_of(echo) as grid:
        (reply,) = grid.send_and_receive([to(1, kind="query")], timeout=WAIT_S)
    assert "No query function registered" in str(reply.error.reason)


def test_a_device_that_returns_no_message_becomes_an_error_reply() -> None:
    def forgets(message: Message, context: Context) -> Message:
        return None  # type: ignore[return-value]

    with grid_of(forgets, devices=1) as grid:
        replies = list(grid.send_and_receive([to(1)], timeout=1))
    assert [reply.has_error() for reply in replies] == [True]


def test_send_and_receive_returns_what_came_before_its_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    pulled_so_far: list[Message] = []
    pull = InProcessGrid.pull_messages

    def counted(grid: InProcessGrid, ids: Iterable[str]) -> Iterable[Message]:
        came = list(pull(grid, ids))
        pulled_so_far.extend(came)
        return came

    # The time is over when both of the others are there, however slow this machine is.
    clock = SimpleNamespace(monotonic=lambda: len(pulled_so_far) // 2, time=time.time)
    monkeypatch.setattr(InProcessGrid, "pull_messages", counted)
    monkeypatch.setattr(grid_module, "time", clock)

    def second_sleeps(message: Message, context: Context) -> Message:
        if context.node_id == 2:
            go.wait(WAIT_S)
        return echo(message, context)

    with grid_of(second_sleeps) as grid:
        replies = list(grid.send_and_receive([to(1), to(2), to(3)], timeout=0.5))
        go.set()
    assert sorted(text_of(reply) for reply in replies) == ["1: hello", "3: hello"]


def test_send_and_receive_without_a_timeout_waits_for_all() -> None:
    with grid_of(echo, devices=5, workers=1) as grid:
        assert len(list(grid.send_and_receive([to(node) for node in range(1, 6)]))) == 5


def test_a_device_knows_its_partition_their_number_and_the_run() -> None:
    seen: dict[int, tuple[object, ...]] = {}

    def look(message: Message, context: Context) -> Message:
        node, run = context.node_config, context.run_config
        seen[context.node_id] = (node["partition-id"], node["num-partitions"], run["train.lr"], context.run_id)
        return echo(message, context)

    with grid_of(look) as grid:
        list(grid.send_and_receive([to(node) for node in (1, 2, 3)], timeout=WAIT_S))
    assert seen == {node: (node - 1, 3, 0.5, 7) for node in (1, 2, 3)}


def test_a_device_keeps_its_own_state_between_messages() -> None:
    def count(message: Message, context: Context) -> Message:
        before = context.state.metric_records.get("calls", MetricRecord({"n": 0}))["n"]
        assert isinstance(before, int)
        context.state["calls"] = MetricRecord({"n": before + 1})
        return Message(content(f"{context.node_id}: {before + 1}"), reply_to=message)

    with grid_of(count) as grid:
        texts = [
            text_of(reply)
            for nodes in ((1, 2), (1,), (1, 3))
            for reply in grid.send_and_receive([to(node) for node in nodes], timeout=WAIT_S)
        ]
    assert sorted(texts) == ["1: 1", "1: 2", "1: 3", "2: 1", "3: 1"]


def test_a_device_works_on_one_message_at_a_time() -> None:
    active, most = [0], [0]

    def work(message: Message, context: Context) -> Message:
        active[0] += 1
        most[0] = max(most[0], active[0])
        time.sleep(0.02)
        active[0] -= 1
        return echo(message, context)

    with grid_of(work, devices=1, workers=4) as grid:
        assert len(list(grid.send_and_receive([to(1) for _ in range(4)], timeout=WAIT_S))) == 4
    assert most == [1]


def test_devices_work_side_by_side() -> None:
    meet = threading.Barrier(3, timeout=WAIT_S)

    def together(message: Message, context: Context) -> Message:
        meet.wait()  # it breaks unless three devices are here at once
        return echo(message, context)

    with grid_of(together, workers=3) as grid:
        replies = list(grid.send_and_receive([to(node) for node in (1, 2, 3)], timeout=WAIT_S))
    assert [reply.has_error() for reply in replies] == [False] * 3


@pytest.mark.parametrize("raises", [False, True])
def test_the_listeners_are_told_of_every_message_and_every_reply(raises: bool) -> None:
    pushed: list[int] = []
    done: list[int] = []

    def handle(message: Message, context: Context) -> Message:
        if raises:
            raise ValueError("broken")
        return echo(message, context)

    app = ClientApp()
    app.train()(handle)
    with InProcessGrid(
        app,
        {},
        run_id=7,
        nodes=nodes(3),
        workers=2,
        on_push=lambda message: pushed.append(message.metadata.dst_node_id),
        on_done=lambda message: done.append(message.metadata.dst_node_id),
    ) as grid:
        list(grid.send_and_receive([to(node) for node in (1, 2, 3)], timeout=WAIT_S))
    assert pushed == [1, 2, 3]
    assert sorted(done) == [1, 2, 3]


def test_a_grid_that_is_closed_waits_for_no_device() -> None:
    at_work, go = threading.Event(), threading.Event()

    def slow(message: Message, context: Context) -> Message:
        at_work.set()
        go.wait(WAIT_S)
        return echo(message, context)

    done: list[Message] = []
    app = ClientApp()
    app.train()(slow)
    with InProcessGrid(app, {}, run_id=7, nodes=nodes(3), workers=1, on_done=done.append) as grid:
        ids = list(grid.push_messages([to(1), to(2)]))
        assert at_work.wait(WAIT_S)
    (thread,) = (each for each in threading.enumerate() if each.name.startswith("device-"))
    assert thread.daemon
    go.set()
    thread.join(WAIT_S)
    assert not thread.is_alive(), "it takes up no more work"
    assert [len(done), len(list(grid.pull_messages(ids[1:])))] == [0, 0]


def ended_early(message: Message, context: Context, ended: threading.Event) -> Message:
    """A device that computes until it is told that nobody waits for it."""
    deadline = time.monotonic() + WAIT_S
    try:
        while time.monotonic() < deadline:
            check_wanted()
    except RunError:
        ended.set()
        raise
    return echo(message, context)


def test_a_device_ends_its_training_when_the_grid_is_closed() -> None:
    ended = threading.Event()
    with grid_of(lambda message, context: ended_early(message, context, ended)) as grid:
        grid.push_messages([to(1)])
    assert ended.wait(WAIT_S)


def test_a_device_ends_the_training_of_a_round_that_is_over_and_takes_part_in_the_next() -> None:
    ended = threading.Event()

    def late_once(message: Message, context: Context) -> Message:
        return echo(message, context) if ended.is_set() else ended_early(message, context, ended)

    with grid_of(late_once, devices=1, workers=1) as grid:
        message = Message(content("late"), 1, "train", ttl=0.1, group_id="1")
        (late,) = grid.push_messages([message])
        (next_one,) = grid.push_messages([to(1, "next")])
        assert [text_of(reply) for reply in pulled(grid, [next_one])] == ["1: next"]
        assert list(grid.pull_messages([late])) == []
