"""A reply that is too large is refused before it is held: over Flower's own client, and on a grid that tells no sizes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import httpx
import pytest
from fedlora_server.exchange import MOST_BYTES, TRAIN, ask
from flwr.app import Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedResponse, PullObjectRequest, PullObjectResponse
from flwr.proto.runtime_pb2 import (
    PullAppMessagesRequest,
    PullAppMessagesResponse,
    PushAppMessagesRequest,
    PushAppMessagesResponse,
)
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.run import Run
from flwr.superlink.grid.http_grid import HttpGrid

from tests.server.fake_grid import FakeGrid, training_reply


class SuperLink:
    """A SuperLink's HTTP interface, whose nodes reply with so many bytes; it knows what of them was read."""

    def __init__(self, sizes: dict[int, int]) -> None:
        self.sizes, self.read, self.confirmed = sizes, 0, 0
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
            reply.metadata.__dict__["_message_id"] = reply.object_id
            self._objects |= {key: value.deflate() for key, value in get_all_nested_objects(reply).items()}
            response.message_object_trees.append(get_object_tree(reply))
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
