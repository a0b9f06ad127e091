"""A reply that is too large is refused before it is held: over Flower's own client, and on a grid that tells no sizes."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import httpx
import pytest
from fedlora_server import bounded_pull, exchange
from fedlora_server.exchange import MOST_BYTES, TRAIN, ask
from flwr.app import Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedResponse, ObjectTree, PullObjectRequest, PullObjectResponse
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.runtime_pb2 import (
    GetNodesResponse,
    PullAppMessagesRequest,
    PullAppMessagesResponse,
    PushAppMessagesRequest,
    PushAppMessagesResponse,
)
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_id, get_object_tree
from flwr.supercore.run import Run
from flwr.superlink.grid.http_grid import HttpGrid

from tests.server.fake_grid import FakeGrid, training_reply

# (node, {object: its bytes}, the tree of the message) -> the tree that it sends; the objects are changed in place
Forgery = Callable[[int, dict[str, bytes], ObjectTree], ObjectTree]


class SuperLink:
    """A SuperLink's HTTP interface, whose nodes reply with so many bytes; it knows what of them was read."""

    def __init__(self, sizes: dict[int, int], forge: Forgery | None = None) -> None:
        self.sizes, self.read, self.confirmed = sizes, 0, 0
        self._forge = forge or (lambda node, objects, tree: tree)  # what a device makes of the objects that it sends
        self._asked: dict[str, Message] = {}
        self._objects: dict[str, bytes] = {}
        self._pushed: list[Any] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path, body = request.url.path.rsplit("/", 1)[-1], request.read()
        answer: Any
        if path == "push-messages":
            pushed = PushAppMessagesRequest.FromString(body)
            self._pushed += pushed.messages_list
            answer = PushAppMessagesResponse(message_ids=[m.metadata.message_id for m in pushed.messages_list])
        elif path == "pull-messages":
            answer = self._replies(set(PullAppMessagesRequest.FromString(body).message_ids))
        elif path == "pull-object":
            content = self._objects[PullObjectRequest.FromString(body).object_id]
            answer = PullObjectResponse(object_found=True, object_available=True, object_content=content)
        else:
            self.confirmed += 1
            answer = ConfirmMessageReceivedResponse()
        data = answer.SerializeToString()
        return httpx.Response(200, headers={"content-length": str(len(data))}, stream=_Counted(self, data))

    def _replies(self, ids: set[str]) -> PullAppMessagesResponse:
        response = PullAppMessagesResponse()
        for proto in [m for m in self._pushed if m.metadata.message_id in ids]:
            self._pushed.remove(proto)
            sent = Message(dst_node_id=proto.metadata.dst_node_id, message_type=TRAIN, content=RecordDict())
            sent.metadata.__dict__["_message_id"] = proto.metadata.message_id
            node = proto.metadata.dst_node_id
            reply = training_reply(sent, b"x" * self.sizes[node], f"device-{node}")
            objects = {key: value.deflate() for key, value in get_all_nested_objects(reply).items()}
            tree = self._forge(node, objects, get_object_tree(reply))
            reply.metadata.__dict__["_message_id"] = tree.object_id
            self._objects |= objects
            response.message_object_trees.append(tree)
            response.messages_list.append(message_to_proto(remove_content_from_message(reply)))
        return response


class _Counted(httpx.SyncByteStream):
    def __init__(self, link: SuperLink, data: bytes) -> None:
        self._link, self._data = link, data

    def __iter__(self) -> Iterator[bytes]:
        self._link.read += len(self._data)
        yield self._data


def grid_over(link: SuperLink) -> HttpGrid:
    FakeGrid({})  # a message must come from somewhere
    grid = HttpGrid("127.0.0.1:1", insecure=True, token="token")
    grid.set_run(Run.create_empty(run_id=1))
    grid._runtime_client._client = httpx.Client(transport=httpx.MockTransport(link))
    return grid


def test_a_reply_that_is_too_large_is_refused_before_its_body_is_read() -> None:
    link = SuperLink({1: 1000, 2: 60 << 20, 3: 2000, 4: 60 << 20})
    grid = grid_over(link)
    client = grid._client
    replies = {reply.node: reply for reply in ask(grid, [1, 2, 3, 4], TRAIN, b"data", 1, 30)}
    assert {node: len(replies[node].data) for node in (1, 3)} == {1: 1000, 3: 2000}
    for node in (2, 4):
        assert replies[node].reason == "oversized"
        assert f"larger than {MOST_BYTES} bytes" in replies[node].error
    assert link.read < 2 * MOST_BYTES + 100_000  # at most what came before the bound was passed
    assert link.confirmed >= 4  # the SuperLink need not keep what is refused
    assert grid._client is client  # as it was


def test_a_reply_of_several_parts_is_counted_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    link = SuperLink({1: 40 << 20, 2: 12 << 20})  # in parts of 5 MB
    most = 13 << 20
    replies = {reply.node: reply for reply in ask(grid_over(link), [1, 2], TRAIN, b"data", 1, 30, most)}
    assert replies[1].reason == "oversized"
    assert len(replies[2].data) == 12 << 20
    assert link.read < 30 << 20


