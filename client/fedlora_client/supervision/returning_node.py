"""A SuperNode that comes back at once: without it, SuperLink takes none back that it does not know to be gone.

SuperLink of flwr 1.42 activates a node only while it counts as offline. A SuperNode that was killed, or whose answer to its
activation was lost on the way, counts as online until 60 s after its last heartbeat, and is refused until then. So its
number is kept, and a node that is refused is first signed off, with its own key, and then tried once more.
This reaches into Flower's SuperNode, at the version that we pin.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
from fedlora.errors import ConfigError
from fedlora.files.atomic import write_text
from flwr.proto.fleet_pb2 import ActivateNodeRequest, ActivateNodeResponse, DeactivateNodeRequest
from flwr.supernode import fleet_http_connection
from flwr.supernode.fleet_http_client import FleetHttpClient


def return_at_once(path: Path) -> None:
    """From now on SuperNodes of this process do; the node's number is kept in `path`."""
    connection: Any = fleet_http_connection
    connection.FleetHttpClient = type("ReturningClient", (ReturningClient,), {"node_file": path})


class ReturningClient(FleetHttpClient):
    """Flower's client of SuperLink."""

    node_file: Path

    def ActivateNode(self, request: ActivateNodeRequest) -> ActivateNodeResponse:  # noqa: N802 (Flower's name)
        try:
            answer = super().ActivateNode(request)
        except httpx.HTTPStatusError:
            if not self._signed_off():
                raise
            answer = super().ActivateNode(request)
        with suppress(OSError, ConfigError):  # a full disk: the next start has to wait
            write_text(self.node_file, f"{answer.node_id}\n")
        return answer

    def _signed_off(self) -> bool:
        """Whether SuperLink knew this node, and lets it go."""
        try:
            node = int(self.node_file.read_text(encoding="ascii"))
            self.DeactivateNode(DeactivateNodeRequest(node_id=node))
        except (OSError, ValueError, httpx.HTTPError):
            return False
        return True
