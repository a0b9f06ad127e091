"""Replies that are refused by their size before they are held.

Flower's object tree names the objects of a reply and no sizes. So each object is measured by the length that its HTTP
response announces, before the body is read: what passes the bound of its reply ends the pull, and Flower's grid then gives
an error in that reply's place. This reaches into Flower's HttpGrid, at the version that we pin; another grid is pulled from
one reply at a time.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError

log = logging.getLogger("fedlora.server")

AT_ONCE = 8
_FEW_OBJECTS, _CHUNK_BYTES = 32, 1 << 20  # of a reply: its records, and its array in parts (Flower's have 5 MB)


@dataclass
class Pulls:
    """What may be pulled at once, and the messages whose replies were refused so far."""

    at_once: int
    refused: set[str] = field(default_factory=set)


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
    sizes: dict[str, int] = field(
        default_factory=dict
    )  # the largest answer about each: the first may be that it is late
    bytes: int = 0


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
                reply = _Incoming(metadata.message_id, metadata.reply_to_message_id, objects)
                if objects.total() > _FEW_OBJECTS + self._most // _CHUNK_BYTES:
                    reply.bytes = self._most + 1
                self._incoming.append(reply)
        return response

    def PullObject(self, request: Any) -> Any:  # noqa: N802
        self._this_thread.object_id = request.object_id
        try:
            response = self._client.PullObject(request)
            self._count(request.object_id, len(response.object_content))
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

    def _count(self, object_id: str, size: int) -> None:
        """Raise ObjectPullError where every reply that has the object would pass the bound with it."""
        with self._lock:
            holders = [reply for reply in self._incoming if object_id in reply.objects]
            for reply in holders:
                more = max(0, size - reply.sizes.get(object_id, 0))
                reply.sizes[object_id] = reply.sizes.get(object_id, 0) + more
                reply.bytes += more * reply.objects[object_id]
            if holders and all(reply.bytes > self._most for reply in holders):
                self._pulls.refused |= {reply.replies_to for reply in holders}
                raise ObjectPullError(object_id, f"its reply is larger than {self._most} bytes")

    def _let_go(self, object_id: str) -> None:
        """Tell the SuperLink that it need not keep what is refused."""
        with self._lock:
            refused = [reply for reply in self._incoming if object_id in reply.objects and reply.bytes > self._most]
        for reply in refused:
            try:
                self._client.ConfirmMessageReceived(
                    ConfirmMessageReceivedRequest(
                        node=self._grid.node, run_id=self._grid.run.run_id, message_object_id=reply.message_id
                    )
                )
            except Exception as error:  # the reply is refused whether or not the SuperLink makes room
                log.debug("a refused reply stays on the SuperLink: %r", error)
