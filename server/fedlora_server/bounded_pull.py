"""Replies that are refused by their size before they are held.

Flower's object tree names the objects of a reply and no sizes. So each object is measured by the length that its HTTP
response announces, before the body is read: what passes the bound of its reply ends the pull, and Flower's grid then gives
an error in that reply's place. An array may name one of its parts many times, and then is larger than what came: its parts
are counted as often as it names them. What Flower cannot put together ends its pull too, or it would end the whole run; and
so does a reply whose device has pushed its head and nothing more for a while: Flower would wait for the rest for
minutes, and take nobody else's reply meanwhile.
This reaches into Flower's HttpGrid, at the version that we pin; another grid is pulled from one reply at a time.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from flwr.serverapp import Grid
from flwr.supercore.constant import HEAD_BODY_DIVIDER
from flwr.supercore.inflatable.inflatable_object import (
    get_object_children_ids_from_object_content,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, inflate_object_from_contents

log = logging.getLogger("fedlora.server")

AT_ONCE = 8
_ARRAY, _PART = b"Array ", b"ArrayChunk "  # how the heads of these objects begin
_STALL_S = 20.0  # without anything new of a reply
_FEW_OBJECTS, _CHUNK_BYTES = 32, 1 << 20  # of a reply: its records, and its array in parts (Flower's have 5 MB)


@dataclass
class Pulls:
    """What may be pulled at once, and the messages whose replies were refused so far, or never came whole."""

    at_once: int
    refused: set[str] = field(default_factory=set)
    stalled: set[str] = field(default_factory=set)


@contextmanager
def bounded(grid: Grid, most_bytes: int) -> Iterator[Pulls]:
    """While the block runs, no reply that `grid` is asked for brings more than `most_bytes`, where the grid lets us see."""
    inner: Any = grid
    http: Any = getattr(getattr(inner, "_runtime_client", None), "_client", None)
    if not hasattr(http, "event_hooks"):
        yield Pulls(AT_ONCE if getattr(grid, "holds_replies", False) else 1)
        return
    pulls, client, hooks = Pulls(AT_ONCE), inner._client, http.event_hooks
    meter = _Meter(inner, most_bytes, pulls)
    inner._client = meter
    http.event_hooks = {**hooks, "response": [*hooks.get("response", ()), meter.announced]}
    try:
        yield pulls
    finally:
        inner._client, http.event_hooks = client, hooks


@dataclass
class _Incoming:
    """A reply that is being pulled."""

    message_id: str
    replies_to: str
    objects: Counter[str]  # how often each stands in the reply, which may repeat one
    most_bytes: int
    sizes: dict[str, int] = field(
        default_factory=dict
    )  # the largest answer about each: the first may be that it is late
    contents: dict[str, bytes] = field(default_factory=dict)  # of each that came; of a part of an array its head alone
    size_bytes: int = 0
    unsound: str = ""  # why no message can be made of it
    waits_since: float = 0.0  # for an object that is not there yet

    @property
    def is_refused(self) -> bool:
        return bool(self.unsound) or self.size_bytes > self.most_bytes

    def measure(self, object_id: str, size: int) -> None:
        """Count what an object has, by its own word or as it came."""
        more = max(0, size - self.sizes.get(object_id, 0))
        self.sizes[object_id] = self.sizes.get(object_id, 0) + more
        self.size_bytes += more * self.objects[object_id]

    def take(self, object_id: str, content: bytes) -> None:
        """Look at an object that came: how often it names others, and, with the last one, whether all make a message."""
        self.waits_since = 0.0
        if object_id in self.contents:
            return
        end = content.find(HEAD_BODY_DIVIDER) + 1
        self.contents[object_id] = content[:end] if end and content.startswith(_PART) else content
        try:
            if content.startswith(_ARRAY):
                self._repeat(content, content[end:])
            if self.size_bytes <= self.most_bytes and self.contents.keys() >= self.objects.keys():
                contents, self.contents = self.contents, dict.fromkeys(self.contents, b"")
                message: Any = inflate_object_from_contents(self.message_id, contents)
                if message.metadata.reply_to_message_id != self.replies_to:
                    self.unsound = "it says that it replies to another message"
        except Exception as error:  # made by a stranger: anything may be wrong in it
            self.unsound = f"no message can be made of it: {error!r:.200}"

    def _repeat(self, content: bytes, body: bytes) -> None:
        """Count the parts of an array as often as it names them."""
        parts = get_object_children_ids_from_object_content(content)
        for part, times in Counter(parts[number] for number in json.loads(body)["arraychunk_ids"]).items():
            self.objects[part] += times - 1
            self.size_bytes += (times - 1) * self.sizes.get(part, 0)


class _Meter:
    """Flower's client of the SuperLink, with a count of what each reply brings."""

    def __init__(self, grid: Any, most_bytes: int, pulls: Pulls) -> None:
        self._grid, self._client, self._most, self._pulls = grid, grid._client, most_bytes, pulls
        self._incoming: list[_Incoming] = []
        self._lock, self._this_thread = threading.Lock(), threading.local()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def PullMessages(self, request: Any) -> Any:  # noqa: N802 (Flower's name)
        response = self._client.PullMessages(request)
        with self._lock:
            self._incoming = []
            for message, tree in zip(response.messages_list, response.message_object_trees, strict=True):
                objects = Counter(node.object_id for node in iterate_object_tree(tree))
                metadata = message.metadata
                reply = _Incoming(metadata.message_id, metadata.reply_to_message_id, objects, self._most)
                if objects.total() > _FEW_OBJECTS + self._most // _CHUNK_BYTES:
                    reply.size_bytes = self._most + 1
                self._incoming.append(reply)
        return response

    def PullObject(self, request: Any) -> Any:  # noqa: N802
        self._this_thread.object_id = request.object_id
        try:
            response = self._client.PullObject(request)
            self._count(request.object_id, len(response.object_content), response)
            if response.object_found and not response.object_available:
                self._wait_for(request.object_id)
        except ObjectPullError:
            self._this_thread.object_id = None
            self._let_go(request.object_id)
            raise
        finally:
            self._this_thread.object_id = None
        return response

    def announced(self, response: Any) -> None:
        """Called by httpx when the head of a response has come, and none of its body."""
        object_id = getattr(self._this_thread, "object_id", None)
        length = response.headers.get("content-length", "")
        if object_id and response.is_success and length.isdecimal():
            self._count(object_id, int(length))

    def _count(self, object_id: str, size: int, response: Any = None) -> None:
        """Raise ObjectPullError where no reply that has the object may be held, or can be made a message."""
        with self._lock:
            holders = [reply for reply in self._incoming if object_id in reply.objects]
            for reply in holders:
                reply.measure(object_id, size)
                if response is not None and response.object_available:
                    reply.take(object_id, response.object_content)
            if holders and all(reply.is_refused for reply in holders):
                large = [reply for reply in holders if reply.size_bytes > self._most]
                self._pulls.refused |= {reply.replies_to for reply in large}
                reason = f"its reply is larger than {self._most} bytes" if large else holders[0].unsound
                raise ObjectPullError(object_id, reason)

    def _wait_for(self, object_id: str) -> None:
        """Raise ObjectPullError where every reply that has the object has stood still for too long."""
        now = time.monotonic()
        with self._lock:
            holders = [reply for reply in self._incoming if object_id in reply.objects]
            for reply in holders:
                reply.waits_since = reply.waits_since or now
            if holders and all(now - reply.waits_since > _STALL_S for reply in holders):
                self._pulls.stalled |= {reply.replies_to for reply in holders}
                raise ObjectPullError(object_id, f"nothing more of its reply came for {_STALL_S:g} s")

    def _let_go(self, object_id: str) -> None:
        """Tell the SuperLink that it need not keep what is refused."""
        with self._lock:
            refused = [reply for reply in self._incoming if object_id in reply.objects and reply.is_refused]
        for reply in refused:
            try:
                self._client.ConfirmMessageReceived(
                    ConfirmMessageReceivedRequest(
                        node=self._grid.node, run_id=self._grid.run.run_id, message_object_id=reply.message_id
                    )
                )
            except Exception as error:  # the reply is refused whether or not the SuperLink makes room
                log.debug("a refused reply stays on the SuperLink: %r", error)
