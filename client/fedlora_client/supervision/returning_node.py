"""A SuperNode that bears a network that fails: it comes back at once, and what it sent twice is no error.

SuperLink of flwr 1.42 activates a node only while it counts as offline. A SuperNode that was killed, or whose answer to its
activation was lost on the way, counts as online until 60 s after its last heartbeat, and is refused until then. So its
number is kept, and a node that is refused is first signed off, with its own key, and then tried once more.
An object whose acknowledgement was lost is pushed once more, and SuperLink says of what it has already that it was not
stored: the SuperNode would drop its answer. After a lost acknowledgement that word counts as stored; were it not,
the server would wait for the object in vain for some seconds, and ask again.
SuperLink gives a message out once, and one whose answer is cut off on its way is lost to both. After such a request that is
followed by an empty one, the node is signed off and comes back: our server asks whoever came back again, and Flower's
protocol knows no other way to say so.
This reaches into Flower's SuperNode, at the version that we pin.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import httpx
from fedlora.errors import ConfigError
from fedlora.files.atomic import write_text
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import PushObjectRequest, PushObjectResponse
from flwr.proto.node_pb2 import Node
from flwr.supernode import fleet_http_connection
from flwr.supernode.fleet_http_client import FleetHttpClient

NOT_SIGNED = "SuperLink does not take this signature"


def return_at_once(path: Path) -> None:
    """From now on SuperNodes of this process do; the node's number is kept in `path`."""
    connection: Any = fleet_http_connection
    connection.FleetHttpClient = type("ReturningClient", (ReturningClient,), {"node_file": path})


class ReturningClient(FleetHttpClient):
    """Flower's client of SuperLink."""

    node_file: Path
    _unacknowledged: ClassVar[set[str]] = set()  # objects
    _may_have_lost_a_message = False

    def ActivateNode(self, request: ActivateNodeRequest) -> ActivateNodeResponse:  # noqa: N802 (Flower's name)
        try:
            answer = super().ActivateNode(request)
        except httpx.HTTPStatusError as error:
            if error.response.status_code == httpx.codes.UNAUTHORIZED:
                print(f"{NOT_SIGNED}: {error}", flush=True)  # Flower ends then without a word
                raise
            if not self._signed_off():
                raise
            answer = super().ActivateNode(request)
        with suppress(OSError, ConfigError):  # a full disk: the next start has to wait
            write_text(self.node_file, f"{answer.node_id}\n")
        return answer

    def PullMessages(self, request: PullMessagesRequest) -> PullMessagesResponse:  # noqa: N802
        try:
            answer = super().PullMessages(request)
        except (httpx.ConnectError, httpx.ConnectTimeout):
            raise
        except httpx.TransportError:
            self._may_have_lost_a_message = True
            raise
        if self._may_have_lost_a_message:
            self._may_have_lost_a_message = not answer.messages_list and not self._came_again(request.node)
        return answer

    def PushObject(self, request: PushObjectRequest) -> PushObjectResponse:  # noqa: N802
        try:
            answer = super().PushObject(request)
        except httpx.TransportError:
            self._unacknowledged.add(request.object_id)
            raise
        if request.object_id in self._unacknowledged:
            self._unacknowledged.discard(request.object_id)
            return PushObjectResponse(stored=True)
        return answer

    def _came_again(self, node: Node) -> bool:
        """Whether SuperLink has seen the node go and come: a heartbeat brings back one that is offline."""
        try:
            with suppress(httpx.HTTPStatusError):  # it is offline
                self.DeactivateNode(DeactivateNodeRequest(node_id=node.node_id))
            beat = SendNodeHeartbeatRequest(node=node, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)
            return self.SendNodeHeartbeat(beat).success
        except httpx.HTTPError:
            return False

    def _signed_off(self) -> bool:
        """Whether SuperLink knew this node, and lets it go."""
        try:
            node = int(self.node_file.read_text(encoding="ascii"))
            self.DeactivateNode(DeactivateNodeRequest(node_id=node))
        except (OSError, ValueError, httpx.HTTPError):
            return False
        return True