def changed(
    kind: str, change: Callable[[bytes, bytes], bytes], objects: dict[str, bytes], tree: ObjectTree
) -> ObjectTree:
    """The tree of a message whose objects of one kind are `change(head, body)`: what names them names the changed ones."""
    children = [changed(kind, change, objects, child) for child in tree.children]
    content = objects.pop(tree.object_id, None)
    if content is None:  # it stands in the message twice, and was changed
        return tree
    for before, after in zip(tree.children, children, strict=True):
        content = content.replace(before.object_id.encode(), after.object_id.encode())
    head, _, body = content.partition(b"\0")
    if head.split()[0].decode() == kind:
        body = change(head, body)
        head = b" ".join([*head.split(b" ")[:-1], str(len(body)).encode()])
    content = head + b"\0" + body
    objects[get_object_id(content)] = content
    return ObjectTree(object_id=get_object_id(content), children=children)


def with_body(kind: str, change: Callable[[bytes, bytes], bytes]) -> Forgery:
    """Of node 2 alone."""
    return lambda node, objects, tree: changed(kind, change, objects, tree) if node == 2 else tree


def naming_parts(names: list[object]) -> Callable[[bytes, bytes], bytes]:
    return lambda head, body: json.dumps({**json.loads(body), "arraychunk_ids": names}).encode()


@pytest.mark.parametrize("times", [3, 100_000])
def test_a_part_of_an_array_counts_as_often_as_the_array_names_it(times: int) -> None:
    """100,000 times 6 MB are 600 GB, of 6 MB that come."""
    link = SuperLink({1: 1000, 2: 5 << 20}, with_body("Array", naming_parts([0] * times)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    replies = {reply.node: reply for reply in ask(grid_over(link), [1, 2], TRAIN, b"data", 1, 30, 8 << 20)}
    assert (replies[2].reason, len(replies[1].data)) == ("oversized", 1000)
    assert link.confirmed >= 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_an_array_may_name_a_part_twice_within_the_bound() -> None:
    link = SuperLink({2: 1000}, with_body("Array", naming_parts([0, 0, 0])))
    [reply] = ask(grid_over(link), [2], TRAIN, b"data", 1, 30)
    assert reply.data == b"x" * 3000


@pytest.mark.parametrize(
    "forge",
    [
        with_body("Array", naming_parts([])),
        with_body("Array", naming_parts([7])),
        with_body("Array", naming_parts(["0"])),
        with_body("Array", lambda head, body: b"[]"),
        with_body("Array", lambda head, body: b"[" * 200_000),
        with_body("Array", lambda head, body: b"\xff"),
        with_body("ConfigRecord", lambda head, body: b"\xff" * 9),
        with_body("RecordDict", lambda head, body: b"{}"),
        with_body("Message", lambda head, body: b""),
        lambda node, objects, tree: tree.children[0] if node == 2 else tree,
        lambda node, objects, tree: ObjectTree(object_id=tree.object_id) if node == 2 else tree,
    ],
)
def test_objects_that_make_no_message_cost_their_own_device_alone(forge: Forgery) -> None:
    """The SuperLink looks at the heads of objects alone; what is in them is for the server to find."""
    link = SuperLink({1: 1000, 2: 500, 3: 2000}, forge)
    replies = {reply.node: reply for reply in ask(grid_over(link), [1, 2, 3], TRAIN, b"data", 1, 30)}
    assert {node: len(reply.data) for node, reply in replies.items()} == {1: 1000, 2: 0, 3: 2000}
    assert replies[2].error
    assert link.confirmed >= 3


class Silent(FakeGrid):
    """A grid that tells no sizes, and holds nothing itself."""

    holds_replies = False
    most_at_once = 0

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        ids = list(message_ids)
        self.most_at_once = max(self.most_at_once, len(ids))
        return super().pull_messages(ids)


def test_a_grid_that_tells_no_sizes_is_pulled_from_one_reply_at_a_time() -> None:
    grid = Silent(
        {node: lambda m: [training_reply(m, bytes(m.metadata.dst_node_id << 18), "x")] for node in range(1, 9)}
    )
    replies = {reply.node: reply for reply in ask(grid, range(1, 9), TRAIN, b"data", 1, 30)}
    assert grid.most_at_once == 1
    assert [node for node, reply in sorted(replies.items()) if reply.reason == "oversized"] == [5, 6, 7, 8]
    assert all(not replies[node].data for node in (5, 6, 7, 8))


def test_a_reply_that_never_comes_whole_holds_up_nobody_and_its_device_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    halted: set[str] = set()

    def first_of_1(node: int, objects: dict[str, bytes], tree: ObjectTree) -> ObjectTree:
        halted.update(objects if node == 1 else ())
        return tree

    class Halting(SuperLink):
        """The first reply of node 1 is announced, and its parts do not come."""

        times = 0

        def __call__(self, request: httpx.Request) -> httpx.Response:
            path, body = request.url.path.rsplit("/", 1)[-1], request.read()
            self.times += path == "push-messages"
            answer: Any = None
            if path == "get-nodes":
                answer = GetNodesResponse(nodes=[NodeInfo(node_id=node) for node in self.sizes])
            elif path == "pull-object" and self.times == 2 and PullObjectRequest.FromString(body).object_id in halted:
                answer = PullObjectResponse(object_found=True, object_available=False)
            return httpx.Response(200, content=answer.SerializeToString()) if answer else super().__call__(request)

    monkeypatch.setattr(bounded_pull, "_STALL_S", 0.0)
    monkeypatch.setattr(exchange, "_LOOK_S", 0.0)
    link = Halting({1: 1000, 2: 2000}, first_of_1)
    replies = {reply.node: reply for reply in ask(grid_over(link), [1, 2], TRAIN, b"data", 1, 60)}
    assert {node: len(reply.data) for node, reply in replies.items()} == {1: 1000, 2: 2000}
    assert link.times == 3
